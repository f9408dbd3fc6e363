//! One limit that several gateways share: this gateway's leases of its counters.

use core::sync::atomic::AtomicU32;
use std::sync::Arc;

use super::lease::{Lease, LeaseSlot, Standing};
use super::lease_size::{max_lease, overrun_bound};
use super::lease_table::LeaseTable;
use super::protocol::{Message, MessagePurpose, Shape};
use super::store_state::{LeaseId, MessageReason, StoreState};
use crate::limit::counters::limit_counters::Now;
use crate::observe::metrics::{LabeledGauge, LeaseMetrics};

/// One limit's leases. It outlives a reload.
#[derive(Debug)]
pub(in crate::limit) struct SharedLimit {
    /// The limit's number in this process.
    pub(super) id: u64,
    /// The beginning of its keys in the store.
    prefix: Box<str>,
    pub(super) leases: LeaseTable,
    pub(in crate::limit) state: Arc<StoreState>,
    pub(super) metrics: Arc<LeaseMetrics>,
}

/// A request's first answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) enum FirstAnswer {
    /// Grants cover it.
    Covered,
    /// It is refused; the wait in microseconds.
    Refused(u64),
    /// The store is to be asked.
    Ask,
    /// The store is unavailable.
    StoreFailed,
}

/// The question of a request to a shared limit.
pub(in crate::limit) struct TicketRequest<K> {
    /// Returns the counter's key in the store.
    pub(in crate::limit) key: K,
    pub(in crate::limit) shape: Shape,
    pub(in crate::limit) cost: u64,
    /// The cost of the smallest request.
    pub(in crate::limit) least_cost: u64,
    pub(in crate::limit) exact: bool,
    /// Whether a refusal by this limit refuses no other.
    pub(in crate::limit) dry_run: bool,
}

impl SharedLimit {
    pub(super) fn new(
        id: u64,
        (prefix, overflow): (Box<str>, Arc<str>),
        max_keys: usize,
        state: Arc<StoreState>,
        keys: Arc<LabeledGauge>,
        metrics: Arc<LeaseMetrics>,
        nonces: Arc<AtomicU32>,
    ) -> Self {
        Self {
            id,
            prefix,
            leases: LeaseTable::new(max_keys, overflow, keys, nonces),
            state,
            metrics,
        }
    }

    /// Whether the store knows all that this gateway has admitted, and has back what it has not.
    pub(super) fn is_settled(&self) -> bool {
        let mut settled = true;
        self.each(|_, lease| settled &= lease.is_settled());
        settled
    }

    /// Changes the maximum number of keys with a counter of their own.
    pub(in crate::limit) fn allow(&self, max_keys: usize) {
        self.leases.allow(max_keys);
    }

    /// Returns the store's time.
    pub(in crate::limit) fn now(&self, moment: Now) -> u64 {
        self.state.time.now(moment)
    }

    /// Passes `change` the lease at `slot`, new if the key has none, or that which all keys beyond the bound share; locked
    /// until `change` returns.
    pub(in crate::limit) fn with<R>(
        &self,
        slot: LeaseSlot,
        now: u64,
        change: impl FnOnce(&mut Lease, LeaseSlot) -> R,
    ) -> R {
        // The store keeps the count of a lease that makes room, if it can be reached.
        let evict = self.state.is_usable().then_some(|key, lease| self.close(key, lease, now));
        self.leases.with(slot, evict, change)
    }

    /// Returns what a lease that has made room has not used to the store.
    fn close(&self, key: u64, mut lease: Lease, now: u64) {
        if lease.has_ended(now) {
            return;
        }
        if let Some((id, message)) =
            self.message(LeaseSlot::Own(key), &mut lease, MessagePurpose::LAST, false)
        {
            self.state.send(id, message);
        }
    }

    /// Returns the message about a lease that the store knows, or should know; the lease grows if `grows`.
    pub(super) fn message(
        &self,
        slot: LeaseSlot,
        lease: &mut Lease,
        purpose: MessagePurpose,
        grows: bool,
    ) -> Option<(LeaseId, Message)> {
        let (key, shape) = (lease.key.clone()?, lease.shape?);
        lease.renewing = true;
        let message = lease.message(&key, shape, purpose, self.state.gateways(), !grows);
        Some(((self.id, slot), message))
    }

    /// Has a message about a lease sent to the store, unless one is being sent.
    fn tell_once(&self, lease: &mut Lease, slot: LeaseSlot, reason: MessageReason) {
        if !lease.renewing && self.state.is_usable() {
            lease.renewing = true;
            self.state.tell((self.id, slot), reason);
        }
    }

    /// Decides a request, whose caller has `limit` units, by its lease alone.
    pub(in crate::limit) fn first_answer(
        &self,
        lease: &mut Lease,
        now: u64,
        cost: u64,
        limit: u64,
        exact: bool,
    ) -> FirstAnswer {
        lease.forfeit(now);
        match lease.standing(now, cost, limit, exact) {
            Standing::Covered => FirstAnswer::Covered,
            Standing::Refused(wait) => FirstAnswer::Refused(wait),
            Standing::Unknown if self.state.is_usable() => FirstAnswer::Ask,
            Standing::Unknown => FirstAnswer::StoreFailed,
        }
    }

    /// Decides a request of this `cost` without the store, by this gateway's share, of a limit whose smallest request costs
    /// `least_cost`; see [`Lease::fall_back`].
    ///
    /// # Errors
    ///
    /// How long to wait, in microseconds.
    pub(in crate::limit) fn fall_back(
        &self,
        lease: &mut Lease,
        shape: &Shape,
        moment: Now,
        (cost, least_cost): (u64, u64),
    ) -> Result<u64, u64> {
        let outage = self.state.outage(moment, least_cost);
        lease.shape = Some(*shape);
        lease.fall_back(shape, self.now(moment), cost, outage, || self.leases.fresh_nonce())
    }

    /// Charges a request that grants cover; requests a renewal of the lease before it is used up.
    pub(in crate::limit) fn charge(
        &self,
        lease: &mut Lease,
        slot: LeaseSlot,
        now: u64,
        cost: u64,
        exact: bool,
    ) {
        lease.charge(now, cost);
        if !exact && lease.is_low(now) {
            self.tell_once(lease, slot, MessageReason::Renew);
        }
    }

    /// Charges what a request cost beyond `reserved` to the counter `key`, or gives the rest of that back. If the
    /// window in which the request was admitted is over, its lease is gone, and the current window is charged.
    pub(in crate::limit) fn settle(
        &self,
        (lease, slot): (&mut Lease, LeaseSlot),
        now: u64,
        (reserved, cost): (u64, u64),
        (key, shape): (&Arc<str>, Shape),
        exact: bool,
    ) {
        let more = cost.saturating_sub(reserved);
        if more > 0 {
            lease.begin_window(&shape, now, || self.leases.fresh_nonce());
            lease.identify(key, shape);
            lease.exceed(more, shape.capacity());
            self.charge(lease, slot, now, more, exact);
            if lease.used > lease.granted {
                // Other gateways admit by what the store knows.
                self.tell_once(lease, slot, MessageReason::Report);
            }
        }
        self.give_back((lease, slot), now, reserved.saturating_sub(cost), exact);
    }

    /// Gives back what a request was charged: it becomes part of the lease, and the store gets what is more than a lease
    /// may be, or cannot be used here.
    fn give_back(&self, (lease, slot): (&mut Lease, LeaseSlot), now: u64, cost: u64, exact: bool) {
        lease.refund(cost);
        let Some(shape) = lease.shape.filter(|_| cost > 0 && self.state.is_usable()) else {
            return;
        };
        let has_expired = lease.free(now) == 0;
        let is_lease = !exact && !has_expired;
        let largest = if is_lease { max_lease(&shape, self.state.gateways()) } else { 0 };
        if lease.free(0) > largest
            && let Some((id, message)) = self.message(slot, lease, MessagePurpose::RETURN, is_lease)
        {
            self.state.send(id, message);
        }
    }

    /// Holds a place for a request that asks the store, and returns its message.
    pub(super) fn ask(
        &self,
        lease: &mut Lease,
        request: TicketRequest<impl FnOnce() -> Arc<str>>,
    ) -> Message {
        let TicketRequest { key, shape, cost, least_cost, exact, dry_run } = request;
        let purpose = lease.reserve_asking(cost, dry_run);
        lease.shape = Some(shape);
        let key = lease.name(key);
        let gateways = self.state.gateways();
        self.metrics.bound(overrun_bound(&shape, gateways, least_cost));
        lease.message(&key, shape, purpose, gateways, exact)
    }

    /// Returns the message that resets the counter at `slot`; `None` for one that neither has a lease nor is named.
    pub(super) fn reset(
        &self,
        slot: LeaseSlot,
        name: Option<&str>,
        shape: Shape,
    ) -> Option<Message> {
        let message = |lease: &mut Lease, close| {
            let key = lease.key.clone().or_else(|| name.map(|name| self.key(name)))?;
            let shape = *lease.shape.get_or_insert(shape);
            let purpose = MessagePurpose { reset: true, close, ..MessagePurpose::default() };
            Some(lease.message(&key, shape, purpose, self.state.gateways(), true))
        };
        let known = self.leases.existing(slot, |lease| message(lease, false)).flatten();
        // A key without a lease here gets none: in a full table it would get the lease of all keys beyond the bound.
        known.or_else(|| message(&mut Lease::new(self.leases.fresh_nonce()), true))
    }

    /// Passes `read` the lease of `key`, if it has one.
    pub(in crate::limit) fn existing<R>(
        &self,
        key: u64,
        read: impl FnOnce(&mut Lease) -> R,
    ) -> Option<R> {
        self.leases.existing(LeaseSlot::Own(key), read)
    }

    /// Passes every lease to `read`.
    pub(in crate::limit) fn each(&self, mut read: impl FnMut(LeaseSlot, &Lease)) {
        self.leases.retain(|slot, lease| {
            read(slot, lease);
            true
        });
    }

    /// Returns the store's key of the counter called `name`.
    pub(in crate::limit) fn key(&self, name: &str) -> Arc<str> {
        format!("{}{name}", self.prefix).into()
    }

    /// Ends requests in flight at `slot`, unless the lease is another one by now.
    pub(in crate::limit) fn release(&self, slot: LeaseSlot, nonce: u32, exact: bool) {
        let freed = self.leases.existing(slot, |lease| {
            if lease.nonce != nonce {
                return false;
            }
            lease.release(1);
            // Other gateways may wait for the place.
            let due = exact || lease.free(0) > lease.used / 8;
            let tell = due && !lease.renewing;
            lease.renewing |= tell;
            tell
        });
        if freed == Some(true) {
            self.state.tell((self.id, slot), MessageReason::Return);
        }
    }

    /// Gives back what a request was charged in that `generation` of its counter, if that still counts.
    pub(in crate::limit) fn refund(
        &self,
        slot: LeaseSlot,
        now: u64,
        cost: u64,
        generation: u64,
        exact: bool,
    ) {
        // Without a lease the use was reported to the store, and its window is over or idle.
        let _ = self.leases.existing(slot, |lease| {
            if lease.counts_in(generation) {
                self.give_back((lease, slot), now, cost, exact);
            }
        });
    }

    /// Gives back the place of a request that was not admitted after all.
    pub(super) fn unreserve(&self, slot: LeaseSlot, nonce: u32, cost: u64, exact: bool) {
        let tell = self.leases.existing(slot, |lease| {
            if lease.nonce != nonce {
                return false;
            }
            lease.unreserve(cost);
            let tell = exact && lease.free(0) > 0 && !lease.renewing;
            lease.renewing |= tell;
            tell
        });
        if tell == Some(true) {
            self.state.tell((self.id, slot), MessageReason::Return);
        }
    }
}
