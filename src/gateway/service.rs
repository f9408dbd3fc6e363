//! The gateway as a [`tower_service::Service`], for programs that embed it and for tests. The server's own
//! connections call [`Gateway::serve`] directly.

use core::convert::Infallible;
use core::future::Future;
use core::net::{IpAddr, Ipv4Addr};
use core::pin::Pin;
use core::task::{Context, Poll};
use std::rc::Rc;

use http::{Request, Response};
use tower_service::Service;

use super::{Gateway, Peer};
use crate::base::body::Body;

/// The address of the client that sent a request: an extension of the request, set by the program that accepts the
/// connections. A request without it comes from `0.0.0.0`, which no list of `trusted_proxies` should hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientAddress(pub IpAddr);

/// Serves one request as if it had come over an unencrypted connection of [`ClientAddress`].
///
/// The service is always ready: a limit on requests is a rejection of one request (503), never back-pressure. It
/// never fails: every failure is a response. Its futures stay on the thread that made them, so run it within a
/// [`tokio::task::LocalSet`].
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::path::Path;
/// use std::sync::Arc;
///
/// use http::{Request, StatusCode};
/// use northgate::base::body::Body;
/// use northgate::base::clock::Clock;
/// use northgate::config::{self, Environment};
/// use northgate::gateway::{Gateway, RetainedState, Shared, compile};
/// use northgate::observe::log::Log;
/// use northgate::observe::log_format::Format;
/// use northgate::observe::metrics::Metrics;
/// use tokio::runtime::Builder;
/// use tokio::task::LocalSet;
/// use tower::ServiceExt as _;
///
/// let text = "
/// version: 1
/// listen: 127.0.0.1:8080
/// routes:
///   - { id: hello, path: /hello, auth: none, respond: { status: 200, body: Hello } }
/// ";
/// let clock = Clock::system();
/// let (config, _warnings) =
///     config::load_text("gateway.yaml", text, Path::new(""), &Environment::default(), clock.now())?;
/// let metrics = Metrics::with(config.metrics.settings.clone());
/// let (log, _events) =
///     Log::to(Box::new(std::io::sink()), Format::Json, &config.logging, None, clock.clone(), &metrics)?;
///
/// let runtime = Builder::new_current_thread().enable_all().build()?;
/// let state = RetainedState::new(clock, metrics, runtime.handle().clone());
/// let snapshot = compile(&config, &state)?;
/// let shared = Arc::new(Shared::new(snapshot, state, log.access()));
///
/// let request = Request::get("/hello").header("host", "localhost").body(Body::empty())?;
/// let response = LocalSet::new().block_on(&runtime, Gateway::new(shared).oneshot(request))?;
/// assert_eq!(response.status(), StatusCode::OK);
/// # Ok(())
/// # }
/// ```
impl Service<Request<Body>> for Gateway {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let address = request.extensions_mut().remove::<ClientAddress>();
        let ip = address.map_or(Ipv4Addr::UNSPECIFIED.into(), |address| address.0);
        let gateway = self.clone();
        Box::pin(async move { Ok(gateway.serve(Rc::new(Peer::new(ip)), None, request).await) })
    }
}
