//! Concurrency limits: requests in flight, counted from admission to their end.

use std::sync::Arc;

use crate::limit::counters::counter::Counter;
use crate::limit::counters::counter_table::Slot;
use crate::limit::counters::limit_counters::LimitCounters;
use crate::limit::shared::{LeaseSlot, SharedLimit};

/// A maximum number of requests in flight.
#[derive(Clone, Copy, Debug)]
pub(in crate::limit) struct ConcurrencyLimit(pub(in crate::limit) u64);

impl ConcurrencyLimit {
    /// Admits a request, or returns how long to wait, in nanoseconds: an estimate, since the end of others is unknown.
    pub(in crate::limit) fn admit(self, counter: Counter) -> Result<Counter, u64> {
        match counter.used {
            used if used < self.0 => Ok(Counter { until: u64::MAX, used: used + 1 }),
            _ => Err(RETRY_AFTER),
        }
    }

    /// Returns how many more requests would be admitted.
    pub(in crate::limit) fn left(self, counter: Counter) -> u64 {
        self.0.saturating_sub(counter.used)
    }
}

/// A request in flight at a limit that several gateways share; released on drop.
#[derive(Debug)]
pub(in crate::limit) struct SharedPermit {
    shared: Arc<SharedLimit>,
    slot: LeaseSlot,
    nonce: u32,
    exact: bool,
}

impl SharedPermit {
    /// Creates the permit that releases what the lease at `slot` has counted.
    pub(in crate::limit) fn new(
        shared: &Arc<SharedLimit>,
        slot: LeaseSlot,
        nonce: u32,
        exact: bool,
    ) -> Self {
        Self { shared: Arc::clone(shared), slot, nonce, exact }
    }
}

impl Drop for SharedPermit {
    fn drop(&mut self) {
        self.shared.release(self.slot, self.nonce, self.exact);
    }
}

/// A request in flight; released on drop.
#[derive(Debug)]
pub(in crate::limit) struct InFlightPermit {
    counts: Arc<LimitCounters>,
    key: u64,
    slot: Slot,
}

impl InFlightPermit {
    /// Creates the permit that releases what [`ConcurrencyLimit::admit`] has counted.
    pub(in crate::limit) fn new(counts: &Arc<LimitCounters>, key: u64, slot: Slot) -> Self {
        Self { counts: Arc::clone(counts), key, slot }
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.counts.counters.give_back(self.key, self.slot, |counter| match counter.used {
            0 | 1 => *counter = Counter::default(),
            _ => counter.used -= 1,
        });
    }
}

const RETRY_AFTER: u64 = 1_000_000_000;
