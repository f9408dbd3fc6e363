//! Messages between a gateway and the store that it shares limits with.
//!
//! A message is about one counter. Its amounts are absolute: used is all that this gateway has admitted by the counter,
//! granted is all that the store has granted to it. So a repeated or overtaken message changes nothing, the next
//! response replaces a lost one, and a store that has lost its data recovers it from the next messages.

use std::sync::Arc;

/// One limit as the store computes it. Times are in microseconds of [`super::store_epoch`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::limit) enum Shape {
    /// An allowance per window.
    Window {
        /// The allowance.
        limit: u64,
        /// The end of the calendar window around now; zero if a window begins with its first request.
        end: u64,
        /// The end of the calendar window after that, or the length of a window that begins with its first request.
        next: u64,
        /// The longest time from now until the end of a window that a correct clock began.
        span: u64,
        /// Whether what exceeds the allowance is owed by the next window.
        debts: bool,
    },
    /// A rate (GCRA).
    Rate {
        /// The time to refill the whole burst.
        whole: f64,
        /// The time per request, above zero.
        interval: f64,
        /// The maximum debt of a request.
        max_debt: f64,
        /// Whether a request is admitted if there is room for one unit, and its whole cost charged as debt.
        overdraft: bool,
        /// Whether unused leases keep their value: those of a quota do, those of a spike arrest expire.
        keeps: bool,
    },
    /// Requests in flight.
    Slots {
        /// The maximum number.
        limit: u64,
    },
}

impl Shape {
    /// Returns how many requests the whole limit admits at once.
    pub(super) fn capacity(&self) -> u64 {
        match *self {
            Self::Window { limit, .. } | Self::Slots { limit } => limit,
            Self::Rate { whole, interval, .. } => (whole / interval).round() as u64,
        }
    }

    /// Returns how long the store keeps a lease that is not renewed, in microseconds; zero if leases have no value
    /// later, or none are granted.
    pub(super) fn lease_lifetime(&self) -> u64 {
        match self {
            Self::Window { .. } | Self::Rate { keeps: true, .. } => LEASE_LIFETIME_MICROS,
            Self::Rate { .. } | Self::Slots { .. } => 0,
        }
    }
}

/// The gateway that sends messages, as it presents itself to the store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Caller {
    /// The number of gateways that share the store, as far as it knows.
    pub(super) gateways: u64,
    /// The [`Response::since`] since which it has reported all that it remembers; zero before that.
    pub(super) reported: u64,
}

/// The purpose of a message.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct MessagePurpose {
    /// Requests wait for the decision: `pending` must be granted, or nothing is.
    pub(super) ask: bool,
    /// The limit is a dry run: where it refuses, other limits of the request grant all the same.
    pub(super) dry_run: bool,
    /// Grants beyond what is used, pending and desired are given back; with `ask`, if the request is refused, also what it
    /// would have used of them.
    pub(super) lower: bool,
    /// The gateway forgets the counter: its field is removed.
    pub(super) close: bool,
    /// The counter is reset, for all gateways.
    pub(super) reset: bool,
}

impl MessagePurpose {
    /// The amount by which a lease is larger than desired is given back.
    pub(super) const RETURN: Self = Self { close: false, ..Self::LAST };
    /// The last message about a lease: what it has not used is given back.
    pub(super) const LAST: Self =
        Self { ask: false, dry_run: false, lower: true, close: true, reset: false };
}

/// A message about one counter.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Message {
    /// The counter's key in the store.
    pub(super) key: Arc<str>,
    /// The limit.
    pub(super) shape: Shape,
    /// The purpose.
    pub(super) purpose: MessagePurpose,
    /// Tells this gateway's successive records of one counter apart.
    pub(super) nonce: u32,
    /// The order of this gateway's messages about the counter.
    pub(super) seq: u64,
    /// All that this gateway has admitted.
    pub(super) used: u64,
    /// The cost of requests that wait for a decision.
    pub(super) pending: u64,
    /// All that the store has granted, as far as this gateway knows.
    pub(super) granted: u64,
    /// The desired lease.
    pub(super) target: u64,
    /// The lease is at most the remaining allowance divided by this.
    pub(super) shares: u64,
    /// The generation of the counter as far as this gateway knows; zero without contact.
    pub(super) generation: u64,
    /// The end of the window, or the theoretical arrival time, as far as this gateway knows.
    pub(super) until: u64,
    /// All that the store has granted to all gateways, as far as this gateway knows.
    pub(super) total: u64,
    /// The use beyond the grants that was charged from responses; its part above the limit becomes debt.
    pub(super) excess: u64,
    /// The limit of the last request that cost more than was granted.
    pub(super) excess_limit: u64,
    /// The cost of the request that asks, or of the last one that did, above zero: a lease is a multiple of it.
    pub(super) cost: u64,
    /// The debt of the next window, as far as this gateway knows, and the limit that it exceeds.
    pub(super) debt: u64,
    pub(super) debt_limit: u64,
}

impl Message {
    /// Returns a message that asks for one unit of the counter `key`, in windows of a second.
    pub(super) fn probe(key: &Arc<str>) -> Self {
        let second = 1_000_000;
        Self {
            key: Arc::clone(key),
            shape: Shape::Window { limit: 1, end: 0, next: second, span: second, debts: false },
            purpose: MessagePurpose { ask: true, ..MessagePurpose::default() },
            nonce: 0,
            seq: 1,
            used: 0,
            pending: 1,
            granted: 0,
            target: 0,
            shares: 1,
            generation: 0,
            until: 0,
            total: 0,
            excess: 0,
            excess_limit: 0,
            cost: 1,
            debt: 0,
            debt_limit: 0,
        }
    }

    /// Returns the part of the grants that the store counts as used after this message: it does not expire.
    pub(super) fn counted(&self, reply: &CounterReply) -> u64 {
        let used = if reply.continues { self.used } else { 0 };
        let pending = if reply.status == Status::Granted { self.pending } else { 0 };
        used.saturating_add(pending)
    }

    /// Writes the message in the form that `decide.lua` reads.
    pub(super) fn encode(&self, to: &mut Vec<Vec<u8>>) {
        let mut put = |text: String| to.push(text.into_bytes());
        let mut flags = String::new();
        let overdraft = matches!(self.shape, Shape::Rate { overdraft: true, .. });
        let debts = matches!(self.shape, Shape::Window { debts: true, .. });
        for (set, flag) in [
            (self.purpose.ask, 'a'),
            (self.purpose.lower, 'l'),
            (self.purpose.close, 'x'),
            (self.purpose.reset, 'r'),
            (self.purpose.dry_run, 'n'),
            (overdraft, 'o'),
            (debts, 'd'),
        ] {
            if set {
                flags.push(flag);
            }
        }
        let (kind, limit, numbers) = match self.shape {
            Shape::Window { limit, end, next, span, .. } => {
                ("w", limit, [end.to_string(), next.to_string(), span.to_string()])
            }
            Shape::Rate { whole, interval, max_debt, .. } => {
                ("g", 0, [whole, interval, max_debt].map(|number| format!("{number:?}")))
            }
            Shape::Slots { limit } => {
                ("c", limit, [SLOT_LIFETIME_MICROS.to_string(), "0".into(), "0".into()])
            }
        };
        put(kind.to_owned());
        put(self.nonce.to_string());
        put(self.seq.to_string());
        put(flags);
        put(limit.to_string());
        numbers.into_iter().for_each(&mut put);
        for number in [
            self.used,
            self.pending,
            self.granted,
            self.target,
            self.shares.max(1),
            self.generation,
            self.until,
            self.total,
        ] {
            put(number.to_string());
        }
        for number in [
            self.shape.lease_lifetime(),
            self.excess,
            self.excess_limit,
            self.cost,
            self.debt,
            self.debt_limit,
        ] {
            put(number.to_string());
        }
    }
}

/// The decision about one message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Status {
    /// The limit has no room.
    Refused,
    /// Granted.
    Granted,
    /// There is room, but another limit of the request has none.
    NotCharged,
    /// The store has lost its data, and waits for the reports of gateways.
    Undecided,
}

/// The store's response to one message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct CounterReply {
    pub(super) status: Status,
    /// The generation of the counter.
    pub(super) generation: u64,
    /// The end of the window, or the theoretical arrival time.
    pub(super) until: u64,
    /// All grants to all gateways.
    pub(super) total: u64,
    /// All grants to this gateway.
    pub(super) granted: u64,
    /// How long a refused request has to wait.
    pub(super) wait: u64,
    /// Whether the use in the message counts: neither a reset nor the end of its window has ended it.
    pub(super) continues: bool,
    /// The debt of the next window, and the limit that it exceeds.
    pub(super) debt: u64,
    pub(super) debt_limit: u64,
}

/// The store's response to a batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Response {
    /// The store's time.
    pub(super) now: u64,
    /// The time since which the store has its data.
    pub(super) since: u64,
    /// One reply for each message.
    pub(super) replies: Vec<CounterReply>,
}

impl Response {
    /// Decodes the numbers that `decide.lua` returns; `None` unless they are `count` replies.
    pub(super) fn decode(numbers: &[i64], count: usize) -> Option<Self> {
        let ([now, since], rest) = numbers.split_first_chunk()?;
        let (replies, left) = rest.as_chunks::<9>();
        if !left.is_empty() || replies.len() != count {
            return None;
        }
        let amount = |number: i64| u64::try_from(number).unwrap_or(0);
        let reply = |numbers: &[i64; 9]| {
            let [status, generation, until, total, granted, wait, continues, debt, debt_limit] =
                *numbers;
            CounterReply {
                status: match status {
                    1 => Status::Granted,
                    2 => Status::NotCharged,
                    3 => Status::Undecided,
                    _ => Status::Refused,
                },
                generation: amount(generation),
                until: amount(until),
                total: amount(total),
                granted: amount(granted),
                wait: amount(wait),
                continues: continues == 1,
                debt: amount(debt),
                debt_limit: amount(debt_limit),
            }
        };
        let replies = replies.iter().map(reply).collect();
        Some(Self { now: amount(*now), since: amount(*since), replies })
    }
}

/// The lifetime of a lease of a quota that no gateway renews: such as one of a killed gateway.
pub(super) const LEASE_LIFETIME_MICROS: u64 = 5_000_000;
/// The lifetime of a slot in flight that no gateway renews: such as one of a killed gateway.
pub(super) const SLOT_LIFETIME_MICROS: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_has_one_reply_for_each_message() {
        let numbers = [5, 4, 1, 2, 3, 4, 5, 6, 1, 8, 9, 0, 2, 3, 4, 5, 7, 0, 0, 0];
        let response = Response::decode(&numbers, 2).expect("two replies");

        assert_eq!((response.now, response.since), (5, 4));
        assert_eq!(response.replies[0].status, Status::Granted);
        assert_eq!((response.replies[0].debt, response.replies[0].debt_limit), (8, 9));
        assert_eq!((response.replies[1].status, response.replies[1].wait), (Status::Refused, 7));
        assert!(response.replies[0].continues && !response.replies[1].continues);
        assert_eq!(Response::decode(&numbers, 1), None);
        assert_eq!(Response::decode(&numbers[..19], 2), None);
        assert_eq!(Response::decode(&[], 0), None);
    }
}
