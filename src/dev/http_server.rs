//! The HTTP/1.1 server of the development system: an axum [`Router`] on a loopback address.
//!
//! The gateway's own listeners (`server/`) are faster and defend themselves
//! against hostile clients. Here keys and passwords are public, so the listener
//! accepts connections from this machine only, and needs no such defence.

use core::convert::Infallible;
use core::time::Duration;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::serve::Listener;
use http::uri::Authority;
use http::{HeaderValue, StatusCode};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

/// A bound loopback address that is not served yet.
#[derive(Debug)]
pub(super) struct BoundListener {
    /// The bound address; a port of 0 has become a real one.
    pub(super) address: SocketAddr,
    listener: StdListener,
}

impl BoundListener {
    /// Binds `address`.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the address is not a loopback address, is taken, or
    /// cannot be bound for another reason.
    pub(super) fn bind(address: SocketAddr) -> Result<Self, StartError> {
        if !address.ip().is_loopback() {
            return Err(StartError::NotLoopback(address));
        }
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => StartError::Taken(address),
            _ => StartError::Bind { address, source },
        };
        let listener = StdListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { address, listener })
    }

    /// Serves `router` on the runtime `control` until the handle is dropped.
    ///
    /// # Errors
    ///
    /// [`StartError::Bind`] if the runtime cannot register the socket.
    pub(super) fn serve(
        self,
        router: Router,
        control: &Handle,
    ) -> Result<ServerHandle, StartError> {
        let Self { address, listener } = self;
        let _runtime = control.enter();
        let listener = TcpListener::from_std(listener)
            .map_err(|source| StartError::Bind { address, source })?;
        Ok(ServerHandle { accept_loop: control.spawn(accept(listener, router)) })
    }
}

/// A running server. Dropping the handle closes the listener and every connection.
#[derive(Debug)]
pub(super) struct ServerHandle {
    accept_loop: JoinHandle<Infallible>,
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.accept_loop.abort();
    }
}

/// Accepts connections for ever, one task each. `axum::serve` detaches those
/// tasks; here they belong to the set, and end with it.
async fn accept(mut listener: TcpListener, router: Router) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        // Retries by itself after an error, such as too many open files.
        let (stream, _) = Listener::accept(&mut listener).await;
        while connections.try_join_next().is_some() {}
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "A connection to the development system ended early.");
            }
        });
    }
}

/// Wraps `router` in the layers of every development server: a log line for
/// each response, `500` for a panic, and `503` if no response has begun after `timeout`.
pub(super) fn with_layers(router: Router, timeout: Duration) -> Router {
    router.layer(
        ServiceBuilder::new()
            .layer(middleware::from_fn(log_response))
            .layer(CatchPanicLayer::new())
            .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, timeout)),
    )
}

/// Logs one exchange. Queries hold codes and tokens, and are left out.
async fn log_response(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    tracing::debug!(%method, path, status, "The development system sent a response.");
    response
}

/// Whether a `Host` field names this machine by a loopback name or address.
///
/// A page of another origin whose name suddenly resolves to this machine (DNS
/// rebinding) must not read what is meant for this machine's user only.
pub(super) fn is_loopback_host(host: &HeaderValue) -> bool {
    let Ok(Ok(authority)) = host.to_str().map(str::parse::<Authority>) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Why a part of the development system did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can be reached from other machines.
    #[error("{0} is not a loopback address: DEVELOPMENT keys and users are public")]
    NotLoopback(SocketAddr),
    /// Another program listens on the address.
    #[error("{0} is taken by another program: stop it, or move all ports with --port-offset")]
    Taken(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The client that reads the gateway's metrics cannot be made.
    #[error("cannot create an HTTP client")]
    Client,
    /// The operating system's random numbers failed.
    #[error("cannot generate a signing key")]
    Keys,
}

/// The longest a client may take to send a request's header section.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use axum::routing::{get, post};
    use bytes::Bytes;

    use super::*;

    #[test]
    fn only_loopback_names_and_addresses_are_loopback_hosts() {
        let loopback = |host| is_loopback_host(&HeaderValue::from_static(host));

        assert!(loopback("localhost:9400") && loopback("127.0.0.1") && loopback("[::1]:80"));
        assert!(!loopback("localhost.example.com"));
        assert!(!loopback("10.0.0.1:9400") && !loopback(""));
    }

    #[tokio::test]
    async fn a_handler_that_panics_or_hangs_costs_one_response_and_not_the_connection() {
        let router = Router::new()
            .route("/panic", get(async || -> StatusCode { panic!("a fault of this handler") }))
            .route("/hang", post(async |_: Bytes| core::future::pending::<StatusCode>().await))
            .route("/ok", get(async || "fine"));
        let bound = BoundListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let base = format!("http://{}", bound.address);
        let router = with_layers(router, Duration::from_millis(50));
        let server = bound.serve(router, &Handle::current()).unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();

        let panicked = client.get(format!("{base}/panic")).send().await.unwrap();
        let hung = client.post(format!("{base}/hang")).send().await.unwrap();
        let fine = client.get(format!("{base}/ok")).send().await.unwrap();

        assert_eq!(panicked.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(hung.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(fine.text().await.unwrap(), "fine");
        drop(server);
    }
}
