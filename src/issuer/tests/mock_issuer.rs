//! A mock authorization server on a real socket: it sends configured
//! responses, records requests, and can fail, stall and lie.

use crate::base::lock::IgnorePoison;
use core::convert::Infallible;
use core::time::Duration;
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use url::Url;

use super::super::endpoints::token_response::Tokens;
use super::super::keys::signing_key::SigningKey;
use super::super::settings::Settings;
use crate::base::clock::Timestamp;

/// The server. Dropping it closes the listener and every connection.
pub(crate) struct Server {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

/// A recorded request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Asked {
    /// Returns the form's field `name`, which occurs at most once.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let fields = url::form_urlencoded::parse(self.body.as_bytes());
        let mut values = fields.filter(|(field, _)| field == name).map(|(_, value)| value);
        let value = values.next();
        assert!(values.next().is_none(), "{name} twice");
        value.map(String::from)
    }
}

/// A configured response.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
    pub(crate) delay: Duration,
}

impl Answer {
    pub(crate) fn json(body: Value) -> Self {
        Self::text("application/json", body.to_string())
    }

    pub(crate) fn text(media_type: &str, body: String) -> Self {
        let headers = vec![("content-type", media_type.to_owned())];
        Self { status: 200, headers, body, delay: Duration::ZERO }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::json(json!({ "error": "on_purpose" })) }
    }

    pub(crate) fn error(status: u16, error: &str) -> Self {
        Self { status, ..Self::json(json!({ "error": error })) }
    }

    pub(crate) fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

type Says = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

#[derive(Default)]
struct State {
    says: HashMap<String, Says>,
    asked: HashMap<String, Vec<Asked>>,
}

impl Server {
    /// Starts a server that publishes metadata and no keys.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<Mutex<State>>::default();
        let answering = Arc::clone(&state);
        let task = Handle::current().spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let state = Arc::clone(&answering);
                let service = service_fn(move |request| answer(Arc::clone(&state), request));
                let connection =
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                connections.spawn(async move {
                    let _ = connection.await;
                });
            }
        });
        let server = Self { url, state, task: task.abort_handle() };
        server.says(METADATA, Answer::json(server.metadata()));
        server.publishes(&[]);
        server
    }

    /// Returns settings for this server, with the defaults.
    pub(crate) fn settings(&self) -> Settings {
        Settings::new("main", &self.url)
    }

    /// Returns the metadata that it publishes by default.
    pub(crate) fn metadata(&self) -> Value {
        let at = |path| format!("{}{path}", self.url);
        json!({
            "issuer": self.url,
            "jwks_uri": at(JWKS),
            "token_endpoint": at(TOKEN),
            "introspection_endpoint": at(INTROSPECT),
            "revocation_endpoint": at(REVOKE),
        })
    }

    /// Returns a URL on this server.
    pub(crate) fn at(&self, path: &str) -> Url {
        Url::parse(&format!("{}{path}", self.url)).unwrap()
    }

    /// Publishes the public keys of these, and no others.
    pub(crate) fn publishes(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| key.public_jwk()).collect();
        self.says(JWKS, Answer::json(json!({ "keys": keys })));
    }

    /// Sets the response of `path`.
    pub(crate) fn says(&self, path: &str, answer: Answer) {
        self.hears(path, move |_| answer.clone());
    }

    /// Sets the function that responds to `path`.
    pub(crate) fn hears(&self, path: &str, say: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        self.state().says.insert(path.to_owned(), Arc::new(say));
    }

    /// Returns the number of requests to `path`.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.state().asked.get(path).map_or(0, Vec::len)
    }

    /// Returns the last request to `path`.
    pub(crate) fn last(&self, path: &str) -> Asked {
        self.state().asked[path].last().unwrap().clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().ignore_poison()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let asked = Asked { headers: parts.headers, body: String::from_utf8_lossy(&body).into_owned() };
    let says = {
        let mut state = state.lock().ignore_poison();
        state.asked.entry(parts.uri.path().to_owned()).or_default().push(asked.clone());
        state.says.get(parts.uri.path()).cloned()
    };
    let answer = says.map_or_else(|| Answer::status(404), |says| says(&asked));
    tokio::time::sleep(answer.delay).await;
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(answer.body)).unwrap())
}

/// Returns a new ES256 key with this `kid`.
pub(crate) fn signing_key(kid: &str) -> SigningKey {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap().with_kid(kid)
}

/// A token response at `received` with nothing but an access token.
pub(crate) fn access_token_alone(received: Timestamp) -> Tokens {
    Tokens {
        access_token: "access".into(),
        refresh_token: None,
        id_token: None,
        expires_in: None,
        refresh_expires_in: None,
        scope: None,
        received,
    }
}

/// Waits until `holds`, and panics after ten seconds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect(what);
}

pub(crate) const METADATA: &str = "/.well-known/oauth-authorization-server";
pub(crate) const JWKS: &str = "/jwks";
pub(crate) const TOKEN: &str = "/token";
pub(crate) const INTROSPECT: &str = "/introspect";
pub(crate) const REVOKE: &str = "/revoke";
