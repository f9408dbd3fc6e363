//! A development authorization server: everything that `issuer/` asks of a real one, on one machine.
//!
//! It is there for a newcomer's first five minutes, for the tests, and to be
//! read. What it does it does as the RFCs say; what makes it a *development*
//! issuer is that its passwords are public, that it forgets everything when it
//! ends, and that it therefore refuses to listen where others could reach it.
//!
//! One file per endpoint. A person's way through them: `authorize` checks
//! what a client asks for, logs the person in and asks for consent; the code it
//! gives becomes tokens in `token`; `introspect` tells what a token is
//! worth, and `revoke` ends it. `store` knows what belongs together.

mod assertion;
mod authorize;
mod bounded;
mod browser;
mod clients;
mod credentials;
mod ending;
mod error;
mod form;
mod introspect;
mod issue;
mod jwt;
mod keys;
mod logout;
mod metadata;
mod mint;
mod options;
mod pages;
mod path;
mod people;
mod pushed;
mod register;
mod reply;
mod request;
mod revoke;
mod store;
mod token;
mod traffic;
mod userinfo;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::runtime::Handle;

pub use super::listen::StartError;
pub use clients::{Authentication, Client, GrantType, TokenFormat};
pub use keys::Algorithm;
pub use mint::{Mint, MintError};
pub use options::{API, Options, Resource};
pub use people::Person;
pub use traffic::{Endpoint, Fault, Held};

use self::browser::Browsers;
use self::clients::Clients;
use self::error::OAuthError;
use self::form::Form;
use self::keys::Keyring;
use self::people::People;
use self::pushed::Pushed;
use self::reply::Reply;
use self::store::Store;
use self::traffic::{Gate, Passed, Traffic};
use super::listen::{Bound, Listening, is_local};
use crate::base::clock::Clock;
use crate::base::scopes::Scopes;

/// The issuer, as all its connections share it.
#[derive(Debug)]
pub struct DevIssuer {
    url: String,
    options: Options,
    clock: Clock,
    keys: Keyring,
    clients: Clients,
    browsers: Browsers,
    pushed: Pushed,
    people: People,
    store: Store,
    traffic: Traffic,
    control: Handle,
}

impl DevIssuer {
    /// Starts an issuer on `address`, on the runtime `control`. Port 0 takes any free port.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the address is not a loopback one or is taken, or if
    /// no keys can be made.
    pub fn start(
        address: SocketAddr,
        clock: Clock,
        options: Options,
        control: &Handle,
    ) -> Result<Running, StartError> {
        let bound = Bound::bind(address)?;
        let keys = Keyring::new(&options.algorithms, options.keys_published_for, clock.clone())
            .map_err(|_| StartError::Keys)?;
        let issuer = Arc::new(Self {
            url: options.issuer.clone().unwrap_or_else(|| format!("http://{}", bound.address)),
            clock,
            keys,
            clients: Clients::new(options.clients.clone()),
            browsers: Browsers::new(),
            pushed: Pushed::new(),
            people: People::new(options.people.clone()),
            store: Store::new(),
            traffic: Traffic::new(),
            control: control.clone(),
            options,
        });
        let address = bound.address;
        let shared = Arc::clone(&issuer);
        let listening = bound.serve(control, move |request| {
            let issuer = Arc::clone(&shared);
            async move { issuer.serve(request).await }
        })?;
        Ok(Running { issuer, address, _listening: listening })
    }

    /// Counts a request, lets an ordered fault happen to it, and answers it.
    async fn serve(&self, request: Request<Incoming>) -> Result<Reply, Closed> {
        let Some(endpoint) = path::endpoint(request.uri().path()) else {
            return Ok(reply::empty(StatusCode::NOT_FOUND));
        };
        match self.traffic.pass(endpoint).await {
            Passed::Unharmed => {}
            Passed::Failed(status) => return Ok(reply::empty(status)),
            Passed::Answered(status, content_type, body) => {
                return Ok(reply::of(status, content_type, body));
            }
            Passed::Closed => return Err(Closed),
        }
        let (head, body) = request.into_parts();
        if !head.headers.get(HOST).is_some_and(is_local) {
            return Ok(reply::empty(StatusCode::MISDIRECTED_REQUEST));
        }
        let Ok(body) = Limited::new(body, LONGEST_BODY).collect().await else {
            return Ok(reply::empty(StatusCode::PAYLOAD_TOO_LARGE));
        };
        let call = Call { head, body: body.to_bytes() };
        Ok(self.answer(&call).unwrap_or_else(reply::error))
    }

    /// Which endpoint answers what.
    fn answer(&self, call: &Call) -> Result<Reply, OAuthError> {
        // HEAD is GET without the body, which hyper leaves out.
        let method = match call.head.method {
            Method::HEAD => &Method::GET,
            ref method => method,
        };
        match (method, call.head.uri.path()) {
            (&Method::GET, path::OAUTH_METADATA | path::OPENID_METADATA) => {
                Ok(reply::public_json(&metadata::document(self), METADATA_MAX_AGE))
            }
            (&Method::GET, path::JWKS) => {
                Ok(reply::public_json(&self.keys.published(), KEYS_MAX_AGE))
            }
            (&Method::GET | &Method::POST, path::AUTHORIZE) => authorize::begin(self, call),
            (&Method::POST, path::LOGIN) => authorize::log_in(self, call),
            (&Method::GET, path::CONSENT) => authorize::go_on(self, call),
            (&Method::POST, path::CONSENT) => authorize::consent(self, call),
            (&Method::GET | &Method::POST, path::END_SESSION) => logout::answer(self, call),
            (&Method::POST, path::PUSH) => pushed::answer(self, &call.head.headers, &call.form()?),
            (&Method::POST, path::TOKEN) => token::answer(self, &call.head.headers, &call.form()?),
            (&Method::POST, path::INTROSPECT) => {
                introspect::answer(self, &call.head.headers, &call.form()?)
            }
            (&Method::POST, path::REVOKE) => {
                revoke::answer(self, &call.head.headers, &call.form()?)
            }
            (&Method::GET | &Method::POST, path::USERINFO) => {
                Ok(userinfo::answer(self, &call.head.headers))
            }
            (&Method::GET, path::REGISTER) => Ok(pages::register(None)),
            (&Method::POST, path::REGISTER) if call.is_form() => {
                call.own_form(|| register::person(self, call))
            }
            (&Method::POST, path::REGISTER) => register::program(self, call),
            (&Method::GET, path::HOME) => Ok(pages::home(self)),
            (&Method::GET, path::STYLE) => Ok(pages::style()),
            (&Method::POST, path::ROTATE) => call.own_form(|| {
                self.keys.rotate().map_err(|_| OAuthError::SERVER)?;
                Ok(reply::see_other(path::HOME))
            }),
            (_, path) => Ok(reply::method_not_allowed(path::methods(path))),
        }
    }

    /// Every scope some client may ask for.
    fn scopes(&self) -> Vec<String> {
        let clients = self.clients.all();
        let scopes: Scopes = clients.iter().flat_map(|client| client.scopes.iter()).collect();
        scopes.iter().map(str::to_owned).collect()
    }
}

/// A request with its whole body.
struct Call {
    head: http::request::Parts,
    body: Bytes,
}

impl Call {
    /// The form in the body.
    fn form(&self) -> Result<Form, OAuthError> {
        if !self.is_form() {
            let wanted = "The body must be application/x-www-form-urlencoded.";
            return Err(OAuthError::request(wanted));
        }
        Form::parse(&self.body)
    }

    fn is_form(&self) -> bool {
        let content_type = self.head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let essence = content_type.and_then(|t| t.split(|byte| *byte == b';').next());
        essence.is_some_and(|essence| essence.trim_ascii().eq_ignore_ascii_case(FORM))
    }

    /// Answers a form of this issuer's own pages; one that another site's page sent is refused.
    fn own_form(
        &self,
        answer: impl FnOnce() -> Result<Reply, OAuthError>,
    ) -> Result<Reply, OAuthError> {
        match self.head.headers.get("sec-fetch-site").map(HeaderValue::as_bytes) {
            None | Some(b"same-origin" | b"none") => answer(),
            Some(_) => Ok(reply::empty(StatusCode::FORBIDDEN)),
        }
    }
}

/// A running issuer: what tests and `northgate dev` hold. Dropping it closes every connection.
#[derive(Debug)]
pub struct Running {
    issuer: Arc<DevIssuer>,
    address: SocketAddr,
    _listening: Listening,
}

impl Running {
    /// The issuer's name: the `iss` of its tokens, and where its endpoints are.
    pub fn url(&self) -> &str {
        &self.issuer.url
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes an access token that this issuer knows: it can be introspected and revoked.
    ///
    /// # Errors
    ///
    /// [`MintError`] if the client is unknown, or if there are no random numbers.
    pub fn mint(&self, mint: &Mint) -> Result<String, MintError> {
        self.issuer.mint(mint)
    }

    /// Signs any claims under any header, good or hostile, with a key in use.
    ///
    /// `alg` and `kid` are those of the key unless `header` has its own. The
    /// issuer knows nothing of such a token: introspection calls it inactive.
    ///
    /// # Panics
    ///
    /// If `header` or `claims` is not an object, or if the key cannot sign.
    pub fn sign(&self, algorithm: Algorithm, header: Value, claims: Value) -> String {
        let (Value::Object(header), Value::Object(claims)) = (header, claims) else {
            panic!("a JWT's header and claims are objects")
        };
        let key = self.issuer.keys.signing(Some(algorithm));
        key.sign(header, &claims).expect("the key signs")
    }

    /// Signs with new keys from now on; the old ones stay published for a while.
    ///
    /// # Errors
    ///
    /// [`StartError::Keys`] if no keys can be made.
    pub fn rotate_keys(&self) -> Result<(), StartError> {
        self.issuer.keys.rotate().map_err(|_| StartError::Keys)
    }

    /// Ends the login that tokens call `sid`, as if the person had logged out here: clients are told.
    ///
    /// # Errors
    ///
    /// [`MintError::Cryptography`] if no logout token can be made.
    pub fn end_login(&self, sid: &str) -> Result<(), MintError> {
        Ok(self.issuer.end_login(sid)?)
    }

    /// The signed word that this issuer tells `client` of a logout with (OpenID Connect Back-Channel Logout §2.4).
    ///
    /// # Errors
    ///
    /// [`MintError`] if the client is unknown, or if there are no random numbers.
    pub fn logout_token(
        &self,
        client: &str,
        sid: &str,
        subject: &str,
    ) -> Result<String, MintError> {
        let client = self.issuer.clients.find(client).ok_or(MintError::NoSuchClient)?;
        Ok(self.issuer.logout_token(&client, sid, subject)?)
    }

    /// How often `endpoint` has been called, requests that met a fault included.
    pub fn count(&self, endpoint: Endpoint) -> u64 {
        self.issuer.traffic.count(endpoint)
    }

    /// Waits until `endpoint` has been called `times` in all.
    pub async fn reached(&self, endpoint: Endpoint, times: u64) {
        self.issuer.traffic.reached(endpoint, times).await;
    }

    /// The next `times` requests to `endpoint` meet `fault`; `u32::MAX` is until [`Running::heal`].
    ///
    /// Several orders for one endpoint are served in turn.
    pub fn order(&self, endpoint: Endpoint, fault: Fault, times: u32) {
        self.issuer.traffic.order(endpoint, fault, times);
    }

    /// Takes back every fault ordered for `endpoint`.
    pub fn heal(&self, endpoint: Endpoint) {
        self.issuer.traffic.heal(endpoint);
    }

    /// Holds every request to `endpoint` back until the answer is dropped.
    pub fn hold(&self, endpoint: Endpoint) -> Held {
        let (held, gate) = Gate::closed();
        self.order(endpoint, Fault::Hold(gate), u32::MAX);
        held
    }
}

/// The connection is to close without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a fault was ordered: no answer")]
struct Closed;

/// Bytes of a request's body, at most.
const LONGEST_BODY: usize = 64 * 1024;
/// Seconds that the metadata may be kept.
const METADATA_MAX_AGE: u64 = 3600;
/// Seconds that the published keys may be kept.
const KEYS_MAX_AGE: u64 = 300;
const FORM: &[u8] = b"application/x-www-form-urlencoded";
