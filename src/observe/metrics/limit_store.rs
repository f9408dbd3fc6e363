//! Metrics of the store that limits are shared through, and of its leases.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use super::family::Source;
use super::family::{self, Scrape};
use super::primitives::{Bounds, Counter, Gauge, Histogram};

/// The metrics of the store; exported once it was used.
#[derive(Debug)]
pub struct LimitStoreMetrics {
    /// Whether any limit is shared.
    used: AtomicBool,
    duration: Histogram,
    failures: Counter,
    usable: Gauge,
}

impl LimitStoreMetrics {
    pub(super) fn new(bounds: &Bounds) -> Self {
        Self {
            used: AtomicBool::new(false),
            duration: Histogram::new(bounds),
            failures: Counter::default(),
            usable: Gauge::default(),
        }
    }

    pub(super) fn begin(&self) {
        self.used.store(true, Relaxed);
    }

    /// Counts a response after `took`.
    pub fn answered(&self, took: Duration) {
        self.duration.observe(took);
    }

    /// Counts a call without a response in time, or with an error.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// Records whether requests ask the store.
    pub fn set_usable(&self, usable: bool) {
        self.usable.set(usable.into());
    }
}

impl Source for LimitStoreMetrics {
    fn report(&self, to: &mut Scrape) {
        if self.used.load(Relaxed) {
            to.histogram(&family::LIMIT_STORE_DURATION, &[], &self.duration);
            to.counter(&family::LIMIT_STORE_FAILURES, &[], &self.failures);
            to.gauge(&family::LIMIT_STORE_USABLE, &[], &self.usable);
        }
    }
}

/// The metrics of one limit's leases; exported while a handle exists.
#[derive(Debug)]
pub struct LeaseMetrics {
    limit: Arc<str>,
    granted: Counter,
    unused: Gauge,
    bound: Gauge,
}

impl LeaseMetrics {
    pub(super) fn new(limit: &str) -> Self {
        Self {
            limit: limit.into(),
            granted: Counter::default(),
            unused: Gauge::default(),
            bound: Gauge::default(),
        }
    }

    /// Counts what the store has granted.
    pub fn granted(&self, amount: u64) {
        self.granted.add(amount);
    }

    /// Records how much of all leases is unused.
    pub fn unused(&self, amount: u64) {
        self.unused.set(i64::try_from(amount).unwrap_or(i64::MAX));
    }

    /// Records the bound of one key's overrun: the leases of all gateways.
    pub fn bound(&self, amount: u64) {
        self.bound.set(i64::try_from(amount).unwrap_or(i64::MAX));
    }
}

impl Source for LeaseMetrics {
    fn report(&self, to: &mut Scrape) {
        to.counter(&family::LIMIT_LEASED, &[&self.limit], &self.granted);
        to.gauge(&family::LIMIT_LEASES_UNUSED, &[&self.limit], &self.unused);
        to.gauge(&family::LIMIT_OVERRUN_BOUND, &[&self.limit], &self.bound);
    }
}
