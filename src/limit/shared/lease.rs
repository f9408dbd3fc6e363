//! One gateway's share of one counter: the grants of the store, and their use.
//!
//! A lease is decided without the store while its grants last. Everything here is arithmetic on numbers that the
//! caller has locked; [`super::shared_limit`] keeps the leases, [`super::store_task`] talks to the store.

mod alone;

use std::sync::Arc;

pub(in crate::limit) use self::alone::Outage;

use super::lease_size::{RATE_LEASE_MICROS, max_lease};
use super::protocol::{
    CounterReply, LEASE_LIFETIME_MICROS, Message, MessagePurpose, SLOT_LIFETIME_MICROS, Shape,
    Status,
};

/// One counter as this gateway knows it. Times are in microseconds of the store's time.
#[derive(Clone, Debug, Default)]
pub(in crate::limit) struct Lease {
    /// The counter's key in the store; set with the first message.
    pub(super) key: Option<Arc<str>>,
    /// The limit of the last request, for messages that no request causes.
    pub(super) shape: Option<Shape>,
    /// Tells this record from an earlier one of the same counter.
    pub(super) nonce: u32,
    /// All that the store has granted to this gateway.
    pub(super) granted: u64,
    /// All that this gateway has admitted; for a concurrency limit, the requests that are still in flight.
    pub(super) used: u64,
    /// The use beyond the grants that was charged from responses, and the limit of the last such request.
    excess: u64,
    excess_limit: u64,
    /// The use without a decision of the store that it has been told of since: a share that is not given out again
    /// before the store grants anything.
    told_alone: u64,
    /// The cost of requests that wait for the store.
    pub(super) pending: u64,
    /// The cost of the last request that asked the store; zero before that.
    request_cost: u64,
    /// The generation of the counter; zero before the first response.
    generation: u64,
    /// The generation with which the window began that `used` counts in. Since then, only losses of data began others.
    first_generation: u64,
    /// The debt of the next window, and the limit that it exceeds.
    owed: u64,
    owed_limit: u64,
    /// The end of the window, or the theoretical arrival time.
    until: u64,
    /// The time per request of the rate at which `until` was computed; zero before that.
    interval: f64,
    /// All grants to all gateways.
    total: u64,
    /// The theoretical arrival time of requests that were admitted without the store.
    own_until: u64,
    /// Until this time, a cost of at least `refused_cost` that grants do not cover is refused without asking the store
    /// again.
    refused_until: u64,
    refused_cost: u64,
    /// The limit of the refused caller: a caller with a larger one, by another plan, asks the store.
    refused_limit: u64,
    /// The time at which the store expects to admit that cost.
    retry_at: u64,
    /// The time until which grants may be used.
    valid_until: u64,
    /// The number of the last message, and of the last one whose response counts.
    seq: u64,
    seen_seq: u64,
    /// The desired grant.
    target: u64,
    last_grant: u64,
    /// The largest limit that the store granted by since the lease was used up: callers with a smaller one ask the store.
    granted_by: u64,
    /// The time of the last request.
    pub(super) last_use: u64,
    /// The time of the last message that no request caused.
    last_told: u64,
    /// The time of the last response.
    heard: u64,
    /// Whether the store takes the lease back unless it is renewed.
    expires: bool,
    /// The last message before the store may have lost earlier ones, until it has responded to a later one.
    untold: Option<u64>,
    /// Whether a message without a waiting request is due or under way.
    pub(super) renewing: bool,
}

/// A request's first answer, by the lease alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) enum Standing {
    /// Grants cover the request.
    Covered,
    /// The store refused recently; the remaining wait in microseconds.
    Refused(u64),
    /// Only the store can decide.
    Unknown,
}

/// The place of a lease.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(in crate::limit) enum LeaseSlot {
    /// The key's own.
    Own(u64),
    /// The lease that all keys beyond the bound share.
    Overflow,
}

/// A lease that a request was charged to.
#[derive(Clone, Debug)]
pub(in crate::limit) struct ChargedLease {
    /// The place of the lease, which may be gone by now.
    pub(in crate::limit) slot: LeaseSlot,
    /// The counter's key in the store.
    pub(in crate::limit) key: Arc<str>,
    /// The generation of the counter when it was charged; zero before the first response of the store.
    pub(in crate::limit) generation: u64,
}

impl Lease {
    pub(super) fn new(nonce: u32) -> Self {
        Self { nonce, ..Self::default() }
    }

    /// Creates the lease of the counter `key`.
    pub(super) fn of(key: &Arc<str>, nonce: u32) -> Self {
        Self { key: Some(Arc::clone(key)), ..Self::new(nonce) }
    }

    /// Returns the number that distinguishes this record from an earlier one of the same counter.
    pub(in crate::limit) fn nonce(&self) -> u32 {
        self.nonce
    }

    /// Returns the record of a request that was charged to this lease at `slot`; `None` unless the store knows the counter.
    pub(in crate::limit) fn charged(&self, slot: LeaseSlot) -> Option<ChargedLease> {
        Some(ChargedLease { slot, key: self.key.clone()?, generation: self.generation })
    }

    /// Returns the end of the window, as far as this gateway knows; zero before that.
    pub(in crate::limit) fn until(&self) -> u64 {
        self.until
    }

    /// Returns the counter's key in the store, which is `key` unless it has one.
    pub(in crate::limit) fn name(&mut self, key: impl FnOnce() -> Arc<str>) -> Arc<str> {
        Arc::clone(self.key.get_or_insert_with(key))
    }

    /// Has the next charge reported to the store as use of the counter `key`, also if the lease is new: the lease of
    /// the request may be gone.
    pub(in crate::limit) fn identify(&mut self, key: &Arc<str>, shape: Shape) {
        self.name(|| Arc::clone(key));
        self.shape = Some(shape);
    }

    /// Whether it counts in the window of what was charged in that `generation`.
    pub(in crate::limit) fn counts_in(&self, generation: u64) -> bool {
        generation == 0 || (self.first_generation..=self.generation).contains(&generation)
    }

    /// Whether it equals a new lease.
    pub(super) fn is_blank(&self) -> bool {
        self.pending == 0
            && self.used == 0
            && self.granted == 0
            && self.refused_until == 0
            && self.generation == 0
    }

    /// Whether the counter has recovered, and nothing is in flight.
    pub(super) fn is_over(&self, now: u64) -> bool {
        self.pending == 0
            && !self.renewing
            && !self.is_in_flight()
            && self.refused_until <= now
            && match self.shape {
                Some(Shape::Window { .. }) => self.until <= now,
                // Debts that the store does not know, and leases, are reported first.
                _ => self.until.max(self.own_until) <= now && self.granted == self.used,
            }
    }

    /// Whether the lease may make room for another key: the store knows all of its use, and nothing waits or is in
    /// flight.
    pub(super) fn is_dispensable(&self) -> bool {
        self.pending == 0
            && !self.renewing
            && !self.is_in_flight()
            && self.untold.is_none()
            && self.generation != 0
            && self.used <= self.granted
    }

    /// Whether the store has refused a request by its last response.
    pub(super) fn is_refused(&self) -> bool {
        self.refused_until != 0
    }

    /// Whether its counter is one of a window that has ended.
    pub(super) fn has_ended(&self, now: u64) -> bool {
        matches!(self.shape, Some(Shape::Window { .. })) && self.until <= now
    }

    fn is_in_flight(&self) -> bool {
        matches!(self.shape, Some(Shape::Slots { .. })) && self.used > 0
    }

    /// Returns how much more may be used without the store.
    pub(super) fn free(&self, now: u64) -> u64 {
        let lasts = match self.shape {
            Some(Shape::Window { .. }) => self.until > now,
            Some(Shape::Rate { keeps: false, .. }) => self.valid_until > now,
            _ => true,
        };
        if lasts { self.granted.saturating_sub(self.used.saturating_add(self.pending)) } else { 0 }
    }

    /// Decides a request of this `cost`, whose caller has `limit` units, by the lease alone. With `exact`, grants cover
    /// only the requests that asked for them.
    pub(in crate::limit) fn standing(
        &self,
        now: u64,
        cost: u64,
        limit: u64,
        exact: bool,
    ) -> Standing {
        if exact {
            return Standing::Unknown;
        }
        if self.free(now) >= cost && limit >= self.granted_by {
            return Standing::Covered;
        }
        if self.refused_until > now && cost >= self.refused_cost && limit <= self.refused_limit {
            return Standing::Refused(self.retry_at.saturating_sub(now));
        }
        Standing::Unknown
    }

    /// Charges a request that grants cover.
    pub(in crate::limit) fn charge(&mut self, now: u64, cost: u64) {
        self.used = self.used.saturating_add(cost);
        self.last_use = now;
    }

    /// Records that the next charge, to a caller with `limit` units, is owed as far as it exceeds the grants.
    pub(super) fn exceed(&mut self, cost: u64, limit: u64) {
        let paid = self.granted.max(self.used);
        let excess = self.used.saturating_add(cost).saturating_sub(paid);
        if excess > 0 {
            self.excess = self.excess.saturating_add(excess);
            self.excess_limit = limit;
        }
    }

    /// Holds the place of a request that waits for the store.
    pub(super) fn reserve(&mut self, cost: u64) {
        self.pending = self.pending.saturating_add(cost);
    }

    /// Holds the place of a request that asks the store; returns the purpose of its message, by which grants that do not
    /// cover the request are given back if it is refused.
    pub(super) fn reserve_asking(&mut self, cost: u64, dry_run: bool) -> MessagePurpose {
        let lower = self.free(0) > 0;
        self.reserve(cost);
        self.request_cost = cost;
        MessagePurpose { ask: true, dry_run, lower, ..MessagePurpose::default() }
    }

    /// Gives the place of a request back.
    pub(super) fn unreserve(&mut self, cost: u64) {
        self.pending = self.pending.saturating_sub(cost);
    }

    /// Gives back what a request was charged: it becomes part of the lease.
    pub(in crate::limit) fn refund(&mut self, cost: u64) {
        self.used = self.used.saturating_sub(cost);
    }

    /// Ends requests in flight.
    pub(super) fn release(&mut self, count: u64) {
        self.used = self.used.saturating_sub(count);
    }

    /// Whether the lease should be renewed before it is used up.
    pub(super) fn is_low(&self, now: u64) -> bool {
        !self.renewing
            && self.target >= self.cost_unit().saturating_mul(MIN_RENEWED_LEASE)
            && self.free(now) <= self.target / 4
            && self.refused_until <= now
    }

    /// Returns the debt at a rate of one request per `interval`, in microseconds: of the same number of requests as at
    /// the rate by which the store has charged.
    fn debt(&self, interval: f64, now: u64) -> f64 {
        let scale = if self.interval > 0.0 { interval / self.interval } else { 1.0 };
        self.until.max(self.own_until).saturating_sub(now) as f64 * scale
    }

    /// Whether nothing is in flight, and the store knows all that this gateway has admitted, and has back what it has not.
    pub(super) fn is_settled(&self) -> bool {
        self.pending == 0 && self.used == self.granted && !self.is_in_flight()
    }

    /// Returns the message about this counter, and counts it; the desired lease is none if `exact`.
    pub(super) fn message(
        &mut self,
        key: &Arc<str>,
        shape: Shape,
        purpose: MessagePurpose,
        gateways: u64,
        exact: bool,
    ) -> Message {
        self.seq += 1;
        let granted = self.granted;
        let target = if exact { 0 } else { self.desired(&shape, gateways) };
        if purpose.lower {
            // From now on no request uses what is given back, and no older response brings it back.
            let kept = self.used.saturating_add(self.pending);
            let kept = if purpose.ask {
                kept.saturating_sub(self.request_cost)
            } else {
                kept.saturating_add(target)
            };
            self.granted = granted.min(kept);
            self.seen_seq = self.seq - u64::from(purpose.ask);
            self.expires &= purpose.ask || target > 0;
        }
        Message {
            key: Arc::clone(key),
            shape,
            purpose,
            nonce: self.nonce,
            seq: self.seq,
            used: self.used,
            pending: self.pending,
            granted,
            target,
            shares: gateways.saturating_mul(PARTS_OF_A_SHARE),
            generation: self.generation,
            until: self.until,
            total: self.total,
            excess: self.excess,
            excess_limit: self.excess_limit,
            cost: self.cost_unit(),
            debt: self.owed,
            debt_limit: self.owed_limit,
        }
    }

    /// Returns the desired lease: as many requests as the largest covers, which may be none.
    fn desired(&self, shape: &Shape, gateways: u64) -> u64 {
        let unit = self.cost_unit();
        let target = self.target.max(unit).min(max_lease(shape, gateways));
        target - target % unit
    }

    /// Returns the units that one request costs, at least 1.
    fn cost_unit(&self) -> u64 {
        self.request_cost.max(1)
    }

    /// Takes over a response to `message`; one that is older than the last one is ignored.
    pub(super) fn apply(
        &mut self,
        message: &Message,
        reply: &CounterReply,
        now: u64,
        gateways: u64,
    ) {
        if message.nonce != self.nonce || message.seq <= self.seen_seq {
            return;
        }
        self.seen_seq = message.seq;
        self.heard = now;
        if message.purpose.ask {
            self.last_use = self.last_use.max(now);
        }
        self.untold = self.untold.filter(|seq| message.seq <= *seq);
        self.expires = message.shape.lease_lifetime() > 0 && reply.granted > message.counted(reply);
        // Since the message was sent, an earlier response may have told of this generation, or a window have begun alone.
        let is_other = match self.generation {
            0 => self.until <= now,
            generation => generation != reply.generation,
        };
        let begins_anew = !reply.continues && is_other;
        if begins_anew && matches!(message.shape, Shape::Window { .. }) {
            self.used = 0;
        }
        if begins_anew || self.first_generation == 0 {
            self.first_generation = reply.generation;
        }
        let asked =
            message.purpose.ask && message.used.saturating_add(message.pending) > message.granted;
        if begins_anew || (asked && reply.status == Status::Granted) {
            self.told_alone = 0;
        } else {
            let told = self.used.min(reply.granted).saturating_sub(self.granted);
            self.told_alone = self.told_alone.saturating_add(told);
        }
        let more = reply.granted > self.granted;
        let was_used_up = self.granted <= self.used;
        (self.generation, self.until) = (reply.generation, reply.until);
        if let Shape::Rate { interval, .. } = message.shape {
            let before = if self.interval > 0.0 { self.interval } else { interval };
            let own_debt = self.own_until.saturating_sub(now) as f64 * interval / before;
            self.own_until = now.saturating_add(own_debt as u64);
            self.interval = interval;
        }
        (self.total, self.granted) = (reply.total, reply.granted);
        (self.owed, self.owed_limit) = (reply.debt, reply.debt_limit);
        self.excess = self.excess.min(self.used.saturating_sub(self.granted));
        let is_refused = message.purpose.ask && reply.status == Status::Refused;
        let limit = message.shape.capacity();
        if is_refused && !matches!(message.shape, Shape::Slots { .. }) {
            let again = self.refused_until > now && self.refused_limit == limit;
            let least = if again { self.refused_cost } else { u64::MAX };
            (self.refused_cost, self.refused_limit) = (least.min(message.pending), limit);
            // Another gateway may return a lease, or an operator reset the counter, before the wait is over.
            self.refused_until = now.saturating_add(reply.wait.min(REFUSAL_MICROS));
            self.retry_at = now.saturating_add(reply.wait);
        } else {
            self.refused_until = 0;
        }
        if more {
            self.granted_by = if was_used_up { limit } else { self.granted_by.max(limit) };
            self.resize(&message.shape, now, gateways);
            self.valid_until = now.saturating_add(RATE_LEASE_MICROS);
            self.last_grant = now;
        }
    }

    /// Doubles the lease where it was used up soon, and halves it where it lasted.
    fn resize(&mut self, shape: &Shape, now: u64, gateways: u64) {
        let most = max_lease(shape, gateways);
        let lasted = now.saturating_sub(self.last_grant);
        let target = match lasted {
            ..SHORT_LEASE_MICROS => self.target.saturating_mul(2),
            SHORT_LEASE_MICROS..LONG_LEASE_MICROS => self.target,
            _ => self.target / 2,
        };
        let first = self.cost_unit().saturating_mul(FIRST_LEASE);
        self.target = target.clamp(first.min(most), most);
    }

    /// Records that the store may have lost earlier messages.
    pub(super) fn lost(&mut self) {
        self.untold = Some(self.seq);
        self.renewing = false;
    }

    /// Returns the purpose of a message that no request causes, if one is due.
    pub(super) fn due(&mut self, now: u64) -> Option<MessagePurpose> {
        if self.renewing {
            return None;
        }
        let idle = now.saturating_sub(self.last_use);
        let unused = self.granted > self.used.saturating_add(self.pending);
        let (tell, lower) = (
            MessagePurpose::default(),
            MessagePurpose { lower: true, ..MessagePurpose::default() },
        );
        let due = match self.shape? {
            _ if self.untold.is_some() => Some(tell),
            Shape::Slots { .. } => {
                let renewal = self.used > 0 && now.saturating_sub(self.last_told) > RENEWAL_MICROS;
                (unused && idle > IDLE_SLOT_MICROS).then_some(lower).or(renewal.then_some(tell))
            }
            _ if self.used > self.granted => Some(tell),
            _ if unused && idle > IDLE_LEASE_MICROS => Some(lower),
            _ if self.expires && now.saturating_sub(self.heard) > LEASE_RENEWAL_MICROS => {
                Some(tell)
            }
            _ if unused => None,
            _ if self.pending == 0 && idle > FORGOTTEN_MICROS => {
                Some(MessagePurpose { close: true, ..lower })
            }
            _ => None,
        };
        if due.is_some() {
            self.last_told = now;
        }
        due
    }

    /// Gives up grants that have expired: those of a rate would add to a later burst, and the store may have granted
    /// those of a quota to others.
    pub(super) fn forfeit(&mut self, now: u64) {
        match self.shape {
            Some(Shape::Rate { keeps: false, .. }) if self.valid_until <= now => {
                self.used = self.used.max(self.granted.saturating_sub(self.pending));
            }
            _ if self.expires && now.saturating_sub(self.heard) > LEASE_VALIDITY_MICROS => {
                self.granted = self.granted.min(self.used.saturating_add(self.pending));
                self.expires = false;
            }
            _ => {}
        }
    }

    /// Returns the remaining allowance of a caller with `limit` units, whose limit has this `shape`, as far as this
    /// gateway knows, and the time until it is renewed, in microseconds.
    pub(in crate::limit) fn balance(
        &self,
        limit: u64,
        shape: impl FnOnce() -> Shape,
        now: u64,
    ) -> (u64, u64) {
        // Use beyond the grants is not in the store's numbers yet.
        let own = |left: u64| left.saturating_add(self.granted).saturating_sub(self.used);
        match self.shape.filter(|shape| shape.capacity() == limit).unwrap_or_else(shape) {
            Shape::Window { limit, end, next, .. } => {
                if self.until <= now {
                    return (limit, if end == 0 { next } else { end.saturating_sub(now) });
                }
                let used = self.total.saturating_add(self.used).saturating_sub(self.granted);
                (limit.saturating_sub(used), self.until - now)
            }
            Shape::Rate { whole, interval, .. } => {
                let debt = self.debt(interval, now);
                match own(((whole - debt) / interval).max(0.0) as u64) {
                    0 => (0, (debt + interval - whole).max(0.0) as u64),
                    left => (left, debt as u64),
                }
            }
            Shape::Slots { limit } => (own(limit.saturating_sub(self.total)), 0),
        }
    }

    /// Returns how much of the amount is used by all gateways, as far as this one knows.
    pub(in crate::limit) fn used_of_all(&self, now: u64) -> u64 {
        let Some(shape) = self.shape else { return 0 };
        let limit = shape.capacity();
        limit.saturating_sub(self.balance(limit, || shape, now).0)
    }
}

/// A lease is at most this part of each gateway's share of the remaining amount, so that it shrinks to single requests
/// at the end.
const PARTS_OF_A_SHARE: u64 = 4;
/// The requests that the first lease covers, if leases may be that large.
const FIRST_LEASE: u64 = 4;
/// Leases of fewer requests are not renewed ahead.
const MIN_RENEWED_LEASE: u64 = 8;
/// A lease that was used up within this time doubles its grant.
const SHORT_LEASE_MICROS: u64 = 200_000;
/// A lease that lasted longer than this halves its grant.
const LONG_LEASE_MICROS: u64 = 2_000_000;
/// How long a refusal is remembered at most: other gateways return leases.
const REFUSAL_MICROS: u64 = 250_000;
/// Places in flight are renewed at this interval, a third of their lifetime.
const RENEWAL_MICROS: u64 = SLOT_LIFETIME_MICROS / 3;
/// Leases of quotas are renewed at this interval, a fifth of their lifetime.
const LEASE_RENEWAL_MICROS: u64 = LEASE_LIFETIME_MICROS / 5;
/// A lease of a quota is used for this time after the last response, so that none is used when the store takes it back.
const LEASE_VALIDITY_MICROS: u64 = LEASE_LIFETIME_MICROS / 5 * 4;
/// Unused grants are returned after this time without a request.
const IDLE_LEASE_MICROS: u64 = 500_000;
/// Unused places are returned after this time without a request.
const IDLE_SLOT_MICROS: u64 = 200_000;
/// A counter is forgotten here after this time without a request; the store knows it.
const FORGOTTEN_MICROS: u64 = 600_000_000;
