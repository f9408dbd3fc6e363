//! A lease while the store does not respond, or knows no window yet.

use super::Lease;
use crate::limit::shared::lease_size::first_share;
use crate::limit::shared::protocol::{SLOT_LIFETIME_MICROS, Shape};

/// The circumstances in which the store did not respond.
#[derive(Clone, Copy, Debug)]
pub(in crate::limit) struct Outage {
    /// How long the store has been unavailable, in microseconds.
    pub(in crate::limit::shared) lasted: u64,
    /// The number of gateways that share the store.
    pub(in crate::limit::shared) gateways: u64,
    /// The cost of the limit's smallest request.
    pub(in crate::limit::shared) least_cost: u64,
}

impl Lease {
    /// Decides a request that the store cannot decide, by this gateway's share of the amount that was left at the last
    /// contact.
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
            Shape::Window { limit, .. } => {
                self.begin_window(shape, now, fresh_nonce);
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
                let asked = must as f64 * interval;
                let wait = debt + asked - whole.min(burst as f64 * interval);
                // What was admitted since the last contact is a share of the burst, which grows.
                let own = self.own_until.saturating_sub(self.until.max(now)) as f64;
                let first = self.first_part(shape.capacity(), outage) as f64 * interval;
                let wait =
                    if self.knows_all(gateways) { wait } else { wait.max(own + asked - first) };
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
    /// A failure that only this gateway notices ends soon, so the share is granted in growing parts.
    fn share(&self, limit: u64, outage: Outage) -> u64 {
        let gateways = outage.gateways.max(1);
        let share = match self.generation {
            0 => (limit / gateways).max(outage.least_cost),
            _ => limit.saturating_sub(self.total) / gateways,
        };
        if self.knows_all(gateways) { share } else { share.min(self.first_part(limit, outage)) }
    }

    /// Whether there is no other gateway, and this one knows the counter.
    fn knows_all(&self, gateways: u64) -> bool {
        gateways == 1 && self.generation != 0
    }

    /// Returns the part of `limit` that this gateway may admit without the store by now.
    fn first_part(&self, limit: u64, outage: Outage) -> u64 {
        let doublings = u32::try_from(outage.lasted / DOUBLING_MICROS).unwrap_or(u32::MAX).min(40);
        let first = first_share(limit, outage.gateways, outage.least_cost);
        first.saturating_mul(1 << doublings).saturating_sub(self.told_alone)
    }

    /// Begins a window if none lasts, so that the next charge is reported to the store as use of that window.
    pub(in crate::limit::shared) fn begin_window(
        &mut self,
        shape: &Shape,
        now: u64,
        fresh_nonce: impl FnOnce() -> u32,
    ) {
        let Shape::Window { end, next, .. } = *shape else { return };
        if self.until > now {
            return;
        }
        let end = if end == 0 { now.saturating_add(next) } else { end.max(now + 1) };
        if self.generation == 0 && self.until == 0 {
            // The first message may still be decided: its grant is this record's.
            self.until = end;
        } else {
            self.begin_alone(end, fresh_nonce());
        }
    }

    /// Begins a window that the store does not know yet.
    ///
    /// For the store it is another record: in its state, the old window may still last.
    fn begin_alone(&mut self, end: u64, nonce: u32) {
        let (key, shape) = (self.key.take(), self.shape);
        let seq = self.seq;
        *self = Self { key, shape, nonce, until: end, seq, seen_seq: seq, ..Self::default() };
    }
}

/// The share of an outage doubles in this time.
const DOUBLING_MICROS: u64 = 100_000;
/// The wait for a place among requests in flight, an estimate.
const RETRY_MICROS: u64 = 1_000_000;
