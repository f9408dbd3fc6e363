//! The gauges of open connections, for every version of HTTP.

use std::sync::Arc;

use crate::observe::metrics::UpstreamMetrics;

/// A connection in the gauge `northgate_upstream_connections`, while it is open.
#[derive(Debug)]
pub(in crate::upstream) struct Counted {
    pub(in crate::upstream) metrics: Arc<UpstreamMetrics>,
    idle: bool,
}

impl Counted {
    /// Counts a new connection as active.
    pub(in crate::upstream) fn new(metrics: Arc<UpstreamMetrics>) -> Self {
        metrics.active.inc();
        Self { metrics, idle: false }
    }

    /// Counts the connection as idle, or as active.
    pub(in crate::upstream) fn set_idle(&mut self, idle: bool) {
        let (from, to) = if idle {
            (&self.metrics.active, &self.metrics.idle)
        } else {
            (&self.metrics.idle, &self.metrics.active)
        };
        if self.idle != idle {
            from.dec();
            to.inc();
            self.idle = idle;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.idle { &self.metrics.idle } else { &self.metrics.active }.dec();
    }
}
