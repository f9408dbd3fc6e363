//! The admin listener: health, metrics, reload, revocation, and the snapshot being served.
//!
//! Never on a public address by default, and never open to a page in the operator's browser: a request of another
//! origin is refused, and so is, unless a token is configured, one whose `Host` is a name other than `localhost`.

mod content;
mod limits;
mod revoke;

use core::any::Any;
use core::fmt::Display;
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::time::Duration;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tower::{ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

use self::limits::{ResetError, ResetRequest};
use self::revoke::RevokeRequest;
use crate::base::secret::Secret;
use crate::config;
use crate::metering::Metering;
use crate::observe::metrics::{CONTENT_TYPE as METRICS_TYPE, VERSION};
use crate::server::Server;
use crate::server::lifecycle::readiness::Readiness;
use crate::server::lifecycle::reload::{Reload, Reloaded};

/// The admin API.
#[derive(Debug)]
pub(super) struct Admin {
    server: Arc<Server>,
    readiness: Arc<Readiness>,
    reload: Arc<Reload>,
    metering: Option<Arc<Metering>>,
}

impl Admin {
    /// Creates the admin API of `server`; `POST /-/reload` runs `reload`.
    pub(super) const fn new(
        server: Arc<Server>,
        readiness: Arc<Readiness>,
        reload: Arc<Reload>,
        metering: Option<Arc<Metering>>,
    ) -> Self {
        Self { server, readiness, reload, metering }
    }

    /// Serves on `listener` until the control runtime ends, or a successor serves its address, within limits on the number and the age of connections.
    pub(super) async fn serve(self, listener: TcpListener, control: Handle) {
        let server = Arc::clone(&self.server);
        let mut released = pin!(server.admin_released());
        let router = router(Arc::new(self));
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut released => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection to the admin listener; trying again shortly.");
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let service = ServiceBuilder::new()
                .map_request(move |mut request: http::Request<Incoming>| {
                    request.extensions_mut().insert(Peer(peer));
                    request
                })
                .service(router.clone());
            control.spawn(async move {
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
                let service = TowerToHyperService::new(service);
                let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
                // A scraper that disconnects, or exceeds the age, is not an error.
                if timeout(MAX_CONNECTION_AGE, connection.as_mut()).await.is_err() {
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(HEADER_TIMEOUT, connection).await;
                }
                drop(permit);
            });
        }
    }
}

/// The client's address.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

/// Returns the endpoints. `GET` routes serve `HEAD` as well; other methods get `405` with `Allow`.
fn router(admin: Arc<Admin>) -> Router {
    let not_allowed = async || text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    // The path of the metrics is the operator's choice, and a reload may change it: no entry of the table.
    let metrics = get(metrics).fallback(not_allowed).with_state(Arc::clone(&admin));
    let guard = Guard { admin: Arc::clone(&admin), metrics };
    Router::new()
        .route("/livez", get(health))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/version", get(version))
        .route("/config", get(config_hash))
        .route("/routes", get(routes))
        .route("/upstreams", get(upstreams))
        .route("/-/upstreams", get(upstreams))
        .route("/-/reload", post(reload))
        .route("/-/revoke", post(revoke))
        .route("/-/limits", get(limits))
        .route("/-/limits/reset", post(reset_limits))
        .route("/-/usage", get(usage))
        .fallback(async || text(StatusCode::NOT_FOUND, "not found"))
        .method_not_allowed_fallback(not_allowed)
        .with_state(admin)
        .layer(
            ServiceBuilder::new()
                .layer(CatchPanicLayer::custom(panicked))
                .layer(TimeoutLayer::with_status_code(
                    StatusCode::SERVICE_UNAVAILABLE,
                    REQUEST_TIMEOUT,
                ))
                .layer(from_fn_with_state(guard, guard_endpoints))
                .layer(DefaultBodyLimit::max(MAX_BODY_BYTES)),
        )
}

/// The guard of the endpoints: origins, the token, and the metrics at their path.
#[derive(Clone)]
struct Guard {
    admin: Arc<Admin>,
    metrics: MethodRouter,
}

/// Refuses foreign origins, and without authorization all but health and metrics; serves the metrics at their path.
async fn guard_endpoints(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let Guard { admin, metrics } = guard;
    if is_cross_origin(request.headers()) {
        return text(StatusCode::FORBIDDEN, "requests of other origins are refused");
    }
    let settings = admin.server.admin_settings();
    let path = request.uri().path();
    let is_metrics = path == settings.metrics_path;
    let is_open = is_metrics || matches!(path, "/livez" | "/healthz" | "/readyz");
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if !(is_open && is_read)
        && let Err(refusal) = authorize(&settings.settings, &request)
    {
        return refusal;
    }
    if is_metrics {
        return metrics.oneshot(request).await.unwrap_or_else(|never| match never {});
    }
    next.run(request).await
}

async fn health() -> Response {
    text(StatusCode::OK, "ok")
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    let checks = admin.readiness.checks();
    let status = if checks.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &json!({ "ready": checks.ready, "checks": checks.each }))
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    admin.readiness.checks();
    admin.server.snapshot().refresh_health();
    let mut response = text(StatusCode::OK, &admin.server.shared().retained().metrics.render());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE));
    response
}

async fn version() -> Response {
    json(StatusCode::OK, &json!({ "version": VERSION }))
}

async fn config_hash(State(admin): State<Arc<Admin>>) -> Response {
    json(StatusCode::OK, &json!({ "hash": admin.server.snapshot().hash }))
}

async fn routes(State(admin): State<Arc<Admin>>) -> Response {
    json(StatusCode::OK, &admin.server.snapshot().describe_routes())
}

async fn upstreams(State(admin): State<Arc<Admin>>) -> Response {
    json(StatusCode::OK, &admin.server.snapshot().describe_upstreams())
}

async fn reload(State(admin): State<Arc<Admin>>) -> Response {
    match admin.reload.run().await {
        Ok(Reloaded { hash, waiting }) => json(
            StatusCode::OK,
            &json!({ "reloaded": true, "hash": hash, "waiting_for_restart": waiting }),
        ),
        Err(faults) => text(StatusCode::UNPROCESSABLE_ENTITY, &faults),
    }
}

async fn revoke(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let snapshot = admin.server.snapshot();
    let revoked = match RevokeRequest::read(request).await {
        Ok(request) => request.run(&snapshot, admin.server.shared().retained()).await,
        Err(error) => Err(error),
    };
    outcome(revoked, |error| error.status())
}

async fn limits(State(admin): State<Arc<Admin>>) -> Response {
    let retained = admin.server.shared().retained();
    json(StatusCode::OK, &limits::report(&admin.server.snapshot(), retained))
}

async fn usage(State(admin): State<Arc<Admin>>) -> Response {
    let retained = admin.server.shared().retained();
    let mut usage = limits::usage(&admin.server.snapshot(), retained);
    if let Some(metering) = &admin.metering {
        usage["metering"] = metering.status();
    }
    json(StatusCode::OK, &usage)
}

async fn reset_limits(State(admin): State<Arc<Admin>>, request: Request) -> Response {
    let snapshot = admin.server.snapshot();
    let reset = match ResetRequest::read(request).await {
        Ok(request) => request.run(&snapshot, admin.server.shared().retained()).await,
        Err(error) => Err(error),
    };
    outcome(reset, ResetError::status)
}

/// Returns what a request has done, or its error.
fn outcome<E: Display>(outcome: Result<Value, E>, status: impl Fn(&E) -> StatusCode) -> Response {
    match outcome {
        Ok(done) => json(StatusCode::OK, &done),
        Err(error) => json(status(&error), &json!({ "error": error.to_string() })),
    }
}

/// Authorizes a request beyond health and metrics.
fn authorize(settings: &config::Admin, request: &Request) -> Result<(), Response> {
    let headers = request.headers();
    let is_local = |Peer(peer): &Peer| peer.ip().to_canonical().is_loopback();
    if settings.public_metrics_only && !request.extensions().get().is_some_and(is_local) {
        return Err(text(StatusCode::FORBIDDEN, "other machines may only read health and metrics"));
    }
    let Some(token) = &settings.token else {
        return if names_local_host(headers) {
            Ok(())
        } else {
            Err(text(
                StatusCode::FORBIDDEN,
                "without admin.token the Host must be localhost or an IP address",
            ))
        };
    };
    if bearer(headers).is_some_and(|presented| Secret::from(presented) == *token) {
        return Ok(());
    }
    let message = "the admin token is required: Authorization: Bearer …";
    let mut refusal = text(StatusCode::UNAUTHORIZED, message);
    let challenge = HeaderValue::from_static("Bearer realm=\"northgate-admin\"");
    refusal.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    Err(refusal)
}

/// Returns the token of `Authorization: Bearer`; the scheme is case-insensitive (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}

/// Connections to the admin listener; without a limit a client could exhaust the process's memory and files.
const MAX_CONNECTIONS: usize = 256;
/// The maximum age of a connection, so that clients that do not read cannot hold permits.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// The timeout of a request head, and of the wait for the next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout of a response, with the request's content read.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum content of a request.
const MAX_BODY_BYTES: usize = 64 * 1024;
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Logs a panic of an endpoint, and returns the response for it.
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
    tracing::error!(
        panic = message,
        "A request to the admin listener failed with an error response."
    );
    text(StatusCode::INTERNAL_SERVER_ERROR, "the request failed: see the log")
}

/// Whether a page of another origin sends the request, through the operator's browser.
fn is_cross_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let host = headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    origin.as_bytes().strip_prefix(b"http://") != Some(host)
}

/// Whether `Host` is an IP address or `localhost`. Any other name could be one that a page had resolved to this
/// machine after it was loaded (DNS rebinding): to the browser both are of the same origin.
fn names_local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(HOST) else { return true };
    let host = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    host.is_some_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    })
}

fn text(status: StatusCode, text: &str) -> Response {
    content(status, "text/plain; charset=utf-8", format!("{}\n", text.trim_end()))
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    content(status, "application/json", format!("{value}\n"))
}

fn content(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
