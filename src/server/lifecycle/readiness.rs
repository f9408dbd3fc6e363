//! Whether requests should be sent here.
//!
//! A dead issuer must not take public routes down: readiness waits for
//! every issuer's first answer, but for ten seconds at the most.

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::server::Server;

/// Whether requests should be sent here, and why not.
#[derive(Debug)]
pub struct Readiness {
    server: Arc<Server>,
    draining: AtomicBool,
    /// Uptime at which the listeners were bound.
    since: Duration,
}

/// The answer of `/readyz`.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) ready: bool,
    pub(crate) each: Map<String, Value>,
}

impl Readiness {
    /// Of a server whose listeners are bound.
    pub fn of(server: Arc<Server>) -> Self {
        let since = server.shared().retained.clock.uptime();
        Self { server, draining: AtomicBool::new(false), since }
    }

    /// No more requests should be sent here.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
        self.checks();
    }

    /// Looks, and says so in `northgate_ready`.
    pub(crate) fn checks(&self) -> Checks {
        let kept = &self.server.shared().retained;
        let waited = kept.clock.uptime().saturating_sub(self.since) >= MAX_WAIT;
        let draining = self.draining.load(Relaxed);
        let mut ready = !draining;
        let mut each = Map::new();
        each.insert("listeners".into(), "bound".into());
        each.insert("draining".into(), draining.into());
        for (issuer, answered) in self.server.snapshot().issuers() {
            let state = if answered { "answered" } else { "silent" };
            each.insert(format!("issuer {issuer}"), state.into());
            ready &= answered || waited;
        }
        kept.metrics.process().ready.set(ready.into());
        Checks { ready, each }
    }
}

const MAX_WAIT: Duration = Duration::from_secs(10);
