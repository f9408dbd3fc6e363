//! Charges content without a declared length to the limits of its request, as it arrives.

use std::sync::Arc;

use super::charged_limit::ChargedLimit;
use super::decision::{Decision, Question};
use super::limit_exceeded::{LimitExceeded, Limited, refuse};
use crate::limit::algorithms::algorithm::Algorithm;
use crate::limit::algorithms::rate::Kind;
use crate::limit::counters::limit_counters::Now;
use crate::limit::limiter::Limiter;
use crate::limit::shared::request::{SharedCourse, SharedRequest};
use crate::limit::shared::{ChargedLease, SharedLimit, Ticket};
use crate::observe::metrics::LimitResult;

/// The charge of one request whose content has no declared length.
#[derive(Debug)]
pub struct ContentCharge {
    /// The limits in locking order.
    metered: Vec<ChargedLimit>,
    /// The bytes charged so far.
    bytes: u64,
    /// The indexes of the limits that would have refused a part, were they no dry runs.
    dry_run: Vec<u16>,
}

impl ContentCharge {
    /// Creates the charge of a request that these limits have admitted as empty.
    pub(in crate::limit) fn new(mut metered: Vec<ChargedLimit>) -> Self {
        metered.sort_unstable_by_key(|metered| Arc::as_ptr(&metered.limiter.counts).addr());
        Self { metered, bytes: 0, dry_run: Vec::new() }
    }

    /// Charges `bytes` more, to all limits or to none, by what this gateway knows. A refusal is the limit that is
    /// exceeded: the body must end.
    pub fn decide(&mut self, bytes: u64, moment: Now) -> Decision {
        let mut growth = self.growth(bytes, moment);
        match self.charge(&mut growth) {
            Ok(()) if growth.asks => Decision::Ask(Question { tickets: growth.tickets, moment }),
            decided => Decision::Made(decided),
        }
    }

    /// Charges `bytes` more once the store has responded to `question`, or has not.
    ///
    /// # Errors
    ///
    /// The limit that is exceeded: the body must end.
    pub fn settle(
        &mut self,
        bytes: u64,
        moment: Now,
        question: Question,
    ) -> Result<(), LimitExceeded> {
        let growth = self.growth(bytes, moment);
        self.charge(&mut Growth { tickets: question.tickets, was_asked: true, ..growth })
    }

    fn growth(&self, bytes: u64, moment: Now) -> Growth {
        let (before, size) = (self.bytes, self.bytes.saturating_add(bytes));
        let (tickets, dry_run) = (Vec::new(), Vec::new());
        Growth { before, size, moment, asks: false, was_asked: false, tickets, dry_run }
    }

    fn charge(&mut self, growth: &mut Growth) -> Result<(), LimitExceeded> {
        let size = growth.size;
        let enforced = |metered: &&ChargedLimit| !metered.limiter.settings().dry_run;
        if self.metered.iter().filter(enforced).any(|one| one.limiter.never_fits(one.plan, size)) {
            return Err(LimitExceeded::TooLarge);
        }
        let charged = growth.charge(&self.metered).map_err(LimitExceeded::Limited);
        if charged.is_err() || !growth.asks {
            self.note_dry_runs(&growth.dry_run);
        }
        charged?;
        if !growth.asks {
            self.bytes = size;
        }
        Ok(())
    }

    /// Records the limits that would have refused the request, each once.
    fn note_dry_runs(&mut self, limit_indices: &[u16]) {
        for index in limit_indices {
            if self.dry_run.contains(index) {
                continue;
            }
            self.dry_run.push(*index);
            for limit in
                self.metered.iter().filter(|limit| limit.limit_index == usize::from(*index))
            {
                limit.metrics.decided(LimitResult::DryRun);
            }
        }
    }

    /// Returns the index of the first limit that would have refused the content so far, were it no dry run.
    pub fn dry_run(&self) -> Option<u16> {
        self.dry_run.iter().copied().min()
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
            one.credit(limiter.cost(0));
            if let (Some(shared), Some(lease)) = (&limiter.shared, &one.lease) {
                let (now, exact) = (shared.now(moment), limiter.settings().store.is_exact());
                shared.refund(lease.slot, now, limiter.cost(0), lease.generation, exact);
                continue;
            }
            let now = limiter.counts.time(moment);
            limiter.counts.counters.give_back(one.key, one.slot, |counter| {
                if one.counts_in(*counter, moment) {
                    *counter = limiter.refund(one.plan, *counter, now, 0);
                }
            });
        }
    }
}

/// A body that grows from `before` to `size` bytes.
struct Growth {
    before: u64,
    size: u64,
    moment: Now,
    /// Whether a limit has to ask its store: then none is charged, and shared ones hold a ticket.
    asks: bool,
    /// Whether the store was asked.
    was_asked: bool,
    tickets: Vec<Ticket>,
    /// The indexes of the dry runs that would have refused the growth.
    dry_run: Vec<u16>,
}

impl Growth {
    /// Charges all limits. As in [`Evaluation::ask`](super::evaluation::Evaluation::ask), each counter stays locked until
    /// all have agreed.
    fn charge(&mut self, all: &[ChargedLimit]) -> Result<(), Limited> {
        let Some((first, others)) = all.split_first() else { return Ok(()) };
        let limiter = &*first.limiter;
        if !limiter.measures_bodies() {
            return self.charge(others);
        }
        if let (Some(shared), Some(lease)) = (&limiter.shared, &first.lease) {
            return self.charge_shared(first, (shared, lease), others);
        }
        let (moment, before, size) = (self.moment, self.before, self.size);
        let now = limiter.counts.time(moment);
        limiter.counts.counters.with(first.key, now, |counter, _| {
            let charged = match limiter.charge_more(first.plan, counter, now, before, size) {
                Ok(charged) => charged,
                // A dry run counts what would have been admitted.
                Err(_) if limiter.settings().dry_run => {
                    self.dry_run.push(first.limit_index as u16);
                    *counter
                }
                Err(wait) => {
                    first.metrics.decided(LimitResult::Limited);
                    let balance = || limiter.left_by_refused(first.plan, *counter, now, wait);
                    return Err(refuse(limiter, first.limit_index, wait, balance));
                }
            };
            self.charge(others)?;
            if !self.asks && charged != *counter {
                *counter = charged;
                let units = limiter.cost(size) - limiter.cost(before);
                first.meter(charged, moment, units.cast_signed());
            }
            Ok(())
        })
    }

    /// Charges a limit that several gateways share, and then `others`.
    fn charge_shared(
        &mut self,
        first: &ChargedLimit,
        (shared, charged): (&Arc<SharedLimit>, &ChargedLease),
        others: &[ChargedLimit],
    ) -> Result<(), Limited> {
        let ChargedLimit { plan, limit_index, .. } = *first;
        let limiter = &*first.limiter;
        let now = shared.now(self.moment);
        let cost = limiter.cost(self.size) - limiter.cost(self.before);
        let request = SharedRequest { limiter, shared, plan, place: limit_index, cost };
        shared.with(request.slot(&self.tickets, charged.slot), now, |lease, slot| {
            let course = match limiter.rule(plan) {
                // A rate takes the rest of the content as debt, which is reported to the store.
                Algorithm::Rate(_) => SharedCourse::Charge,
                // Within a unit that is paid for.
                _ if cost == 0 => SharedCourse::Charge,
                _ => request.course(lease, &mut self.tickets, self.was_asked, self.moment),
            };
            if let SharedCourse::Refuse(result, wait) = course {
                // A dry run counts what would have been admitted.
                if limiter.settings().dry_run {
                    self.dry_run.push(limit_index as u16);
                    return self.charge(others);
                }
                first.metrics.decided(result);
                let wait = wait.saturating_mul(1_000);
                let balance = || limiter.shared_left_by_refused(plan, lease, now, wait);
                return Err(refuse(limiter, limit_index, wait, balance));
            }
            self.asks |= matches!(course, SharedCourse::Ask);
            self.charge(others)?;
            if let Algorithm::Rate(_) = limiter.rule(plan) {
                lease.identify(&charged.key, limiter.shape(plan, now));
            }
            let key = || Arc::clone(&charged.key);
            if self.asks {
                self.tickets.extend(request.ticket(course, lease, slot, now, key));
                return Ok(());
            }
            request.charge(course, (lease, slot), now, &mut self.tickets, key);
            let window_end = || limiter.shared_window_end(plan, lease, self.moment);
            first.bill(window_end, cost.cast_signed());
            Ok(())
        })
    }
}
