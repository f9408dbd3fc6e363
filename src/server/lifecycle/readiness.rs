//! Readiness: whether requests should be sent to this instance.
//!
//! An unavailable issuer must not take public routes down: readiness waits for every issuer's first response, but for
//! ten seconds at most.

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::server::Server;

/// The readiness of a server, with its checks.
#[derive(Debug)]
pub struct Readiness {
    server: Arc<Server>,
    draining: AtomicBool,
    /// The uptime at which the listeners were bound.
    since: Duration,
}

/// The response of `/readyz`.
#[derive(Debug)]
pub(crate) struct Checks {
    pub(crate) ready: bool,
    pub(crate) each: Map<String, Value>,
}

impl Readiness {
    /// Creates the readiness of a server whose listeners are bound.
    pub fn of(server: Arc<Server>) -> Self {
        let since = server.shared().retained().clock.uptime();
        Self { server, draining: AtomicBool::new(false), since }
    }

    /// Marks the instance as not ready: it drains.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
        self.checks();
    }

    /// Runs the checks, and sets `northgate_ready`.
    pub(crate) fn checks(&self) -> Checks {
        let retained = self.server.shared().retained();
        let waited = retained.clock.uptime().saturating_sub(self.since) >= MAX_WAIT;
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
        retained.metrics.process().ready.set(ready.into());
        Checks { ready, each }
    }
}

const MAX_WAIT: Duration = Duration::from_secs(10);
