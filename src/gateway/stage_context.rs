//! The part of a snapshot that exchanges and stages use, whatever the route.

use core::fmt::Debug;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::sync::Arc;

use super::policy::token_source::TokenPlaces;
use crate::config::reserved_headers::ReservedHeaders;
use crate::config::server::Server;
use crate::observe::metrics::RouteMetrics;
use crate::session::Sessions;

/// The part of a snapshot that exchanges and stages use, whatever the route.
#[derive(Debug)]
pub struct StageContext {
    /// Server settings: the limits that hold for every request.
    pub(super) server: Server,
    pub(super) sessions: Vec<Arc<Sessions>>,
    /// The places of tokens besides `Authorization`, on any route.
    pub(super) token_places: TokenPlaces,
    /// Header fields reserved for the gateway on every route.
    pub(super) reserved: ReservedHeaders,
    /// Counts requests without a route.
    pub(super) unmatched: Arc<RouteMetrics>,
    /// The second of uptime, from 1, of the last warning that any client can cause.
    pub(super) last_warning: AtomicU64,
}

/// A snapshot, as an exchange keeps it until its response has ended: with the retained state that it uses.
pub trait HasStageContext: Debug + Send + Sync {
    /// Returns the part that exchanges and stages use.
    fn context(&self) -> &StageContext;
}

impl StageContext {
    /// Whether a warning that any client can cause is due at `uptime`: at most one a second.
    pub(super) fn may_warn(&self, uptime: Duration) -> bool {
        let now = uptime.as_secs() + 1;
        self.last_warning.swap(now, Relaxed) != now
    }
}
