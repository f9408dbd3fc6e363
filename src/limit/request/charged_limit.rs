//! A limit that has admitted a request whose cost is known later.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::limit::counters::counter::Counter;
use crate::limit::counters::counter_table::Slot;
use crate::limit::counters::limit_counters::Now;
use crate::limit::limiter::{Balance, Limiter};
use crate::limit::plans::PlanIndex;
use crate::limit::shared::ChargedLease;
use crate::observe::metrics::LimitMetrics;

/// A limit that has admitted a request before its cost was known.
#[derive(Debug)]
pub(in crate::limit) struct ChargedLimit {
    pub(in crate::limit) limiter: Arc<Limiter>,
    pub(in crate::limit) metrics: Arc<LimitMetrics>,
    pub(in crate::limit) key: u64,
    pub(in crate::limit) plan: PlanIndex,
    pub(in crate::limit) slot: Slot,
    pub(in crate::limit) limit_index: usize,
    /// The parts of the key, if usage is metered.
    pub(in crate::limit) name: Option<Arc<Map<String, Value>>>,
    /// The end of the window that was charged, if there are windows and it is known here.
    pub(in crate::limit) window_end: Option<u64>,
    /// The lease, if several gateways share the limit.
    pub(in crate::limit) lease: Option<ChargedLease>,
}

impl ChargedLimit {
    /// Adds `units` to the usage that is billed.
    pub(in crate::limit) fn meter(&self, counter: Counter, moment: Now, units: i64) {
        self.bill(|| self.limiter.window_end(self.plan, counter, moment), units);
    }

    /// Takes `units` back from what the window that was charged is billed.
    pub(in crate::limit) fn credit(&self, units: u64) {
        self.bill(|| self.window_end, -units.cast_signed());
    }

    /// Whether `counter` counts in the window that was charged: what the request did not cost is given back there alone.
    pub(in crate::limit) fn counts_in(&self, counter: Counter, moment: Now) -> bool {
        self.limiter.window_end(self.plan, counter, moment) == self.window_end
    }

    /// Adds `units` to the usage of the window with this end.
    pub(in crate::limit) fn bill(&self, window_end: impl FnOnce() -> Option<u64>, units: i64) {
        let name = || self.name.clone().unwrap_or_default();
        self.limiter.meter((self.key, self.plan), window_end, units, name);
    }

    /// Charges what the request turned out to cost; returns the new balance.
    pub(in crate::limit) fn adjust_cost(&self, cost: u64, moment: Now) -> Balance {
        let limiter = &*self.limiter;
        let reserved = limiter.cost(0);
        let units = cost.cast_signed() - reserved.cast_signed();
        if let (Some(shared), Some(charged)) = (&limiter.shared, &self.lease) {
            let now = shared.now(moment);
            return shared.with(charged.slot, now, |lease, slot| {
                if cost < reserved && !lease.counts_in(charged.generation) {
                    self.credit(reserved - cost);
                    return limiter.shared_balance(self.plan, lease, now);
                }
                let exact = limiter.settings().store.is_exact();
                let counter = (&charged.key, limiter.shape(self.plan, now));
                shared.settle((lease, slot), now, (reserved, cost), counter, exact);
                self.bill(|| limiter.shared_window_end(self.plan, lease, moment), units);
                limiter.shared_balance(self.plan, lease, now)
            });
        }
        let now = limiter.counts.time(moment);
        limiter.counts.counters.with(self.key, now, |counter, _| {
            if cost < reserved && !self.counts_in(*counter, moment) {
                self.credit(reserved - cost);
            } else {
                *counter = limiter.adjust_cost(self.plan, *counter, now, cost);
                self.meter(*counter, moment, units);
            }
            limiter.left(self.plan, *counter, now)
        })
    }
}
