//! Spike arrest and rolling quotas: the generic cell rate algorithm, by governor.
//!
//! GCRA needs no counter, only the theoretical arrival time: when the last admitted request
//! would have come at an even rate. A request may come early by as much as
//! the burst allows; refused requests do not change that time.
//!
//! `governor` computes the decision on state that is stored here: its own keyed store grows without bound, cannot be
//! read without charging, and cannot be locked together with other limits. So its limiter lives for one decision on the
//! stack, around a counter of `counter_table` and a clock that stands still.

use core::cell::Cell as Slot;
use core::num::{NonZeroU32, NonZeroU64};
use core::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use crate::limit::counters::counter::Counter;
use crate::limit::shared::Shape;

/// An even rate with a burst. Times are monotonic, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(in crate::limit) struct Gcra {
    quota: Quota,
    /// The time between two requests at the even rate, in nanoseconds, at least 1.
    interval: u64,
    /// The time to refill a whole burst, in nanoseconds.
    whole: u64,
    /// The maximum debt, in nanoseconds ahead of now.
    max_debt: u64,
}

impl Gcra {
    /// Creates a rate of one request per `interval`, at least a nanosecond, with `burst`.
    pub(in crate::limit) fn new(interval: Duration, burst: NonZeroU32) -> Self {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).clamp(1, MAX_NANOS);
        let quota = Quota::with_period(Duration::from_nanos(interval))
            .map_or(Quota::per_second(burst), |quota| quota.allow_burst(burst));
        let whole = interval.saturating_mul(burst.get().into()).min(MAX_NANOS);
        Self { quota, interval, whole, max_debt: MAX_NANOS }
    }

    /// Bounds the debt of one request to `debt`, or to the refill time of a burst if that is longer.
    pub(in crate::limit) fn with_max_debt(self, debt: Duration) -> Self {
        let debt = u64::try_from(debt.as_nanos()).unwrap_or(MAX_NANOS).clamp(self.whole, MAX_NANOS);
        Self { max_debt: debt, ..self }
    }

    /// Returns the rate in the form of a shared store, see [`Shape::Rate`].
    pub(in crate::limit) fn shape(&self, overdraft: bool, keeps: bool) -> Shape {
        let micros = |nanos: u64| nanos as f64 / 1_000.0;
        Shape::Rate {
            whole: micros(self.whole),
            interval: micros(self.interval),
            max_debt: micros(self.max_debt),
            overdraft,
            keeps,
        }
    }

    /// Admits `cost` requests if the burst has room, or returns how long to wait, in nanoseconds.
    pub(in crate::limit) fn admit(
        &self,
        counter: Counter,
        now: u64,
        cost: u64,
    ) -> Result<Counter, u64> {
        let Some(cost) = NonZeroU64::new(cost) else { return Ok(counter) };
        let cost = match NonZeroU32::try_from(cost) {
            Ok(cost) if cost <= self.quota.burst_size() => cost,
            // A cost above the burst never fits; the wait is a whole refill, and the answer will be the same.
            // governor would find that out too, but only after a product that may overflow.
            _ => return Err(self.whole),
        };
        let limiter = self.lend(counter, now);
        match limiter.check_n(cost) {
            Ok(Ok(())) => Ok(self.counter(limiter.into_state_store().0.get())),
            Ok(Err(not_until)) => Err(nanos(not_until.wait_time_from(now.into()))),
            Err(_insufficient_capacity) => Err(self.whole),
        }
    }

    /// Admits a request if one may pass, and charges its whole `weight` as debt; else returns how long to wait.
    pub(in crate::limit) fn admit_overdraft(
        &self,
        counter: Counter,
        now: u64,
        weight: u64,
    ) -> Result<Counter, u64> {
        let limiter = self.lend(counter, now);
        match limiter.check() {
            Ok(()) => {
                let counter = self.counter(limiter.into_state_store().0.get());
                Ok(self.charge(counter, now, weight.saturating_sub(1)))
            }
            Err(not_until) => Err(nanos(not_until.wait_time_from(now.into()))),
        }
    }

    /// Returns the counter after charging `weight` more, whether or not it fits.
    pub(in crate::limit) fn charge(&self, counter: Counter, now: u64, weight: u64) -> Counter {
        let counter = self.converted(counter, now);
        let weight = self.interval.saturating_mul(weight);
        let until = counter.until.max(now).saturating_add(weight);
        // A counter that another rate has charged further keeps its debt.
        let max = now.saturating_add(self.max_debt).max(counter.until);
        self.counter(until.min(max))
    }

    /// Returns the counter after giving `weight` back.
    pub(in crate::limit) fn refund(&self, counter: Counter, now: u64, weight: u64) -> Counter {
        let until = self.converted(counter, now).until;
        let until = until.saturating_sub(self.interval.saturating_mul(weight));
        if until > now { self.counter(until) } else { Counter::default() }
    }

    /// Returns the number of requests that would be admitted at once now.
    pub(in crate::limit) fn left(&self, counter: Counter, now: u64) -> u64 {
        self.whole.saturating_sub(self.debt(counter, now)) / self.interval
    }

    /// Returns how long until the next request is admitted, in nanoseconds.
    pub(in crate::limit) fn next(&self, counter: Counter, now: u64) -> u64 {
        (self.debt(counter, now) + self.interval).saturating_sub(self.whole)
    }

    /// Returns how long until the whole burst is refilled, in nanoseconds.
    pub(in crate::limit) fn debt(&self, counter: Counter, now: u64) -> u64 {
        self.converted(counter, now).until.saturating_sub(now)
    }

    /// Converts a counter that was charged under another rate, keeping the number of requests used. A
    /// rate that changes, in the file or with a caller's plan, neither forgives nor multiplies them.
    pub(in crate::limit) fn converted(&self, counter: Counter, now: u64) -> Counter {
        if counter.used == self.interval || counter.used == 0 || counter.until <= now {
            return counter;
        }
        let debt = u128::from(counter.until - now) * u128::from(self.interval);
        let debt = debt.div_ceil(u128::from(counter.used));
        let debt = u64::try_from(debt).unwrap_or(MAX_NANOS).min(MAX_NANOS);
        self.counter(now.saturating_add(debt))
    }

    fn counter(&self, until: u64) -> Counter {
        Counter { until, used: self.interval }
    }

    fn lend(
        &self,
        counter: Counter,
        now: u64,
    ) -> RateLimiter<NotKeyed, BorrowedState, FixedClock, NoOpMiddleware<Nanos>> {
        let limiter = RateLimiter::new(
            self.quota,
            BorrowedState(Slot::new(self.converted(counter, now).until)),
            FixedClock::default(),
        );
        // governor counts from its creation, which here is the clock's zero.
        limiter.clock().0.set(now);
        limiter
    }
}

/// One key's counter, lent to governor for one decision. The default counts as recovered.
struct BorrowedState(Slot<u64>);

impl StateStore for BorrowedState {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, until) = decide(Some(self.0.get().into()))?;
        self.0.set(until.into());
        Ok(outcome)
    }
}

/// A clock that stands still.
#[derive(Default)]
struct FixedClock(Slot<u64>);

impl Clock for FixedClock {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.get())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(MAX_NANOS)
}

/// 146 years: longer than any uptime, and four times of it fit where governor adds without a check.
const MAX_NANOS: u64 = u64::MAX / 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limit::algorithms::algorithm::Algorithm;
    use crate::limit::algorithms::rate::{Kind, Rate, SpikeArrest, Unit};

    #[test]
    fn thirty_a_minute_is_one_every_two_seconds() {
        let mut arrest = Arrest::new(Duration::from_secs(2), 1);

        assert_eq!(arrest.at(0.0), Ok(()));
        assert_eq!(arrest.at(1.999), Err(0.001));
        assert_eq!(arrest.at(2.000), Ok(()));
        assert_eq!(arrest.weighs(4.0, 3), Ok(()));
        assert_eq!(arrest.at(9.9), Err(0.1));
        assert_eq!(arrest.at(10.0), Ok(()));
    }

    #[test]
    fn refuses_the_thirty_first_in_a_minute_of_thirty() {
        let mut arrest = Arrest::new(Duration::from_secs(2), 30);

        (0..30).for_each(|_| assert_eq!(arrest.at(0.0), Ok(())));
        assert_eq!(arrest.at(0.0), Err(2.0));
        assert_eq!(arrest.at(2.0), Ok(()));
    }

    /// One request with a huge length would block a rate for a century.
    #[test]
    fn the_debt_of_one_request_is_bounded() {
        let gcra = Gcra::new(Duration::from_millis(1), NonZeroU32::MIN);
        let gcra = gcra.with_max_debt(Duration::from_secs(60));
        let fresh = Counter { until: 0, used: 0 };

        let counter = gcra.admit_overdraft(fresh, 1, u64::MAX).expect("it is open");
        assert_eq!(gcra.debt(counter, 1), 60_000_000_000);
        assert_eq!(gcra.debt(gcra.charge(counter, 1, u64::MAX), 1), 60_000_000_000);
        assert_eq!(gcra.debt(gcra.admit_overdraft(fresh, 1, 3).expect("it is open"), 1), 3_000_000);
        let slow = Gcra::new(Duration::from_secs(600), NonZeroU32::MIN);
        let slow = slow.with_max_debt(Duration::from_secs(60));
        assert_eq!(slow.debt(slow.charge(fresh, 1, 9), 1), 600_000_000_000);
    }

    #[test]
    fn refused_requests_change_no_state() {
        let mut arrest = Arrest::new(Duration::from_secs(2), 1);
        assert_eq!(arrest.at(0.0), Ok(()));
        (0..1_000).for_each(|_| assert_eq!(arrest.at(1.0), Err(1.0)));

        assert_eq!(arrest.at(2.0), Ok(()));
    }

    #[test]
    fn weight_two_at_ten_a_minute_leaves_five_and_weight_five_leaves_two() {
        for (weight, max) in [(2, 5), (5, 2)] {
            let mut arrest = Arrest::new(Duration::from_secs(6), 1);
            let admitted =
                (0..60).filter(|second| arrest.weighs(f64::from(*second), weight).is_ok());
            assert_eq!(admitted.count(), max);
        }
    }

    #[test]
    fn a_fixed_cost_waits_until_all_of_it_fits() {
        let gcra = Gcra::new(Duration::from_secs(1), NonZeroU32::new(5).unwrap());
        let counter = gcra.admit(NONE, SECOND, 3).unwrap();

        assert_eq!(gcra.left(counter, SECOND), 2);
        assert_eq!(gcra.admit(counter, SECOND, 3), Err(SECOND));
        assert!(gcra.admit(counter, 2 * SECOND, 3).is_ok());
    }

    #[test]
    fn a_cost_above_the_burst_is_refused() {
        let gcra = Gcra::new(Duration::from_secs(1), NonZeroU32::new(5).unwrap());

        assert_eq!(gcra.admit(NONE, 0, 6), Err(5 * SECOND));
        assert_eq!(gcra.admit(NONE, 0, u64::MAX), Err(5 * SECOND));

        let month = 30 * 86_400;
        let gcra = Gcra::new(Duration::from_secs(month), NonZeroU32::MIN);
        assert_eq!(gcra.admit(NONE, 0, u32::MAX.into()), Err(month * SECOND));
    }

    #[test]
    fn the_heaviest_request_does_not_wrap_around() {
        let gcra = Gcra::new(Duration::from_secs(86_400), NonZeroU32::MIN);
        let counter = gcra.admit_overdraft(NONE, 0, u64::MAX).unwrap();

        assert!(gcra.admit_overdraft(counter, MAX_NANOS / 2, 1).is_err());
        assert!(gcra.admit(counter, MAX_NANOS / 2, 1).is_err());
    }

    #[test]
    fn says_what_is_left_and_when_more_comes() {
        let gcra = Gcra::new(Duration::from_secs(1), NonZeroU32::new(3).unwrap());
        assert_eq!((gcra.left(NONE, 0), gcra.debt(NONE, 0)), (3, 0));

        let counter = gcra.admit(NONE, 0, 3).unwrap();
        assert_eq!(
            (gcra.left(counter, 0), gcra.debt(counter, 0), gcra.next(counter, 0)),
            (0, 3 * SECOND, SECOND)
        );

        let later = SECOND + SECOND / 2;
        assert_eq!((gcra.left(counter, later), gcra.next(counter, later)), (1, 0));
    }

    #[test]
    fn another_rate_keeps_the_number_of_used_requests() {
        let month = |count: u64| {
            let interval = Duration::from_nanos(30 * 86_400 * SECOND / count);
            Gcra::new(interval, NonZeroU32::new(count as u32).unwrap())
        };
        let used = month(60).admit(NONE, 0, 45).unwrap();

        assert_eq!(month(60).left(used, 0), 15);
        assert_eq!(month(100).left(used, 0), 55);
        assert_eq!(month(50).left(used, 0), 5);
        assert_eq!(month(10).left(used, 0), 0);
        let more = month(100).admit(used, 0, 55).unwrap();
        assert_eq!((month(100).left(more, 0), month(60).left(more, 0)), (0, 0));
        assert_eq!(month(120).left(more, 0), 20);
    }

    #[test]
    fn a_refused_request_pays_its_debt_at_the_rate_that_refused_it() {
        let rule = |interval, burst| {
            let spike = Rate::new(1, interval).and_then(|rate| SpikeArrest::new(rate, Some(burst)));
            Algorithm::new(&Kind::Rate(spike.unwrap()))
        };
        let (slow, fast) = (rule(Unit::Minute, 20), rule(Unit::Second, 20));
        let mut counter = slow.admit(&mut Counter::default(), SECOND, 20, false).unwrap();

        assert_eq!(fast.admit(&mut counter, SECOND, 1, false), Err(SECOND));

        assert!(fast.admit(&mut counter, 2 * SECOND, 1, false).is_ok());
    }

    proptest! {
        /// Used requests are the same at every rate, within the rounding of one request per change.
        #[test]
        fn a_rate_that_changes_with_every_request_keeps_what_was_used(
            requests in prop::collection::vec((1_u64..50, 1_u64..9), 1..40),
        ) {
            let mut counter = NONE;
            let mut used = 0;
            for (interval, cost) in requests {
                let gcra = Gcra::new(Duration::from_nanos(interval * SECOND), NonZeroU32::new(1_000).unwrap());
                counter = gcra.admit(counter, 0, cost).unwrap();
                used += cost;

                let left = gcra.left(counter, 0);
                prop_assert!((999 - used..=1_000 - used).contains(&left), "{left} left, {used} used");
            }
        }

        #[test]
        fn a_refund_undoes_a_charge(weight in 0_u64..1_000, before in 0_u64..1_000) {
            let gcra = Gcra::new(Duration::from_secs(7), NonZeroU32::new(5).unwrap());
            let counter = gcra.charge(NONE, 1, before);

            let back = gcra.refund(gcra.charge(counter, 1, weight), 1, weight);
            prop_assert_eq!(gcra.debt(back, 1), gcra.debt(counter, 1));
        }

        /// The model is a bucket of `burst` tokens in nanoseconds, filled evenly: an equivalent of GCRA.
        #[test]
        fn agrees_with_a_bucket_of_tokens(
            interval in 1_u64..2_000,
            burst in 1_u32..20,
            requests in prop::collection::vec((0_u64..3_000, 1_u64..8, any::<bool>()), 1..200),
        ) {
            let gcra = Gcra::new(Duration::from_nanos(interval), NonZeroU32::new(burst).unwrap());
            let full = i128::from(interval) * i128::from(burst);
            let (mut tokens, mut now, mut counter) = (full, 0, NONE);
            for (gap, cost, open) in requests {
                now += gap;
                tokens = (tokens + i128::from(gap)).min(full);
                let price = i128::from(interval) * i128::from(cost);
                let needed = if open { i128::from(interval) } else { price };
                let expected = tokens >= needed;

                let outcome = if open { gcra.admit_overdraft(counter, now, cost) } else { gcra.admit(counter, now, cost) };
                prop_assert_eq!(outcome.is_ok(), expected);
                match outcome {
                    Ok(next) => {
                        tokens -= price;
                        counter = next;
                    }
                    Err(wait) if needed <= full => prop_assert_eq!(i128::from(wait), needed - tokens),
                    Err(wait) => prop_assert_eq!(i128::from(wait), full),
                }
                prop_assert_eq!(i128::from(gcra.left(counter, now)), (tokens / i128::from(interval)).max(0));
            }
        }
    }

    /// One key, with times in seconds.
    struct Arrest {
        gcra: Gcra,
        counter: Counter,
    }

    impl Arrest {
        fn new(interval: Duration, burst: u32) -> Self {
            Self { gcra: Gcra::new(interval, NonZeroU32::new(burst).unwrap()), counter: NONE }
        }

        fn at(&mut self, second: f64) -> Result<(), f64> {
            self.weighs(second, 1)
        }

        fn weighs(&mut self, second: f64, weight: u64) -> Result<(), f64> {
            let now = (second * SECOND as f64).round() as u64;
            let admitted = self.gcra.admit_overdraft(self.counter, now, weight);
            self.counter = admitted.unwrap_or(self.counter);
            admitted.map(drop).map_err(|wait| wait as f64 / SECOND as f64)
        }
    }

    const NONE: Counter = Counter { until: 0, used: 0 };
    const SECOND: u64 = 1_000_000_000;
}
