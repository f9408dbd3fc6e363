//! The tunnel of an upgraded connection, which counts as a request until it ends.

use std::io;
use std::sync::Arc;

use super::stream_guard::StreamGuard;
use crate::http1::OnUpgrade;
use crate::observe::metrics::RouteMetrics;
use crate::upstream::Tunnel;

/// Relays the bytes of an upgraded connection of `route`, until both sides have closed it or its guard ends it.
///
/// The permits in `_held` are held until then.
pub(crate) async fn relay(
    client: OnUpgrade,
    tunnel: Tunnel,
    guard: Option<StreamGuard>,
    route: Arc<str>,
    metrics: Arc<RouteMetrics>,
    _held: impl Sized,
) {
    let _open = OpenTunnel::count(metrics);
    let ended = async {
        match &guard {
            Some(guard) => guard.ended().await,
            None => core::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        reason = ended => {
            tracing::info!(route = &*route, reason = reason.name(), "Closed an upgraded connection.");
        }
        copied = copy_both_ways(client, tunnel) => if let Err(error) = copied {
            tracing::debug!(%error, "An upgraded connection failed; both sides are closed.");
        },
    }
}

/// Copies bytes in both directions, once the client has received the 101 response.
async fn copy_both_ways(client: OnUpgrade, tunnel: Tunnel) -> io::Result<()> {
    let Some(mut client) = client.connection().await else {
        return Err(io::ErrorKind::ConnectionAborted.into());
    };
    let abandoned = client.take_abandoned();
    tokio::select! {
        biased;
        joined = tunnel.join(&mut client) => joined.map(drop),
        () = abandoned => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// An open tunnel in the metrics of its route.
struct OpenTunnel(Arc<RouteMetrics>);

impl OpenTunnel {
    fn count(metrics: Arc<RouteMetrics>) -> Self {
        metrics.upgraded.inc();
        Self(metrics)
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.upgraded.dec();
    }
}
