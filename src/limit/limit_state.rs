//! The state of one request's limits: its balances, its permits, and what is charged while it is under way.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Map, Value};

use super::concurrency::{InFlightPermit, SharedPermit};
use super::counter::Counter;
use super::counter_table::Slot;
use super::counters::Now;
use super::limit_exceeded::{LimitExceeded, Limited, refuse};
use super::limiter::{Balance, Limiter};
use super::plans::PlanIndex;
use super::rate::Kind;
use super::response_cost::ResponseCost;
use super::response_headers::MAX_POLICIES;
use super::shared::{FirstAnswer, SharedLimit};
use crate::observe::metrics::{LimitMetrics, LimitResult};

/// The limit decisions of one request, and its permits.
///
/// To be held until the response's last byte: requests in flight are released on drop.
#[derive(Debug, Default)]
pub struct LimitState {
    pub(super) left: [Balance; MAX_POLICIES],
    pub(super) in_flight: Vec<InFlightPermit>,
    pub(super) shared_in_flight: Vec<SharedPermit>,
    pub(super) metered: Vec<ChargedLimit>,
    /// The limits whose cost the response tells.
    pub(super) unsettled: Vec<ChargedLimit>,
    /// The first limit that would have refused the request, were it no dry run; by its index.
    pub(super) dry_run: Option<u16>,
}

impl LimitState {
    /// Returns the meter of a request body of unknown size, which limits by bytes have admitted as empty.
    /// Returns it once; `None` if no limit was charged.
    pub fn meter(&mut self) -> Option<Meter> {
        let mut metered = core::mem::take(&mut self.metered);
        metered.sort_unstable_by_key(|metered| Arc::as_ptr(&metered.limiter.counts).addr());
        (!metered.is_empty()).then_some(Meter { metered, bytes: 0 })
    }

    /// Records that a limit has ended the request body: nothing remains.
    pub fn ended_by(&mut self, limited: &Limited) {
        if limited.announce
            && let Some(slot) = self.left.get_mut(usize::from(limited.place))
        {
            let reset = u32::try_from(limited.retry_after).unwrap_or(u32::MAX);
            *slot = Balance { checked: true, remaining: 0, reset, ..*slot };
        }
    }

    /// Charges the costs that the response's head tells.
    pub fn settle_by_head(&mut self, headers: &HeaderMap, moment: Now) {
        self.settle(moment, |cost| cost.in_head(headers));
    }

    /// Charges the costs that the response's content tells.
    pub fn settle_by_content(&mut self, content: &Value, moment: Now) {
        self.settle(moment, |cost| cost.in_content(content));
    }

    /// Whether a limit waits for the response to tell the cost.
    pub fn has_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Returns the maximum bytes of JSON content that tell a cost; `None` if none does.
    pub fn max_content_of_costs(&self) -> Option<usize> {
        let costs =
            self.unsettled.iter().filter_map(|one| one.limiter.settings().response_cost.as_ref());
        let sizes = costs.filter_map(|cost| match cost {
            ResponseCost::Json { max_size, .. } => Some(*max_size),
            ResponseCost::Header(_) => None,
        });
        sizes.max()
    }

    /// Charges each unsettled cost that `told` finds. The others stay at what was charged before.
    fn settle(&mut self, moment: Now, told: impl Fn(&ResponseCost) -> Option<u64>) {
        let Self { unsettled, left, .. } = self;
        unsettled.retain(|limit| {
            let settings = limit.limiter.settings();
            let Some(cost) = settings.response_cost.as_ref().and_then(&told) else { return true };
            let balance = limit.settle(cost, moment);
            if settings.tells_clients()
                && let Some(slot) = left.get_mut(limit.place)
            {
                *slot = balance;
            }
            false
        });
    }

    /// Hands over the permits of concurrency limits, for a request that outlives its response.
    pub fn hand_over(&mut self) -> HeldPermits {
        HeldPermits {
            _in_flight: core::mem::take(&mut self.in_flight),
            _shared: core::mem::take(&mut self.shared_in_flight),
        }
    }
}

/// Permits of concurrency limits, released on drop.
#[derive(Debug)]
pub struct HeldPermits {
    _in_flight: Vec<InFlightPermit>,
    _shared: Vec<SharedPermit>,
}

/// Charges a request body of unknown size while it arrives.
#[derive(Debug)]
pub struct Meter {
    /// The limits in locking order.
    metered: Vec<ChargedLimit>,
    /// The bytes charged so far.
    bytes: u64,
}

impl Meter {
    /// Charges `bytes` more, to all limits or to none.
    ///
    /// # Errors
    ///
    /// The limit that is exceeded: the body must end.
    pub fn charge(&mut self, bytes: u64, moment: Now) -> Result<(), LimitExceeded> {
        let size = self.bytes.saturating_add(bytes);
        let enforced = |metered: &&ChargedLimit| !metered.limiter.settings().dry_run;
        if self.metered.iter().filter(enforced).any(|one| one.limiter.never_fits(one.plan, size)) {
            return Err(LimitExceeded::TooLarge);
        }
        ChargedLimit::charge(&self.metered, self.bytes, size, moment)
            .map_err(LimitExceeded::Limited)?;
        self.bytes = size;
        Ok(())
    }

    /// Whether a limit counts bytes.
    pub fn counts_bytes(&self) -> bool {
        self.metered.iter().any(|metered| metered.limiter.measures_bodies())
    }

    /// Gives the request back to quotas of requests: its body turned out to be larger than any may be, which would have
    /// cost nothing had it said so. Rates and quotas of bytes keep what has arrived, which the upstream received: a
    /// client could send it for nothing otherwise.
    pub fn refund(&mut self, moment: Now) {
        let bought = |limiter: &Limiter| {
            matches!(limiter.settings().kind, Kind::Quota(_)) && !limiter.measures_bodies()
        };
        for one in self.metered.extract_if(.., |one| bought(&one.limiter)) {
            let limiter = &one.limiter;
            let units = -limiter.cost(0).cast_signed();
            if let Some(shared) = &limiter.shared {
                shared.refund(one.key, limiter.cost(0));
                one.meter(None, moment, units);
                continue;
            }
            let now = limiter.counts.time(moment);
            limiter.counts.cells.give_back(one.key, one.slot, |cell| {
                one.meter(Some(*cell), moment, units);
                *cell = limiter.refund(one.plan, *cell, now, 0);
            });
        }
    }
}

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
}

impl ChargedLimit {
    /// Charges for a body that grows from `before` to `size` bytes. As in [`Evaluation::ask`], each counter stays locked
    /// until all have agreed.
    fn charge(all: &[Self], before: u64, size: u64, moment: Now) -> Result<(), Limited> {
        let Some((first, others)) = all.split_first() else { return Ok(()) };
        let limiter = &*first.limiter;
        if !limiter.measures_bodies() {
            return Self::charge(others, before, size, moment);
        }
        if let Some(shared) = &limiter.shared {
            return first.charge_shared(shared, others, (before, size), moment);
        }
        let now = limiter.counts.time(moment);
        limiter.counts.cells.with(first.key, now, |cell, _| {
            let charged = match limiter.charge_more(first.plan, cell, now, before, size) {
                Ok(charged) => charged,
                // A dry run counts what would have been admitted.
                Err(_) if limiter.settings().dry_run => *cell,
                Err(wait) => {
                    first.metrics.decided(LimitResult::Limited);
                    return Err(refuse(limiter, first.place, wait));
                }
            };
            Self::charge(others, before, size, moment)?;
            if charged != *cell {
                *cell = charged;
                let units = limiter.cost(size) - limiter.cost(before);
                first.meter(Some(charged), moment, units.cast_signed());
            }
            Ok(())
        })
    }

    /// Adds `units` to the usage that is billed.
    fn meter(&self, cell: Option<Counter>, moment: Now, units: i64) {
        let name = || self.name.clone().unwrap_or_default();
        self.limiter.meter((self.key, self.plan), cell, moment, units, name);
    }

    /// Charges a body at a limit that several gateways share: what no lease covers is told to the store afterwards.
    fn charge_shared(
        &self,
        shared: &SharedLimit,
        others: &[Self],
        (before, size): (u64, u64),
        moment: Now,
    ) -> Result<(), Limited> {
        let limiter = &*self.limiter;
        let settings = limiter.settings();
        let now = shared.now(moment);
        let cost = limiter.cost(size) - limiter.cost(before);
        shared.with(self.key, |lease, slot| {
            let answer = shared.first_answer(lease, now, cost, false);
            if let (FirstAnswer::Refused(wait), false) = (answer, settings.dry_run) {
                self.metrics.decided(LimitResult::Limited);
                return Err(refuse(limiter, self.place, wait.saturating_mul(1_000)));
            }
            Self::charge(others, before, size, moment)?;
            shared.charge(lease, slot, now, cost, settings.store.is_exact());
            self.meter(None, moment, cost.cast_signed());
            Ok(())
        })
    }

    /// Charges what the request turned out to cost; returns the new balance.
    fn settle(&self, cost: u64, moment: Now) -> Balance {
        let limiter = &*self.limiter;
        let units = cost.cast_signed() - limiter.cost(0).cast_signed();
        if let Some(shared) = &limiter.shared {
            let reserved = limiter.cost(0);
            let now = shared.now(moment);
            return shared.with(self.key, |lease, slot| {
                let exact = limiter.settings().store.is_exact();
                shared.charge(lease, slot, now, cost.saturating_sub(reserved), exact);
                lease.refund(reserved.saturating_sub(cost));
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
