//! A development authorization server: everything that `issuer/` requires of a real one, on one machine.
//!
//! It serves a newcomer's first five minutes, the tests, and readers. It follows
//! the RFCs; as a *development* issuer it has public passwords, keeps its state
//! in memory, and refuses to listen on an address that other machines can reach.
//!
//! `routes` is the URL table; one file implements each endpoint. In the code
//! flow, `authorize` validates the client's request, logs the user in and asks
//! for consent; `token` exchanges the code for tokens; `introspect` returns
//! the state of a token and `revoke` ends it. `store` holds the grants.

mod authorization_request;
mod authorize;
mod backchannel_logout;
mod bounded_map;
mod browser_sessions;
mod client_assertion;
mod clients;
mod config;
mod credentials;
mod error;
mod form;
mod introspect;
mod jwt;
mod keys;
mod logout;
mod metadata;
mod pages;
mod par;
mod paths;
mod pushed_requests;
mod random;
mod registration;
mod requested_access;
mod response;
mod revoke;
mod routes;
mod state;
mod store;
mod token;
mod token_factory;
mod trial_tokens;
mod userinfo;
mod users;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use serde_json::Value;
use tokio::runtime::Handle;

pub use super::http_server::StartError;
pub use clients::{Authentication, Client, GrantType, TokenFormat};
pub use config::{API, DevIssuerConfig, Resource};
pub use keys::Algorithm;
pub use state::DevIssuer;
pub use trial_tokens::{Mint, MintError};
pub use users::User;

use self::browser_sessions::BrowserSessions;
use self::clients::Clients;
use self::keys::KeyRing;
use self::pushed_requests::PushedRequests;
use self::store::Store;
use self::users::Users;
use super::http_server::{BoundListener, ServerHandle};
use crate::base::clock::Clock;

impl DevIssuer {
    /// Starts an issuer on `address`, on the runtime `control`. Port 0 takes any free port.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the address is not a loopback address or is taken, or
    /// if no keys can be generated.
    pub fn start(
        address: SocketAddr,
        clock: Clock,
        config: DevIssuerConfig,
        control: &Handle,
    ) -> Result<DevIssuerHandle, StartError> {
        Self::start_with(address, clock, config, control, |router| router)
    }

    /// Starts an issuer whose router `wrap` has wrapped, such as in a layer that counts calls or injects faults.
    ///
    /// # Errors
    ///
    /// As [`DevIssuer::start`].
    pub fn start_with(
        address: SocketAddr,
        clock: Clock,
        config: DevIssuerConfig,
        control: &Handle,
        wrap: impl FnOnce(Router) -> Router,
    ) -> Result<DevIssuerHandle, StartError> {
        let bound = BoundListener::bind(address)?;
        let keys = KeyRing::new(&config.algorithms, config.keys_published_for, clock.clone())
            .map_err(|_| StartError::Keys)?;
        let issuer = Arc::new(Self {
            url: config.issuer.clone().unwrap_or_else(|| format!("http://{}", bound.address)),
            clock,
            keys,
            clients: Clients::new(config.clients.clone()),
            browser_sessions: BrowserSessions::new(),
            pushed_requests: PushedRequests::new(),
            users: Users::new(config.users.clone()),
            store: Store::new(),
            control: control.clone(),
            config,
        });
        let address = bound.address;
        let router = wrap(routes::router(Arc::clone(&issuer)));
        let server = bound.serve(router, control)?;
        Ok(DevIssuerHandle { issuer, address, _server: server })
    }
}

/// A running issuer. Dropping the handle closes every connection.
#[derive(Debug)]
pub struct DevIssuerHandle {
    issuer: Arc<DevIssuer>,
    address: SocketAddr,
    _server: ServerHandle,
}

impl DevIssuerHandle {
    /// Returns the issuer identifier: the `iss` of its tokens, and the base URL of its endpoints.
    pub fn url(&self) -> &str {
        &self.issuer.url
    }

    /// Returns the address it listens on.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Mints an access token that this issuer can introspect and revoke.
    ///
    /// # Errors
    ///
    /// [`MintError`] if the client is unknown, or if there are no random numbers.
    pub fn mint(&self, mint: &Mint) -> Result<String, MintError> {
        self.issuer.mint(mint)
    }

    /// Signs arbitrary claims under an arbitrary header, valid or hostile, with a key in use.
    ///
    /// `alg` and `kid` are those of the key unless `header` has its own. The
    /// store does not know such a token: introspection returns it as inactive.
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

    /// Generates new signing keys; the old ones stay published for a while.
    ///
    /// # Errors
    ///
    /// [`StartError::Keys`] if no keys can be generated.
    pub fn rotate_keys(&self) -> Result<(), StartError> {
        self.issuer.keys.rotate().map_err(|_| StartError::Keys)
    }

    /// Ends the login with this `sid`, as if the user had logged out here, and notifies its clients.
    ///
    /// # Errors
    ///
    /// [`MintError::Cryptography`] if no logout token can be signed.
    pub fn end_login(&self, sid: &str) -> Result<(), MintError> {
        Ok(self.issuer.end_login(sid)?)
    }

    /// Signs a logout token for `client` (OpenID Connect Back-Channel Logout §2.4).
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
        let client = self.issuer.clients.find(client).ok_or(MintError::UnknownClient)?;
        Ok(self.issuer.logout_token(&client, sid, subject)?)
    }
}
