//! One HTTP call to an authorization server: bounded in time, in size and in number.

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use url::Url;

use super::concurrency::{ConcurrencyLimit, ConcurrencyPermit};
use super::json;
use super::purpose::{Class, Purpose};
use super::settings::{ClientAuth, Settings};
use super::unavailable::Unavailable;
use crate::base::clock::Clock;
use crate::base::log_limiter::LogLimiter;
use crate::observe::metrics::{Endpoint, IssuerMetrics};
use crate::tls::{self, Identity, TlsError};

/// How an authorization server is called.
pub(super) struct IssuerClient {
    name: Arc<str>,
    clock: Clock,
    metrics: Arc<IssuerMetrics>,
    ca: Option<Arc<[u8]>>,
    timeout: Duration,
    limit: ConcurrencyLimit,
    /// For the warning about each class's places.
    busy: [LogLimiter; Class::COUNT],
    /// For what is said about single calls.
    warnings: LogLimiter,
    anonymous: reqwest::Client,
    /// Clients that show a certificate, by it; as many as the configuration names.
    identified: Mutex<HashMap<Arc<[u8]>, reqwest::Client>>,
}

impl IssuerClient {
    /// Builds the HTTP client. Nothing is sent yet.
    pub(super) fn new(
        settings: &Settings,
        clock: Clock,
        metrics: Arc<IssuerMetrics>,
    ) -> Result<Self, TlsError> {
        let calls = Self {
            name: Arc::clone(&settings.name),
            clock,
            metrics,
            ca: settings.ca.clone(),
            timeout: settings.timeout,
            limit: ConcurrencyLimit::new(settings.max_concurrent.get()),
            busy: core::array::from_fn(|_| LogLimiter::new(1)),
            warnings: LogLimiter::new(MAX_WARNINGS),
            anonymous: http_client(settings.timeout, settings.ca.as_deref(), None)?,
            identified: Mutex::default(),
        };
        if let Some(client) = &settings.client {
            calls.client(&client.auth)?;
        }
        Ok(calls)
    }

    /// Fetches a document: metadata or keys. Not counted among the calls at once.
    pub(super) async fn get(&self, endpoint: Endpoint, url: &Url) -> Result<Response, Unavailable> {
        let accept = if endpoint == Endpoint::Jwks { JWKS } else { JSON };
        let request = self.anonymous.get(url.clone()).header(ACCEPT, accept);
        self.send(endpoint, request).await.map_err(|_| Unavailable::RETRY_SOON)
    }

    /// Takes a place among the calls at once, of those that are kept for calls of this `purpose`.
    ///
    /// Taken before a circuit is asked: being busy is no failure of the server's.
    pub(super) fn slot(&self, purpose: Purpose) -> Result<ConcurrencyPermit<'_>, Unavailable> {
        let class = purpose.class();
        self.limit.try_acquire(class).ok_or_else(|| {
            if let Some(suppressed) = self.busy[class as usize].admit(self.clock.uptime()) {
                tracing::warn!(issuer = %self.name, purpose = class.name(), suppressed, "Too many calls at once to this authorization server.");
            }
            Unavailable::RETRY_SOON
        })
    }

    /// Whether something may be said about one call, which a client may have brought about; and how much of
    /// that kind was suppressed since the last time.
    pub(super) fn may_warn(&self) -> Option<u64> {
        self.warnings.admit(self.clock.uptime())
    }

    /// Posts a form.
    pub(super) async fn post(
        &self,
        _slot: &ConcurrencyPermit<'_>,
        post: Post<'_>,
    ) -> Result<Response, CallError> {
        let client = self.client(post.auth).map_err(|error| {
            tracing::error!(issuer = %self.name, %error, "The client certificate cannot be used.");
            CallError::NotAsked
        })?;
        let mut request = client
            .post(post.url.clone())
            .header(ACCEPT, post.accept)
            .header(CONTENT_TYPE, FORM)
            .timeout(post.limit)
            .body(post.form);
        if let Some(authorization) = post.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        self.send(post.endpoint, request).await
    }

    async fn send(
        &self,
        endpoint: Endpoint,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, CallError> {
        let started = self.clock.uptime();
        let again = request.try_clone().filter(|_| may_be_asked_twice(endpoint));
        let reply = match (read(request).await, again) {
            (Err(CallFailure::Http(error)), Some(again)) if was_closed(&error) => read(again).await,
            (reply, _) => reply,
        };
        let took = self.clock.uptime().saturating_sub(started);
        let status = reply.as_ref().ok().map(|reply| reply.status.as_u16());
        self.metrics.called(endpoint, status, took);
        reply.map_err(|error| {
            // The error's text may quote the address, which is the operator's, and nothing of the request's.
            if let Some(suppressed) = self.may_warn() {
                tracing::warn!(issuer = %self.name, ?endpoint, %error, suppressed, "An authorization server did not answer.");
            }
            match error {
                CallFailure::Http(_) => CallError::Away,
                CallFailure::TooLarge => CallError::Odd,
            }
        })
    }

    fn client(&self, auth: &ClientAuth) -> Result<reqwest::Client, TlsError> {
        let ClientAuth::TlsClientAuth { certificate, key } = auth else {
            return Ok(self.anonymous.clone());
        };
        let mut identified = self.identified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = identified.get(certificate) {
            return Ok(client.clone());
        }
        let identity = Identity::from_pem(certificate, key.expose())?;
        let client = http_client(self.timeout, self.ca.as_deref(), Some(identity))?;
        identified.insert(Arc::clone(certificate), client.clone());
        Ok(client)
    }
}

impl fmt::Debug for IssuerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum CallError {
    /// No connection, or no whole answer in time: the server is away.
    Away,
    /// There was one, of which this input alone is to blame for all that is known.
    Odd,
    /// It was not asked.
    NotAsked,
}

/// A form to post, and as whom.
pub(super) struct Post<'a> {
    pub(super) endpoint: Endpoint,
    pub(super) url: &'a Url,
    pub(super) accept: &'static str,
    pub(super) form: String,
    pub(super) auth: &'a ClientAuth,
    pub(super) authorization: Option<HeaderValue>,
    /// How long the whole call may take.
    pub(super) limit: Duration,
}

/// What the server answered, whatever it was.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Response {
    /// Whether it says that the server is away: a gateway in front of it has written it, or the server
    /// takes no calls for now.
    pub(super) fn says_away(&self) -> bool {
        matches!(
            self.status,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        )
    }

    /// The media type, in lower case and without parameters.
    pub(super) fn media_type(&self) -> Option<String> {
        let value = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        let essence = value.split(';').next()?.trim();
        Some(essence.to_ascii_lowercase())
    }

    /// `error` of an error response (RFC 6749 §5.2), as far as it may be logged.
    pub(super) fn error_code(&self) -> Option<String> {
        let error = json::parse_object(&self.body).ok()?.remove("error")?;
        plain(error.as_str()?)
    }

    /// What an operator is told of a refusal: its status, and its error code if it has one.
    pub(super) fn refusal(&self) -> String {
        match self.error_code() {
            Some(error) => format!("{} ({error})", self.status.as_u16()),
            None => format!("{}, without an OAuth error", self.status),
        }
    }
}

/// An error code, as far as it keeps to its alphabet.
pub(super) fn plain(error: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
    (error.len() <= 64 && !error.is_empty() && error.bytes().all(plain)).then(|| error.to_owned())
}

async fn read(request: reqwest::RequestBuilder) -> Result<Response, CallFailure> {
    let mut response =
        request.send().await.map_err(|error| CallFailure::Http(error.without_url()))?;
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| CallFailure::Http(error.without_url()))?
    {
        if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
            return Err(CallFailure::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Response {
        status: response.status(),
        headers: core::mem::take(response.headers_mut()),
        body,
    })
}

/// Whether asking has no effect at the server that asking twice would double: a grant has.
const fn may_be_asked_twice(endpoint: Endpoint) -> bool {
    match endpoint {
        Endpoint::Discovery | Endpoint::Jwks | Endpoint::Introspection | Endpoint::Revocation => {
            true
        }
        Endpoint::Token | Endpoint::PushedAuthorization => false,
    }
}

/// Whether the connection ended before any answer: servers close idle ones just when we use them.
fn was_closed(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    if error.is_connect() || error.is_timeout() {
        return false;
    }
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let hyper = cause.downcast_ref::<hyper::Error>();
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if hyper.is_some_and(|error| error.is_incomplete_message() || error.is_canceled())
            || matches!(io, Some(BrokenPipe | ConnectionAborted | ConnectionReset))
        {
            return true;
        }
        source = cause.source();
    }
    false
}

/// Why there is no answer to look at.
#[derive(Debug, thiserror::Error)]
enum CallFailure {
    #[error("{}", chain(.0))]
    Http(reqwest::Error),
    #[error("the answer is larger than 1 MiB")]
    TooLarge,
}

/// The error and its causes: reqwest's own text stops at "error sending request".
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// No proxy from the environment, no redirects (RFC 9700 §4.12: a form with
/// secrets goes where the operator said), one deadline for the whole call.
fn http_client(
    timeout: Duration,
    ca: Option<&[u8]>,
    identity: Option<Identity>,
) -> Result<reqwest::Client, TlsError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client::config(ca, identity)?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("northgate/", env!("CARGO_PKG_VERSION")))
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build()
        .map_err(|_| TlsError::Setup)
}

const JSON: &str = "application/json";
/// RFC 7517 §8.5.1 has a type of its own for keys, which few servers know.
const JWKS: &str = "application/jwk-set+json, application/json";
const FORM: &str = "application/x-www-form-urlencoded";
/// Far above any metadata, key set or token.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
/// Below what servers and what stands before them usually keep a connection for.
/// Lines about single calls to one server, per ten seconds.
const MAX_WARNINGS: u32 = 20;
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
