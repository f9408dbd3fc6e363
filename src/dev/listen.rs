//! A listener of the development system: loopback only, HTTP/1.1, one task per connection.
//!
//! Neither as careful nor as fast as `server/`, on purpose: what it serves has
//! public keys and passwords, so it must not be reachable from elsewhere, and
//! then it has nobody to defend itself against.

use core::convert::Infallible;
use core::time::Duration;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};

/// An address that is ours, and not served yet.
#[derive(Debug)]
pub(super) struct Bound {
    /// Where it is, with the port that port 0 became.
    pub(super) address: SocketAddr,
    listener: StdListener,
}

impl Bound {
    /// Takes `address`.
    ///
    /// # Errors
    ///
    /// [`StartError`] if it is not a loopback address, is taken, or cannot be
    /// bound for another reason.
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

    /// Serves what comes with `serve`, on `control`. An error of `serve` closes the connection without an answer.
    ///
    /// # Errors
    ///
    /// [`StartError::Bind`] if the runtime cannot watch the socket.
    pub(super) fn serve<S, F, B, E>(
        self,
        control: &Handle,
        serve: S,
    ) -> Result<Listening, StartError>
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Result<Response<B>, E>> + Send + 'static,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: core::error::Error + Send + Sync + 'static,
        E: core::error::Error + Send + Sync + 'static,
    {
        let Self { address, listener } = self;
        let _runtime = control.enter();
        let listener = TcpListener::from_std(listener)
            .map_err(|source| StartError::Bind { address, source })?;
        Ok(Listening { accepting: control.spawn(accept(listener, serve)) })
    }
}

/// A listener that accepts until it is dropped; its connections end with it.
#[derive(Debug)]
pub(super) struct Listening {
    accepting: JoinHandle<Infallible>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept<S, F, B, E>(listener: TcpListener, serve: S) -> Infallible
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Result<Response<B>, E>> + Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: core::error::Error + Send + Sync + 'static,
    E: core::error::Error + Send + Sync + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of files, most likely: others end, then it goes on.
                tracing::warn!(%error, "A development listener could not accept a connection.");
                tokio::time::sleep(BREATH).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let serve = serve.clone();
        connections.spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), service_fn(serve))
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "A connection to the development system ended early.");
            }
        });
    }
}

/// Whether a `Host` names this machine by a loopback name.
///
/// A page elsewhere whose name suddenly resolves to this machine (DNS
/// rebinding) is kept from what only this machine's user may see.
pub(super) fn is_local(host: &HeaderValue) -> bool {
    let Ok(Ok(authority)) = host.to_str().map(str::parse::<Authority>) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Why a part of the development system did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can be reached from elsewhere.
    #[error("{0} is not a loopback address: DEVELOPMENT keys and users are public")]
    NotLoopback(SocketAddr),
    /// Somebody else listens there.
    #[error("{0} is taken by another program: stop it, or move all ports with --port-offset")]
    Taken(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// The client that reads the gateway's counters cannot be made.
    #[error("no HTTP client could be made")]
    Client,
    /// The system's random numbers failed.
    #[error("no signing key could be made")]
    Keys,
}

/// How long a client may take for a request's head.
const HEAD: Duration = Duration::from_secs(30);
/// The pause after an accept that failed.
const BREATH: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        let local = |host| is_local(&HeaderValue::from_static(host));

        assert!(local("localhost:9400") && local("127.0.0.1") && local("[::1]:80"));
        assert!(!local("localhost.example.com") && !local("10.0.0.1:9400") && !local(""));
    }
}
