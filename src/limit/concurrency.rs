//! Requests in flight: counted when they are admitted, released when they end.

use std::sync::Arc;

use super::counter_table::{Counter, Slot};
use super::counters::LimitCounters;

/// So many at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConcurrencyLimit(pub(super) u64);

impl ConcurrencyLimit {
    /// Takes one, or says how long to wait, in nanoseconds: a guess, since nobody knows when another ends.
    pub(super) fn admit(self, cell: Counter) -> Result<Counter, u64> {
        match cell.used {
            used if used < self.0 => Ok(Counter { until: u64::MAX, used: used + 1 }),
            _ => Err(RETRY_AFTER),
        }
    }

    /// How many are free.
    pub(super) fn left(self, cell: Counter) -> u64 {
        self.0.saturating_sub(cell.used)
    }
}

/// One request that is counted as in flight until this is dropped.
#[derive(Debug)]
pub(super) struct InFlightPermit {
    counts: Arc<LimitCounters>,
    key: u64,
    place: Slot,
}

impl InFlightPermit {
    /// Releases, in the end, what [`ConcurrencyLimit::admit`] has taken.
    pub(super) fn new(counts: &Arc<LimitCounters>, key: u64, place: Slot) -> Self {
        Self { counts: Arc::clone(counts), key, place }
    }
}

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.counts.cells.give_back(self.key, self.place, |cell| match cell.used {
            0 | 1 => *cell = Counter::default(),
            _ => cell.used -= 1,
        });
    }
}

const RETRY_AFTER: u64 = 1_000_000_000;
