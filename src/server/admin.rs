//! The admin listener: health, metrics, reload, revocation, and the snapshot being served.
//!
//! Never on a public address by default, and never open to a page in the operator's browser: a request of another
//! origin is refused, and so is, unless a token is configured, one whose `Host` is a name other than `localhost`.

use core::convert::Infallible;
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::Server;
use super::admin_revoke::RevokeRequest;
use super::lifecycle::readiness::Readiness;
use super::lifecycle::reload::{Reload, Reloaded};
use crate::base::secret::Secret;
use crate::config;
use crate::observe::metrics::{CONTENT_TYPE as METRICS_TYPE, VERSION};

/// The admin API.
#[derive(Debug)]
pub(super) struct Admin {
    server: Arc<Server>,
    readiness: Arc<Readiness>,
    reload: Arc<Reload>,
}

type Reply = Response<Full<Bytes>>;

impl Admin {
    /// Creates the admin API of `server`; `POST /-/reload` runs `reload`.
    pub(super) const fn new(
        server: Arc<Server>,
        readiness: Arc<Readiness>,
        reload: Arc<Reload>,
    ) -> Self {
        Self { server, readiness, reload }
    }

    /// Serves on `listener` until the control runtime ends, within limits on the number and the age of connections.
    pub(super) async fn serve(self, listener: TcpListener, control: Handle) {
        let admin = Arc::new(self);
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "Could not accept a connection to the admin listener; trying again shortly.");
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let admin = Arc::clone(&admin);
            control.spawn(async move {
                let service = service_fn(move |request| {
                    let admin = Arc::clone(&admin);
                    async move { Ok::<_, Infallible>(admin.handle(request, peer).await) }
                });
                let mut http = http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
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

    async fn handle(&self, request: Request<Incoming>, peer: SocketAddr) -> Reply {
        let path = request.uri().path();
        if is_cross_origin(request.headers()) {
            return text(StatusCode::FORBIDDEN, "requests of other origins are refused");
        }
        let settings = self.server.admin_settings();
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match path {
            "/livez" | "/healthz" if get => text(StatusCode::OK, "ok"),
            "/readyz" if get => self.ready(),
            path if get && path == settings.metrics_path => self.metrics(),
            _ => match authorize(&settings.settings, request.headers(), peer) {
                Ok(()) => self.handle_authorized(request).await,
                Err(refusal) => refusal,
            },
        }
    }

    /// Handles a request that only the operator may send.
    async fn handle_authorized(&self, request: Request<Incoming>) -> Reply {
        match (request.method().as_str(), request.uri().path()) {
            ("GET", "/version") => json(StatusCode::OK, &json!({ "version": VERSION })),
            ("GET", "/config") => {
                json(StatusCode::OK, &json!({ "hash": self.server.snapshot().hash }))
            }
            ("GET", "/routes") => json(StatusCode::OK, &self.server.snapshot().describe_routes()),
            ("GET", "/upstreams") => {
                json(StatusCode::OK, &self.server.snapshot().describe_upstreams())
            }
            ("POST", "/-/reload") => match self.reload.run().await {
                Ok(Reloaded { hash, waiting }) => json(
                    StatusCode::OK,
                    &json!({ "reloaded": true, "hash": hash, "waiting_for_restart": waiting }),
                ),
                Err(faults) => text(StatusCode::UNPROCESSABLE_ENTITY, &faults),
            },
            ("POST", "/-/revoke") => self.revoke(request).await,
            (_, "/version" | "/config" | "/routes" | "/upstreams" | "/-/reload" | "/-/revoke") => {
                text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
            }
            _ => text(StatusCode::NOT_FOUND, "not found"),
        }
    }

    async fn revoke(&self, request: Request<Incoming>) -> Reply {
        let snapshot = self.server.snapshot();
        let revoked = match RevokeRequest::read(request).await {
            Ok(request) => request.run(&snapshot, &self.server.shared().retained).await,
            Err(error) => Err(error),
        };
        match revoked {
            Ok(done) => json(StatusCode::OK, &done),
            Err(error) => json(error.status(), &json!({ "error": error.to_string() })),
        }
    }

    fn ready(&self) -> Reply {
        let checks = self.readiness.checks();
        let status = if checks.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        json(status, &json!({ "ready": checks.ready, "checks": checks.each }))
    }

    fn metrics(&self) -> Reply {
        self.readiness.checks();
        self.server.snapshot().refresh_health();
        let mut reply = text(StatusCode::OK, &self.server.shared().retained.metrics.render());
        reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE));
        reply
    }
}

/// Authorizes a request beyond health and metrics.
fn authorize(settings: &config::Admin, headers: &HeaderMap, peer: SocketAddr) -> Result<(), Reply> {
    if settings.public_metrics_only && !peer.ip().to_canonical().is_loopback() {
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
    let presented =
        headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    match presented {
        Some(presented) if Secret::from(presented) == *token => Ok(()),
        _ => Err(text(
            StatusCode::UNAUTHORIZED,
            "the admin token is required: Authorization: Bearer …",
        )),
    }
}

/// Connections to the admin listener; without a limit a client could exhaust the process's memory and files.
const MAX_CONNECTIONS: usize = 256;
/// The maximum age of such a connection; a client that does not read its response holds a permit no longer.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(300);
/// The timeout of a request head, and of the wait for the next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

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

fn text(status: StatusCode, text: &str) -> Reply {
    reply(status, "text/plain; charset=utf-8", format!("{}\n", text.trim_end()))
}

fn json(status: StatusCode, value: &serde_json::Value) -> Reply {
    reply(status, "application/json", format!("{value}\n"))
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Reply {
    let mut reply = Response::new(Full::from(body));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
