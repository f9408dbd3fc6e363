//! A request, or a part of its content, at one limit that several gateways share: decided by this gateway's lease, by the
//! store, or without the store.

use std::sync::Arc;

use super::super::counters::limit_counters::Now;
use super::super::limiter::Limiter;
use super::super::plans::PlanIndex;
use super::super::settings::{OnStoreError, Store};
use super::{FirstAnswer, Lease, LeaseSlot, SharedLimit, StoreAnswer, Ticket, TicketRequest};
use crate::observe::metrics::LimitResult;

/// One cost at one shared limit.
#[derive(Clone, Copy)]
pub(in crate::limit) struct SharedRequest<'a> {
    pub(in crate::limit) limiter: &'a Limiter,
    pub(in crate::limit) shared: &'a Arc<SharedLimit>,
    pub(in crate::limit) plan: PlanIndex,
    /// The limit's index among its route's.
    pub(in crate::limit) place: usize,
    pub(in crate::limit) cost: u64,
}

/// The decision of one shared limit.
#[derive(Clone, Copy, Debug)]
pub(in crate::limit) enum SharedCourse {
    /// Grants cover the request.
    Charge,
    /// The store is unavailable, and the request passes; see [`Lease::fall_back`] for the number.
    Alone(u64),
    /// The store is to be asked.
    Ask,
    /// Refused, with the wait in microseconds.
    Refuse(LimitResult, u64),
}

impl SharedRequest<'_> {
    /// Returns the lease in which the request holds its place, also if the key has received a lease of its own
    /// meanwhile; else `own`.
    pub(in crate::limit) fn slot(&self, tickets: &[Ticket], own: LeaseSlot) -> LeaseSlot {
        let ticket = tickets.iter().find(|ticket| ticket.place == self.place);
        ticket.map_or(own, Ticket::slot)
    }

    /// Decides by the lease, by the store's answer in `tickets`, or without the store if it was asked and has not
    /// responded.
    pub(in crate::limit) fn course(
        &self,
        lease: &mut Lease,
        tickets: &mut [Ticket],
        was_asked: bool,
        moment: Now,
    ) -> SharedCourse {
        let Self { limiter, shared, plan, cost, .. } = *self;
        let Store::Redis { exact, on_error } = limiter.settings().store else {
            return SharedCourse::Charge;
        };
        let now = shared.now(moment);
        let mut ticket = tickets.iter_mut().find(|ticket| ticket.place == self.place);
        match ticket.as_deref().map(Ticket::answer) {
            Some(StoreAnswer::Granted | StoreAnswer::NotCharged) => return SharedCourse::Charge,
            Some(StoreAnswer::Refused(wait)) => {
                return SharedCourse::Refuse(LimitResult::Limited, wait);
            }
            Some(StoreAnswer::Failed) => {}
            None => {
                match shared.first_answer(lease, now, cost, limiter.amount(plan).whole(), exact) {
                    FirstAnswer::Covered => return SharedCourse::Charge,
                    FirstAnswer::Refused(wait) => {
                        return SharedCourse::Refuse(LimitResult::Limited, wait);
                    }
                    FirstAnswer::Ask if !was_asked => return SharedCourse::Ask,
                    FirstAnswer::Ask | FirstAnswer::StoreFailed => {}
                }
            }
        }
        if on_error == OnStoreError::Deny {
            return SharedCourse::Refuse(LimitResult::StoreError, RETRY_MICROS);
        }
        if let Some(ticket) = &mut ticket {
            // The request itself, which the share must not count twice.
            ticket.take(lease);
        }
        let shape = limiter.shape(plan, now);
        match shared.fall_back(lease, &shape, moment, (cost, limiter.settings().least_cost())) {
            Ok(own_until) => SharedCourse::Alone(own_until),
            // Counted all the same, for the time after the outage.
            Err(_) if on_error == OnStoreError::Allow => SharedCourse::Alone(0),
            Err(wait) => SharedCourse::Refuse(LimitResult::StoreError, wait),
        }
    }

    /// Holds the place of a request while the store is asked about it, or about another of its limits; `key` is its
    /// counter's key in the store.
    pub(in crate::limit) fn ticket(
        &self,
        course: SharedCourse,
        lease: &mut Lease,
        slot: LeaseSlot,
        now: u64,
        key: impl FnOnce() -> Arc<str>,
    ) -> Option<Ticket> {
        let Self { limiter, shared, place, cost, .. } = *self;
        let settings = limiter.settings();
        let (exact, dry_run) = (settings.store.is_exact(), settings.dry_run);
        let shape = limiter.shape(self.plan, now);
        let least_cost = settings.least_cost();
        let request = TicketRequest { key, shape, cost, least_cost, exact, dry_run };
        match course {
            SharedCourse::Ask => Some(Ticket::asking(shared, lease, slot, place, request)),
            SharedCourse::Charge => Some(Ticket::holding(shared, lease, slot, place, request)),
            SharedCourse::Alone(_) | SharedCourse::Refuse(..) => None,
        }
    }

    /// Charges an admitted request to its lease; `key` is its counter's key in the store.
    pub(in crate::limit) fn charge(
        &self,
        course: SharedCourse,
        (lease, slot): (&mut Lease, LeaseSlot),
        now: u64,
        tickets: &mut [Ticket],
        key: impl FnOnce() -> Arc<str>,
    ) {
        if let Some(ticket) = tickets.iter_mut().find(|ticket| ticket.place == self.place) {
            ticket.take(lease);
        }
        if let SharedCourse::Alone(own_until) = course {
            // The use is reported to the store afterwards, also of a counter that it was never asked about.
            lease.name(key);
            lease.charge_alone(now, self.cost, own_until);
        } else {
            let exact = self.limiter.settings().store.is_exact();
            self.shared.charge(lease, slot, now, self.cost, exact);
        }
    }
}

/// The wait where a store that is unavailable refuses.
const RETRY_MICROS: u64 = 1_000_000;
