//! One gateway's share of one counter: the grants of the store, and their use.
//!
//! A lease is decided without the store while its grants last. Everything here is arithmetic on numbers that the
//! caller has locked; [`super::shared_limit`] keeps the leases, [`super::store_task`] talks to the store.

use std::sync::Arc;

use super::protocol::{
    LEASE_LIFETIME_MICROS, Message, Purpose, Reply, SLOT_LIFETIME_MICROS, Shape, Status,
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
    /// All that this gateway has admitted; of requests in flight, those that still are.
    pub(super) used: u64,
    /// The part of the use beyond the grants that responses told afterwards, and the limit of the last such request.
    excess: u64,
    excess_limit: u64,
    /// The cost of requests that wait for the store.
    pub(super) pending: u64,
    /// The generation of the counter; zero before the first response.
    generation: u64,
    /// The end of the window, or the theoretical arrival time.
    until: u64,
    /// The time per request of the rate that `until` is of; zero before that.
    interval: f64,
    /// All grants to all gateways.
    total: u64,
    /// The theoretical arrival time of requests that were admitted without the store.
    own_until: u64,
    /// Until then a cost of `refused_cost` or more, beyond what is granted, is refused without asking the store again …
    refused_until: u64,
    refused_cost: u64,
    /// … if the caller's limit is not larger, since its plan may be another one …
    refused_limit: u64,
    /// … and at that time the store would admit it, as far as the store knows.
    retry_at: u64,
    /// Until then grants may be used.
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
    /// The last message before the store may have lost what it was told, until it has responded to a later one.
    untold: Option<u64>,
    /// Whether a message without a waiting request is due or under way.
    pub(super) renewing: bool,
}

/// A request's first answer, by the lease alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) enum Standing {
    /// Grants cover the request.
    Covered,
    /// The store has refused lately: the wait in microseconds.
    Refused(u64),
    /// Only the store can tell.
    Unknown,
}

/// The circumstances in which the store did not respond.
#[derive(Clone, Copy, Debug)]
pub(in crate::limit) struct Outage {
    /// How long the store has been unavailable, in microseconds.
    pub(super) lasted: u64,
    /// The number of gateways that share the store.
    pub(super) gateways: u64,
}

impl Lease {
    pub(super) fn new(nonce: u32) -> Self {
        Self { nonce, ..Self::default() }
    }

    /// Returns the number that tells this record from an earlier one of the same counter.
    pub(in crate::limit) fn nonce(&self) -> u32 {
        self.nonce
    }

    /// Returns the generation of the counter; zero before the first response of the store.
    pub(in crate::limit) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it counts in the window of what was charged in that `generation`.
    pub(in crate::limit) fn counts_in(&self, generation: u64) -> bool {
        generation == 0 || generation == self.generation
    }

    /// Whether it says no more than a new one.
    pub(super) fn is_blank(&self) -> bool {
        self.pending == 0
            && self.used == 0
            && self.granted == 0
            && self.refused_until == 0
            && self.generation == 0
    }

    /// Whether the counter has recovered, and nothing is in flight.
    pub(super) fn is_over(&self, now: u64) -> bool {
        let in_flight = matches!(self.shape, Some(Shape::Slots { .. })) && self.used > 0;
        self.pending == 0
            && !self.renewing
            && !in_flight
            && self.refused_until <= now
            && match self.shape {
                Some(Shape::Window { .. }) => self.until <= now,
                // Debts that the store does not know, and leases, are told first.
                _ => self.until.max(self.own_until) <= now && self.granted == self.used,
            }
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

    /// Decides a request of this `cost`, whose caller has `limit` units, by the lease alone. With `exact`, grants are for
    /// the requests that asked.
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

    /// Records that of what is charged next, to a caller with `limit` units, the part beyond the grants is owed.
    pub(super) fn exceed(&mut self, cost: u64, limit: u64) {
        let paid = self.granted.max(self.used);
        let excess = self.used.saturating_add(cost).saturating_sub(paid);
        if excess > 0 {
            self.excess = self.excess.saturating_add(excess);
            self.excess_limit = limit;
        }
    }

    /// Holds the place of a request that asks the store.
    pub(super) fn reserve(&mut self, cost: u64) {
        self.pending = self.pending.saturating_add(cost);
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
            && self.target >= MIN_RENEWED_LEASE
            && self.free(now) <= self.target / 4
            && self.refused_until <= now
    }

    /// Decides a request that the store cannot decide, by this gateway's share of what was left at the last contact.
    ///
    /// # Errors
    ///
    /// How long to wait, in microseconds.
    pub(in crate::limit) fn fall_back(
        &mut self,
        shape: &Shape,
        now: u64,
        cost: u64,
        outage: Outage,
        fresh_nonce: impl FnOnce() -> u32,
    ) -> Result<u64, u64> {
        let gateways = outage.gateways.max(1);
        match *shape {
            Shape::Window { limit, end, next, .. } => {
                if self.until <= now {
                    let end = if end == 0 { now.saturating_add(next) } else { end.max(now + 1) };
                    if self.generation == 0 && self.until == 0 {
                        // The first message may still be decided: its grant is this record's.
                        self.until = end;
                    } else {
                        self.begin_alone(end, fresh_nonce());
                    }
                }
                let room = self.share(limit, outage);
                let counted = self.used.saturating_add(self.pending);
                let asked = counted.saturating_add(cost);
                // What is left of a larger plan's lease is not this caller's.
                let is_own = limit >= self.granted_by;
                let granted = if is_own { self.granted } else { self.granted.min(counted) };
                if asked <= granted.saturating_add(room) {
                    return Ok(0);
                }
                let wait = self.until - now;
                let own = asked.saturating_sub(granted);
                let is_used_up = self.total.saturating_add(own) > limit;
                // The share grows, and the store knows how much the other gateways have left.
                Err(if is_used_up { wait } else { wait.min(RETRY_MICROS) })
            }
            Shape::Rate { whole, interval, overdraft, .. } => {
                let debt = self.debt(interval, now);
                let interval = interval * gateways as f64;
                let burst = (shape.capacity() / gateways).max(1);
                let must = if overdraft { 1 } else { cost.min(burst) };
                let wait = debt + must as f64 * interval - whole.min(burst as f64 * interval);
                if wait > 0.5 {
                    return Err(wait.ceil() as u64);
                }
                Ok(now.saturating_add((debt + cost as f64 * interval) as u64))
            }
            Shape::Slots { limit } => {
                let room = if outage.lasted > SLOT_LIFETIME_MICROS {
                    (limit / gateways).max(1).saturating_sub(self.granted)
                } else {
                    self.share(limit, outage)
                };
                let asked = self.used.saturating_add(self.pending).saturating_add(cost);
                if asked <= self.granted.saturating_add(room) { Ok(0) } else { Err(RETRY_MICROS) }
            }
        }
    }

    /// Charges a request that was admitted without the store, with the result of [`Lease::fall_back`].
    pub(in crate::limit) fn charge_alone(&mut self, now: u64, cost: u64, own_until: u64) {
        self.own_until = self.own_until.max(own_until);
        self.charge(now, cost);
    }

    /// Returns how much this gateway may admit beyond its grants while the store is unavailable.
    ///
    /// A failure that only this gateway noticed soon ends; so the share is given out little by little.
    fn share(&self, limit: u64, outage: Outage) -> u64 {
        let gateways = outage.gateways.max(1);
        let share = match self.generation {
            0 => (limit / gateways).max(1),
            _ => limit.saturating_sub(self.total) / gateways,
        };
        if gateways == 1 && self.generation != 0 {
            return share;
        }
        let doublings = u32::try_from(outage.lasted / DOUBLING_MICROS).unwrap_or(u32::MAX).min(40);
        share.min(first_share(limit, gateways).saturating_mul(1 << doublings))
    }

    /// Begins a window that the store does not know yet.
    ///
    /// It is another record for the store, which may think that the old window still lasts.
    fn begin_alone(&mut self, end: u64, nonce: u32) {
        let (key, shape) = (self.key.take(), self.shape);
        let seq = self.seq;
        *self = Self { key, shape, nonce, until: end, seq, seen_seq: seq, ..Self::default() };
    }

    /// Returns the debt at a rate of one request per `interval`, in microseconds: with as many requests used as at the
    /// rate that the store has charged.
    fn debt(&self, interval: f64, now: u64) -> f64 {
        let scale = if self.interval > 0.0 { interval / self.interval } else { 1.0 };
        self.until.max(self.own_until).saturating_sub(now) as f64 * scale
    }

    /// Whether nothing is in flight, and the store knows all that this gateway has admitted, and has back what it has not.
    pub(super) fn is_settled(&self) -> bool {
        let in_flight = matches!(self.shape, Some(Shape::Slots { .. })) && self.used > 0;
        self.pending == 0 && self.used == self.granted && !in_flight
    }

    /// Returns the message about this counter, and counts it.
    pub(super) fn message(
        &mut self,
        key: &Arc<str>,
        shape: Shape,
        purpose: Purpose,
        gateways: u64,
        exact: bool,
    ) -> Message {
        self.seq += 1;
        let granted = self.granted;
        if purpose.lower {
            // From now on no request uses it, and no older response brings it back.
            self.granted = granted.min(self.used.saturating_add(self.pending));
            self.seen_seq = self.seq;
            self.expires = false;
        }
        let target = if exact || purpose.lower { 0 } else { self.target.max(1) };
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
        }
    }

    /// Takes over a response to `message`; older ones than already seen say nothing new.
    pub(super) fn apply(&mut self, message: &Message, reply: &Reply, now: u64, gateways: u64) {
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
        if let Shape::Window { .. } = message.shape {
            let other_window = self.generation != 0 && self.generation != reply.generation;
            if other_window || (self.generation == 0 && self.until <= now) {
                self.used = 0;
            }
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
        self.target = target.clamp(FIRST_LEASE.min(most), most);
    }

    /// Records that the store may have lost what it was told.
    pub(super) fn lost(&mut self) {
        self.untold = Some(self.seq);
        self.renewing = false;
    }

    /// Returns the purpose of a message that no request causes, if one is due.
    pub(super) fn due(&mut self, now: u64) -> Option<Purpose> {
        if self.renewing {
            return None;
        }
        let idle = now.saturating_sub(self.last_use);
        let unused = self.granted > self.used.saturating_add(self.pending);
        let (tell, lower) = (Purpose::default(), Purpose { lower: true, ..Purpose::default() });
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
                Some(Purpose { close: true, ..lower })
            }
            _ => None,
        };
        if due.is_some() {
            self.last_told = now;
        }
        due
    }

    /// Gives up grants that have expired: of a rate, where they would come on top of a later burst, and of a quota, where
    /// the store may have granted them to others.
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

    /// Returns the remaining allowance of a caller with `limit` units, whose limit has this `shape`, as far as this gateway
    /// knows, and when it is renewed, in microseconds.
    pub(in crate::limit) fn balance(
        &self,
        limit: u64,
        shape: impl FnOnce() -> Shape,
        now: u64,
    ) -> (u64, u64) {
        // What was used beyond the grants is not in the store's numbers yet.
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

/// Returns the largest lease of one counter: the most that is lost with a killed gateway, and granted a second time
/// after the store has lost its data.
pub(in crate::limit) fn max_lease(shape: &Shape, gateways: u64) -> u64 {
    let gateways = gateways.max(1);
    match *shape {
        Shape::Window { limit, .. } | Shape::Slots { limit } => {
            (limit / LEASES_OF_A_LIMIT / gateways).clamp(1, MAX_LEASE)
        }
        Shape::Rate { interval, keeps, .. } => {
            let soon = (RATE_LEASE_MICROS as f64 / interval) as u64;
            let most = (shape.capacity() / LEASES_OF_A_LIMIT / gateways).max(1);
            if keeps { most } else { soon }.clamp(1, MAX_LEASE)
        }
    }
}

/// Returns by how much all gateways together may exceed one counter: a lease of each, if the store loses its data, and
/// what each may admit in the first moments of an outage.
pub(in crate::limit) fn overrun_bound(shape: &Shape, gateways: u64) -> u64 {
    let each = max_lease(shape, gateways) + first_share(shape.capacity(), gateways);
    each.saturating_mul(gateways).min(shape.capacity())
}

/// Returns what a gateway may admit beyond its grants in the first moments of an outage.
pub(in crate::limit) fn first_share(limit: u64, gateways: u64) -> u64 {
    (limit / 100 / gateways.max(1)).max(16)
}

/// A lease is at most this part of what is left for each gateway, so that it shrinks to single requests at the end.
const PARTS_OF_A_SHARE: u64 = 4;
/// A lease is at most this part of the whole limit for each gateway.
const LEASES_OF_A_LIMIT: u64 = 500;
const MAX_LEASE: u64 = 10_000;
const FIRST_LEASE: u64 = 4;
/// Smaller leases are not renewed ahead.
const MIN_RENEWED_LEASE: u64 = 8;
/// A lease that was used up within this time doubles …
const SHORT_LEASE_MICROS: u64 = 200_000;
/// … and one that lasted longer than this is halved.
const LONG_LEASE_MICROS: u64 = 2_000_000;
/// The time within which grants of a rate are used or lost.
const RATE_LEASE_MICROS: u64 = 50_000;
/// How long a refusal is remembered at most: other gateways return leases.
const REFUSAL_MICROS: u64 = 250_000;
/// The share of an outage doubles in this time.
const DOUBLING_MICROS: u64 = 100_000;
/// The wait for a place among requests in flight, an estimate.
const RETRY_MICROS: u64 = 1_000_000;
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
