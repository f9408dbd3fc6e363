//! The check of one request against the limits of a route.
//!
//! Each limit's counter stays locked while the next one is checked, down to the
//! last; only when all have agreed is any of them charged, on the way back.
//! So a refusal by one charges none, and no other request can come between
//! check and charge. Counters are locked in one order throughout the
//! process, which excludes deadlocks.
//!
//! If only its store can decide a limit, nothing is charged: shared limits hold a ticket, and the whole check is repeated
//! with the store's answer.

use std::sync::Arc;

use super::charged_limit::ChargedLimit;
use super::limit_exceeded::{LimitExceeded, Limited, first, refuse};
use super::limit_state::LimitState;
use crate::limit::algorithms::concurrency::{InFlightPermit, SharedPermit};
use crate::limit::counters::consumers::name_of;
use crate::limit::counters::counter::Counter;
use crate::limit::counters::counter_table::Slot;
use crate::limit::counters::limit_counters::Now;
use crate::limit::key::{LimitKeySource, NoKey};
use crate::limit::limiter::{Balance, Limiter};
use crate::limit::plans::PlanIndex;
use crate::limit::shared::request::{SharedCourse, SharedRequest};
use crate::limit::shared::{Lease, LeaseSlot, SharedLimit, Ticket};
use crate::observe::metrics::{LimitMetrics, LimitResult};

/// One limit of a route.
#[derive(Debug)]
pub(in crate::limit) struct LimitCheck {
    /// The index among the route's limits, in the order of the file.
    pub(in crate::limit) limit_index: usize,
    pub(in crate::limit) limiter: Arc<Limiter>,
    pub(in crate::limit) metrics: Arc<LimitMetrics>,
}

impl LimitCheck {
    /// Refuses a request for `wait` nanoseconds, and records the balance.
    fn refuse(
        &self,
        standing: &mut LimitState,
        wait: u64,
        balance: impl FnOnce() -> Balance,
    ) -> Limited {
        let limited = refuse(&self.limiter, self.limit_index, wait, balance);
        standing.ended_by(&limited);
        limited
    }

    /// Records the balance, if responses have header fields about this limit.
    fn note(&self, standing: &mut LimitState, left: impl FnOnce(&Limiter) -> Balance) {
        if self.limiter.settings().tells_clients()
            && let Some(slot) = standing.left.get_mut(self.limit_index)
        {
            *slot = left(&self.limiter);
        }
    }
}

/// The check of one request.
pub(in crate::limit) struct Evaluation<'a, 's> {
    subject: &'a LimitKeySource<'s>,
    moment: Now,
    standing: &'a mut LimitState,
    /// Whether a limit has to ask its store: then none is charged, and shared ones hold a ticket.
    pub(in crate::limit) asks: bool,
    /// Whether the store was asked.
    settled: bool,
    pub(in crate::limit) tickets: Vec<Ticket>,
}

impl<'a, 's> Evaluation<'a, 's> {
    /// Begins the check of a request that no store has decided yet.
    pub(in crate::limit) fn first(
        subject: &'a LimitKeySource<'s>,
        moment: Now,
        standing: &'a mut LimitState,
    ) -> Self {
        Self { subject, moment, standing, asks: false, settled: false, tickets: Vec::new() }
    }

    /// Begins the check of a request whose store has responded to `tickets`, or has not.
    pub(in crate::limit) fn settled(self, tickets: Vec<Ticket>) -> Self {
        Self { settled: true, tickets, ..self }
    }

    /// Checks the first of `checks` and, with its counter locked, the others; returns the combined refusal.
    pub(in crate::limit) fn ask(
        &mut self,
        checks: &[LimitCheck],
        refused: Option<Limited>,
    ) -> Option<LimitExceeded> {
        let Some((check, others)) = checks.split_first() else {
            return refused.map(LimitExceeded::Limited);
        };
        let limiter = &*check.limiter;
        let key = match limiter.key(self.subject) {
            Ok(key) => key,
            Err(NoKey::Skip) => return self.ask(others, refused),
            Err(NoKey::Reject | NoKey::Ambiguous) if limiter.settings().dry_run => {
                return self.pass_dry_run(check, others, refused);
            }
            Err(NoKey::Reject) => return Some(LimitExceeded::KeyMissing),
            Err(NoKey::Ambiguous) => return Some(LimitExceeded::KeyAmbiguous),
        };
        let size = self.subject.request_size.unwrap_or(0);
        let never = match limiter.plan(self.subject) {
            Some(plan) if !limiter.never_fits(plan, size) => Ok(plan),
            Some(_) => Err(LimitExceeded::TooLarge),
            None => Err(LimitExceeded::NoPlan),
        };
        let plan = match never {
            Ok(plan) => plan,
            Err(_) if limiter.settings().dry_run => {
                return self.pass_dry_run(check, others, refused);
            }
            Err(never) => {
                check.metrics.decided(LimitResult::Limited);
                return Some(never);
            }
        };
        if let Some(shared) = &limiter.shared {
            return self.ask_shared(check, shared, (key, plan), others, refused);
        }
        let now = limiter.counts.time(self.moment);
        limiter.counts.counters.with(key, now, |counter, slot| {
            match limiter.admit(plan, counter, now, size) {
                Ok(charged) => {
                    let refusal = self.ask(others, refused);
                    if refusal.is_none() && !self.asks {
                        limiter.note_consumer((key, plan), (*counter, charged), now, self.subject);
                        *counter = charged;
                        self.admitted(check, (key, plan), slot, charged);
                    }
                    check.note(self.standing, |limiter| limiter.left(plan, *counter, now));
                    refusal
                }
                Err(_) if limiter.settings().dry_run => self.pass_dry_run(check, others, refused),
                Err(wait) => {
                    check.metrics.decided(LimitResult::Limited);
                    let balance = || limiter.left_by_refused(plan, *counter, now, wait);
                    let limited = check.refuse(self.standing, wait, balance);
                    self.ask(others, Some(first(refused, limited)))
                }
            }
        })
    }

    /// As [`Evaluation::ask`], for a limit that several gateways share.
    fn ask_shared(
        &mut self,
        check: &LimitCheck,
        shared: &Arc<SharedLimit>,
        (key, plan): (u64, PlanIndex),
        others: &[LimitCheck],
        refused: Option<Limited>,
    ) -> Option<LimitExceeded> {
        let limiter = &*check.limiter;
        let now = shared.now(self.moment);
        let cost = limiter.cost(self.subject.request_size.unwrap_or(0));
        let request = SharedRequest { limiter, shared, plan, place: check.limit_index, cost };
        shared.with(request.slot(&self.tickets, LeaseSlot::Own(key)), now, |lease, slot| {
            let course = request.course(lease, &mut self.tickets, self.settled, self.moment);
            if let SharedCourse::Refuse(result, wait) = course {
                if limiter.settings().dry_run {
                    return self.pass_dry_run(check, others, refused);
                }
                check.metrics.decided(result);
                let wait = wait.saturating_mul(1_000);
                let balance = || limiter.shared_left_by_refused(plan, lease, now, wait);
                let limited = check.refuse(self.standing, wait, balance);
                return self.ask(others, Some(first(refused, limited)));
            }
            self.asks |= matches!(course, SharedCourse::Ask);
            let refusal = self.ask(others, refused);
            let name = || shared.key(&limiter.shared_name(self.subject));
            if refusal.is_none() && self.asks {
                self.tickets.extend(request.ticket(course, lease, slot, now, name));
                return None;
            }
            if refusal.is_none() {
                request.charge(course, (lease, slot), now, &mut self.tickets, name);
                self.admitted_shared(check, shared, (lease, slot), course);
                let balance = limiter.shared_balance(plan, lease, now);
                limiter.note_shared_consumer((key, plan), balance, cost, self.subject);
                self.begin_charging(check, (key, plan), Charged::Shared(slot, lease));
            }
            check.note(self.standing, |limiter| limiter.shared_balance(plan, lease, now));
            refusal
        })
    }

    /// Records an admitted request, and its place among those in flight.
    fn admitted_shared(
        &mut self,
        check: &LimitCheck,
        shared: &Arc<SharedLimit>,
        (lease, slot): (&Lease, LeaseSlot),
        course: SharedCourse,
    ) {
        let limiter = &*check.limiter;
        check.metrics.decided(match (course, slot) {
            (SharedCourse::Alone(_), _) => LimitResult::StoreError,
            (_, LeaseSlot::Overflow) => LimitResult::Overflow,
            (_, LeaseSlot::Own(_)) => LimitResult::Allowed,
        });
        if limiter.is_concurrency() {
            let exact = limiter.settings().store.is_exact();
            let permit = SharedPermit::new(shared, slot, lease.nonce(), exact);
            self.standing.shared_in_flight.push(permit);
        }
    }

    /// Passes a request that a dry run would have refused, as [`Evaluation::ask`] does with the others; the dry run does
    /// not charge it, and records it unless the whole check is repeated.
    fn pass_dry_run(
        &mut self,
        check: &LimitCheck,
        others: &[LimitCheck],
        refused: Option<Limited>,
    ) -> Option<LimitExceeded> {
        let refusal = self.ask(others, refused);
        if refusal.is_some() || !self.asks {
            self.would_refuse(check);
        }
        refusal
    }

    /// Records that a dry run would have refused the request.
    fn would_refuse(&mut self, check: &LimitCheck) {
        check.metrics.decided(LimitResult::DryRun);
        let first = self.standing.dry_run.get_or_insert(check.limit_index as u16);
        *first = (*first).min(check.limit_index as u16);
    }

    /// Records what is to be released when the request ends.
    fn admitted(
        &mut self,
        check: &LimitCheck,
        (key, plan): (u64, PlanIndex),
        slot: Slot,
        charged: Counter,
    ) {
        check.metrics.decided(match slot {
            Slot::Own => LimitResult::Allowed,
            Slot::Overflow => LimitResult::Overflow,
        });
        let limiter = &check.limiter;
        if limiter.is_concurrency() {
            self.standing.in_flight.push(InFlightPermit::new(&limiter.counts, key, slot));
        }
        self.begin_charging(check, (key, plan), Charged::Own(slot, charged));
    }

    /// Meters what was charged, and has costs charged that are known only afterwards.
    fn begin_charging(&mut self, check: &LimitCheck, key: (u64, PlanIndex), counter: Charged<'_>) {
        let (limiter, moment) = (&check.limiter, self.moment);
        let window_end = || match counter {
            Charged::Own(_, counter) => limiter.window_end(key.1, counter, moment),
            Charged::Shared(_, lease) => limiter.shared_window_end(key.1, lease, moment),
        };
        let name = limiter.settings().metered.then(|| {
            let name = Arc::new(name_of(&limiter.settings().by, self.subject));
            let cost = limiter.cost(self.subject.request_size.unwrap_or(0)).cast_signed();
            limiter.meter(key, window_end, cost, || Arc::clone(&name));
            name
        });
        let charged = |name| {
            let (slot, lease) = match counter {
                Charged::Own(slot, _) => (slot, None),
                // Found by the lease.
                Charged::Shared(slot, lease) => (Slot::Own, lease.charged(slot)),
            };
            ChargedLimit {
                limiter: Arc::clone(limiter),
                metrics: Arc::clone(&check.metrics),
                key: key.0,
                plan: key.1,
                slot,
                limit_index: check.limit_index,
                name,
                window_end: window_end(),
                lease,
            }
        };
        if self.subject.request_size.is_none() && !limiter.is_concurrency() {
            self.standing.metered.push(charged(name.clone()));
        }
        if limiter.settings().response_cost.is_some() {
            self.standing.unsettled.push(charged(name));
        }
    }
}

/// The counter that a request was charged to.
#[derive(Clone, Copy)]
enum Charged<'l> {
    /// The process's own, after the request.
    Own(Slot, Counter),
    /// A limit that several gateways share.
    Shared(LeaseSlot, &'l Lease),
}
