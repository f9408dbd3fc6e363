//! A limit that has admitted a request whose cost is told later.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::counter::Counter;
use super::counter_table::Slot;
use super::counters::Now;
use super::limiter::{Balance, Limiter};
use super::plans::PlanIndex;
use crate::observe::metrics::LimitMetrics;

/// A limit that has admitted a request before its cost was known.
#[derive(Debug)]
pub(super) struct ChargedLimit {
    pub(super) limiter: Arc<Limiter>,
    pub(super) metrics: Arc<LimitMetrics>,
    pub(super) key: u64,
    pub(super) plan: PlanIndex,
    pub(super) slot: Slot,
    pub(super) place: usize,
    /// The parts of the key, if usage is metered.
    pub(super) name: Option<Arc<Map<String, Value>>>,
    /// The name of the counter in a shared store, if content of unknown size is charged there.
    pub(super) shared_name: Box<str>,
}

impl ChargedLimit {
    /// Adds `units` to the usage that is billed.
    pub(super) fn meter(&self, cell: Option<Counter>, moment: Now, units: i64) {
        let name = || self.name.clone().unwrap_or_default();
        self.limiter.meter((self.key, self.plan), cell, moment, units, name);
    }

    /// Charges what the request turned out to cost; returns the new balance.
    pub(super) fn settle(&self, cost: u64, moment: Now) -> Balance {
        let limiter = &*self.limiter;
        let units = cost.cast_signed() - limiter.cost(0).cast_signed();
        if let Some(shared) = &limiter.shared {
            let reserved = limiter.cost(0);
            let now = shared.now(moment);
            return shared.with(self.key, |lease, slot| {
                let exact = limiter.settings().store.is_exact();
                let limit = limiter.amount(self.plan).whole();
                shared.settle((lease, slot), now, (reserved, cost), limit, exact);
                self.meter(None, moment, units);
                limiter.shared_balance(self.plan, lease, now)
            });
        }
        let now = limiter.counts.time(moment);
        limiter.counts.cells.with(self.key, now, |cell, _| {
            *cell = limiter.settle(self.plan, *cell, now, cost);
            self.meter(Some(*cell), moment, units);
            limiter.left(self.plan, *cell, now)
        })
    }
}
