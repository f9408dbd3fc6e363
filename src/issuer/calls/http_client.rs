//! The HTTP client for an authorization server: calls are bounded in time, size and number.

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, StatusCode};
use url::Url;

use super::call_purpose::{Class, Purpose};
use super::concurrency::{ConcurrencyLimit, ConcurrencyPermit};
use super::unavailable::Unavailable;
use crate::base::clock::Clock;
use crate::base::lock::IgnorePoison;
use crate::base::log_limiter::LogLimiter;
use crate::base::media_type::essence;
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::issuer::settings::{ClientAuth, Settings};
use crate::observe::metrics::{Endpoint, IssuerMetrics};
use crate::tls::{self, Identity, TlsError};

/// The HTTP client for one authorization server.
pub(in crate::issuer) struct IssuerClient {
    name: Arc<str>,
    clock: Clock,
    metrics: Arc<IssuerMetrics>,
    ca: Option<Arc<[u8]>>,
    timeout: Duration,
    proxy: Option<Url>,
    limit: ConcurrencyLimit,
    /// Limits the warnings about each class's permits.
    busy_warnings: [LogLimiter; Class::COUNT],
    /// Limits the warnings about single calls.
    warnings: LogLimiter,
    anonymous: reqwest::Client,
    /// Clients with a certificate, by certificate; as many as the configuration names.
    identified: Mutex<HashMap<Arc<[u8]>, reqwest::Client>>,
}

impl IssuerClient {
    /// Builds the HTTP client without connecting.
    pub(in crate::issuer) fn new(
        settings: &Settings,
        clock: Clock,
        metrics: Arc<IssuerMetrics>,
    ) -> Result<Self, TlsError> {
        let http_client = Self {
            name: Arc::clone(&settings.name),
            clock,
            metrics,
            ca: settings.ca.clone(),
            timeout: settings.timeout,
            limit: ConcurrencyLimit::new(settings.max_concurrent.get()),
            busy_warnings: core::array::from_fn(|_| LogLimiter::new(1)),
            warnings: LogLimiter::new(MAX_WARNINGS),
            anonymous: http_client(
                settings.timeout,
                settings.ca.as_deref(),
                None,
                settings.proxy.as_ref(),
            )?,
            proxy: settings.proxy.clone(),
            identified: Mutex::default(),
        };
        if let Some(client) = &settings.client {
            http_client.client(&client.auth)?;
        }
        Ok(http_client)
    }

    /// Fetches a document: metadata or a JWK set. Not counted among concurrent calls.
    pub(in crate::issuer) async fn get(
        &self,
        endpoint: Endpoint,
        url: &Url,
    ) -> Result<Response, Unavailable> {
        let accept = if endpoint == Endpoint::Jwks { JWKS } else { JSON };
        let request = self.anonymous.get(url.clone()).header(ACCEPT, accept);
        self.send(endpoint, request).await.map_err(|_| Unavailable::RETRY_SOON)
    }

    /// Fetches a document that belongs to the bearer of a token.
    pub(in crate::issuer) async fn get_as(
        &self,
        _slot: &ConcurrencyPermit<'_>,
        endpoint: Endpoint,
        url: &Url,
        authorization: HeaderValue,
    ) -> Result<Response, CallError> {
        let request = self.anonymous.get(url.clone()).header(ACCEPT, JSON);
        self.send(endpoint, request.header(AUTHORIZATION, authorization)).await
    }

    /// Acquires a permit for a call of this `purpose`.
    ///
    /// Acquired before the circuit breaker is consulted: being busy is no failure of the server.
    pub(in crate::issuer) fn slot(
        &self,
        purpose: Purpose,
    ) -> Result<ConcurrencyPermit<'_>, Unavailable> {
        let class = purpose.class();
        self.limit.try_acquire(class).ok_or_else(|| {
            if let Some(suppressed) = self.busy_warnings[class as usize].admit(self.clock.uptime()) {
                tracing::warn!(issuer = %self.name, purpose = class.name(), suppressed, "Too many calls at once to this authorization server; one was refused.");
            }
            Unavailable::RETRY_SOON
        })
    }

    /// Whether a log line about one call, which clients may provoke, is allowed; returns the number of
    /// lines suppressed since the last one.
    pub(in crate::issuer) fn may_warn(&self) -> Option<u64> {
        self.warnings.admit(self.clock.uptime())
    }

    /// Posts a form.
    pub(in crate::issuer) async fn post(
        &self,
        _slot: &ConcurrencyPermit<'_>,
        post: Post<'_>,
    ) -> Result<Response, CallError> {
        let client = self.client(post.auth).map_err(|error| {
            tracing::error!(issuer = %self.name, %error, "Could not use the client certificate; calls to this authorization server fail.");
            CallError::NotSent
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
        let retry = request.try_clone().filter(|_| may_be_repeated(endpoint));
        let response = match (read(request).await, retry) {
            (Err(CallFailure::Http(error)), Some(retry)) if was_closed(&error) => read(retry).await,
            (response, _) => response,
        };
        let took = self.clock.uptime().saturating_sub(started);
        let status = response.as_ref().ok().map(|response| response.status.as_u16());
        self.metrics.called(endpoint, status, took);
        response.map_err(|error| {
            // The error's text may quote the URL, which is the operator's, and nothing of the request.
            if let Some(suppressed) = self.may_warn() {
                tracing::warn!(issuer = %self.name, endpoint = endpoint.word(), %error, suppressed, "Could not get a response from an authorization server; the call fails.");
            }
            match error {
                CallFailure::Http(_) => CallError::Unavailable,
                CallFailure::TooLarge => CallError::Unexpected,
            }
        })
    }

    fn client(&self, auth: &ClientAuth) -> Result<reqwest::Client, TlsError> {
        let ClientAuth::TlsClientAuth { certificate, key } = auth else {
            return Ok(self.anonymous.clone());
        };
        let mut identified = self.identified.lock().ignore_poison();
        if let Some(client) = identified.get(certificate) {
            return Ok(client.clone());
        }
        let identity = Identity::from_pem(certificate, key.expose())?;
        let ca = self.ca.as_deref();
        let client = http_client(self.timeout, ca, Some(identity), self.proxy.as_ref())?;
        identified.insert(Arc::clone(certificate), client.clone());
        Ok(client)
    }
}

impl fmt::Debug for IssuerClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").finish_non_exhaustive()
    }
}

/// The reason why there is no response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::issuer) enum CallError {
    /// No connection, or no complete response in time: the server is unavailable.
    Unavailable,
    /// An unusable response, which this input alone may have caused.
    Unexpected,
    /// No request was sent.
    NotSent,
}

/// A form to post, and the client that posts it.
pub(in crate::issuer) struct Post<'a> {
    pub(in crate::issuer) endpoint: Endpoint,
    pub(in crate::issuer) url: &'a Url,
    pub(in crate::issuer) accept: &'static str,
    pub(in crate::issuer) form: String,
    pub(in crate::issuer) auth: &'a ClientAuth,
    pub(in crate::issuer) authorization: Option<HeaderValue>,
    /// The timeout of the whole call.
    pub(in crate::issuer) limit: Duration,
}

/// A response of the server.
pub(in crate::issuer) struct Response {
    pub(in crate::issuer) status: StatusCode,
    pub(in crate::issuer) headers: HeaderMap,
    pub(in crate::issuer) body: Vec<u8>,
}

impl Response {
    /// Whether the server is unavailable: a proxy in front of it has sent the response, or the server
    /// refuses calls for now.
    pub(in crate::issuer) fn is_unavailable(&self) -> bool {
        matches!(
            self.status,
            StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
        )
    }

    /// Returns the media type, in lower case and without parameters.
    pub(in crate::issuer) fn media_type(&self) -> Option<String> {
        let value = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        Some(essence(value).to_ascii_lowercase())
    }

    /// Returns `error` of an error response (RFC 6749 §5.2), if it may be logged.
    pub(in crate::issuer) fn error_code(&self) -> Option<String> {
        let error = strict_json::parse_object(&self.body).ok()?.remove("error")?;
        plain(error.as_str()?)
    }

    /// Returns `error_description` of an error response for the log: at most 200 visible characters, without `secret`,
    /// which some servers repeat.
    pub(in crate::issuer) fn description_without(
        &self,
        secret: Option<&Secret<String>>,
    ) -> Option<String> {
        let description =
            strict_json::parse_object(&self.body).ok()?.remove("error_description")?;
        let mut text = description.as_str()?.to_owned();
        if let Some(secret) = secret.filter(|secret| !secret.expose().is_empty()) {
            text = text.replace(&**secret.expose(), "…");
        }
        Some(text.chars().filter(|char| !char.is_control()).take(MAX_DESCRIPTION_CHARS).collect())
    }

    /// Describes a refusal for the operator: status, and error code if present.
    pub(in crate::issuer) fn refusal(&self) -> String {
        match self.error_code() {
            Some(error) => format!("{} ({error})", self.status.as_u16()),
            None => format!("{}, without an OAuth error", self.status),
        }
    }
}

/// Returns an error code if it keeps to its alphabet.
pub(in crate::issuer) fn plain(error: &str) -> Option<String> {
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
    // Some servers begin JSON with a byte order mark, which a reader may ignore (RFC 8259 §8.1).
    if body.starts_with(BYTE_ORDER_MARK) {
        body.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(Response {
        status: response.status(),
        headers: core::mem::take(response.headers_mut()),
        body,
    })
}

/// Whether a call may be repeated without effect: not so for a grant.
const fn may_be_repeated(endpoint: Endpoint) -> bool {
    match endpoint {
        Endpoint::Discovery
        | Endpoint::Jwks
        | Endpoint::Introspection
        | Endpoint::Revocation
        | Endpoint::Userinfo => true,
        Endpoint::Token | Endpoint::PushedAuthorization => false,
    }
}

/// Whether the connection closed before any response: servers close idle ones just when they are used.
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

/// The reason why there is no usable response.
#[derive(Debug, thiserror::Error)]
enum CallFailure {
    #[error("{}", chain(.0))]
    Http(reqwest::Error),
    #[error("the response is larger than 1 MiB")]
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

/// Only the configured proxy and none from the environment, no redirects (RFC 9700 §4.12: a form with
/// secrets must stay at the configured URL), one deadline for the whole call.
fn http_client(
    timeout: Duration,
    ca: Option<&[u8]>,
    identity: Option<Identity>,
    proxy: Option<&Url>,
) -> Result<reqwest::Client, TlsError> {
    let mut builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client::config(ca, identity)?)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("northgate/", env!("CARGO_PKG_VERSION")))
        .timeout(timeout)
        .connect_timeout(timeout)
        .pool_idle_timeout(IDLE_TIMEOUT);
    if let Some(proxy) = proxy {
        let proxy = reqwest::Proxy::all(proxy.clone()).map_err(|_| TlsError::Setup)?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|_| TlsError::Setup)
}

const JSON: &str = "application/json";
/// RFC 7517 §8.5.1 has a media type of its own for JWK sets, which few servers use.
const JWKS: &str = "application/jwk-set+json, application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// Bytes of a response; far above any metadata, JWK set or token.
const MAX_RESPONSE_BYTES: usize = 1 << 20;
/// Characters of an error description in the log.
const MAX_DESCRIPTION_CHARS: usize = 200;
/// Lines about single calls to one server, per ten seconds.
const MAX_WARNINGS: u32 = 20;
/// Below the usual keep-alive timeout of servers and proxies.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
