//! Quotas in fixed windows: "10 000 requests a day, from midnight to midnight".
//!
//! A *spike arrest* protects an upstream, and smooths traffic. A *quota* is an allowance of a client, and counts it:
//! all of a window may be used in its first second. `calendar`, or the key's first request, determines where a window
//! begins and ends.
//!
//! A cost that is known only afterwards may exceed the allowance. The excess is debt: following windows pay it, each
//! with its whole allowance, before the key has one again. A counter in debt therefore lasts beyond its window.

use core::num::NonZeroU64;

use super::calendar::Calendar;
use crate::limit::counters::counter::{Counter, MAX_OWED_WINDOWS};
use crate::limit::shared::{Shape, from_epoch_nanos, to_epoch_nanos};

/// An allowance per window.
#[derive(Debug)]
pub(in crate::limit) struct FixedWindow {
    allowance: NonZeroU64,
    ends: WindowEnds,
}

/// The end of a window.
#[derive(Debug)]
pub(in crate::limit) enum WindowEnds {
    /// After this many nanoseconds.
    After(u64),
    /// At the end of the calendar window.
    With(Calendar),
}

impl FixedWindow {
    /// Creates an allowance of `limit` per window, at least 1.
    pub(in crate::limit) fn new(limit: u64, ends: WindowEnds) -> Self {
        Self { allowance: NonZeroU64::new(limit).unwrap_or(NonZeroU64::MIN), ends }
    }

    /// Counts `cost`, or returns how long to wait, in nanoseconds: until the end of the window, or of the one that pays
    /// the last of the debt.
    pub(in crate::limit) fn admit(
        &self,
        counter: &mut Counter,
        now: u64,
        cost: u64,
    ) -> Result<Counter, u64> {
        let current = self.current(counter, now);
        match current.amount().checked_add(cost) {
            Some(used) if used <= self.allowance.get() => Ok(Counter { used, ..current }),
            _ => Err(self.wait(current, now, cost)),
        }
    }

    /// Returns the windows in the form of a shared store, whose time is `now`.
    pub(in crate::limit) fn shape(&self, now: u64, debts: bool) -> Shape {
        let limit = self.allowance.get();
        match &self.ends {
            WindowEnds::After(nanos) => {
                let length = nanos / 1_000;
                Shape::Window { limit, end: 0, next: length, span: length, debts }
            }
            WindowEnds::With(calendar) => {
                let now = to_epoch_nanos(now) / NANOS;
                let period = calendar.around(now);
                // The calendar keeps the window of now.
                let next = calendar.find_or_even(period.end);
                let micros = |secs: u64| from_epoch_nanos(secs.saturating_mul(NANOS));
                let length = (period.end - period.start).max(next.end - next.start);
                let span = length.saturating_mul(3_000_000);
                Shape::Window {
                    limit,
                    end: micros(period.end),
                    next: micros(next.end),
                    span,
                    debts,
                }
            }
        }
    }

    /// Counts `cost` whether or not it fits.
    pub(in crate::limit) fn charge(&self, mut counter: Counter, now: u64, cost: u64) -> Counter {
        let current = self.current(&mut counter, now);
        let used = current.amount();
        // Use within the larger allowance of another plan is no debt.
        let counted = used.min(self.allowance.get().saturating_mul(current.owed_windows() + 1));
        let owed = self.windows(counted.saturating_add(cost));
        self.owing(current, used.saturating_add(cost), owed)
    }

    /// Gives back `cost`.
    pub(in crate::limit) fn refund(&self, mut counter: Counter, now: u64, cost: u64) -> Counter {
        if counter == Counter::default() {
            return counter;
        }
        let current = self.current(&mut counter, now);
        match current.amount().saturating_sub(cost) {
            0 => Counter::default(),
            used => self.owing(current, used, self.windows(used).min(current.owed_windows())),
        }
    }

    /// Returns the end of the current window.
    pub(in crate::limit) fn end(&self, mut counter: Counter, now: u64) -> u64 {
        self.current(&mut counter, now).until
    }

    /// Returns the remaining allowance of the window, and in how many nanoseconds it is renewed.
    pub(in crate::limit) fn left(&self, mut counter: Counter, now: u64) -> (u64, u64) {
        let current = self.current(&mut counter, now);
        match self.allowance.get().saturating_sub(current.amount()) {
            0 => (0, self.wait(current, now, 1)),
            left => (left, current.until.saturating_sub(now)),
        }
    }

    /// Returns the counter as it stands in the current window, and the windows that its debt lasts longer. Corrects one that a clock
    /// has begun before it stepped back.
    fn current(&self, counter: &mut Counter, now: u64) -> Counter {
        if *counter == Counter::default() {
            return Counter { until: self.ends.of(now), used: 0 };
        }
        let (used, owed) = (counter.amount(), counter.owed_windows());
        if owed == 0 {
            // Kept, so that a used allowance is not renewed; but only for as long as the clock could not be far ahead.
            if counter.until > self.ends.latest(now) {
                counter.until = self.ends.of(now);
            }
            return *counter;
        }
        let (end, remaining) = self.ends.until(now, counter.until, owed);
        let allowance = self.allowance.get();
        let used = match owed - remaining {
            0 => used,
            passed => {
                let rest = used.saturating_sub(passed.saturating_mul(allowance));
                // Units that another plan used beyond the maximum debt ended with their window.
                rest.min((remaining + 1).saturating_mul(allowance))
            }
        };
        Counter::window(end, used, remaining)
    }

    /// Returns the windows beyond the current one that pay for `used`.
    fn windows(&self, used: u64) -> u64 {
        used.div_ceil(self.allowance.get()).saturating_sub(1).min(MAX_OWED_WINDOWS)
    }

    /// Returns the counter of the window that ends with `current`, with `used` of it and a debt of `owed` windows.
    fn owing(&self, current: Counter, used: u64, owed: u64) -> Counter {
        Counter::window(self.ends.after(current.until, owed), used, owed)
    }

    /// Returns how long until `cost` fits, in nanoseconds; for a cost that never does, until the whole allowance is there.
    fn wait(&self, current: Counter, now: u64, cost: u64) -> u64 {
        let allowance = self.allowance.get();
        let needed = current.amount().saturating_add(cost.min(allowance)).saturating_sub(allowance);
        let windows = needed.div_ceil(allowance).saturating_sub(1);
        // Use beyond an allowance that a reload has lowered is no debt, and ends with the window.
        self.ends.after(current.until, windows.min(current.owed_windows())).saturating_sub(now)
    }
}

impl WindowEnds {
    /// Returns the end of a window that begins now, or is under way.
    fn of(&self, now: u64) -> u64 {
        match self {
            Self::After(nanos) => now.saturating_add(*nanos),
            Self::With(calendar) => calendar.around(now / NANOS).end.saturating_mul(NANOS),
        }
    }

    /// Returns the latest end of any window begun by a correct clock: the next one is at most a little longer.
    fn latest(&self, now: u64) -> u64 {
        match self {
            Self::After(nanos) => now.saturating_add(*nanos),
            Self::With(calendar) => {
                let period = calendar.around(now / NANOS);
                let latest = period.end + 2 * (period.end - period.start);
                latest.saturating_mul(NANOS)
            }
        }
    }

    /// Returns the end of the `number`th window after the one that ends at `end`.
    fn after(&self, end: u64, number: u64) -> u64 {
        match self {
            Self::After(nanos) => end.saturating_add(nanos.saturating_mul(number)),
            Self::With(_) if number == 0 => end,
            Self::With(calendar) => {
                let ends = calendar.ends_from(end / NANOS);
                let nth = ends.get(number as usize).or(ends.last());
                nth.map_or(end, |secs| secs.saturating_mul(NANOS))
            }
        }
    }

    /// Returns the end of the current window, and how many further windows end until `until`: `max` at most.
    fn until(&self, now: u64, until: u64, max: u64) -> (u64, u64) {
        match self {
            Self::After(nanos) => {
                let nanos = (*nanos).max(1);
                let windows = until.saturating_sub(now).div_ceil(nanos).saturating_sub(1);
                if windows > max {
                    // The clock was set back.
                    return (now.saturating_add(nanos), max);
                }
                (until - windows * nanos, windows)
            }
            Self::With(calendar) => {
                let current = self.of(now);
                let ends = calendar.ends_from(current / NANOS);
                let before = ends.partition_point(|secs| secs.saturating_mul(NANOS) < until);
                (current, (before as u64).min(max))
            }
        }
    }
}

const NANOS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rate::Unit;
    use super::super::time_zone::Zone;
    use super::*;

    #[test]
    fn refuses_the_request_after_the_last_one_bought() {
        let window = flexi(2);
        let first = window.admit(&mut NONE.clone(), 0, 1).unwrap();
        let second = window.admit(&mut first.clone(), 10, 1).unwrap();

        assert_eq!(window.left(first, 10), (1, 50));
        assert_eq!(window.left(second, 10), (0, 50));
        assert_eq!(window.admit(&mut second.clone(), 10, 1), Err(50));
    }

    #[test]
    fn admits_exactly_what_is_left() {
        let window = flexi(10);
        let mut used = window.admit(&mut NONE.clone(), 0, 7).unwrap();

        assert_eq!(window.admit(&mut used, 0, 4), Err(60));
        assert!(window.admit(&mut used, 0, 3).is_ok());
        assert_eq!(window.admit(&mut used, 0, u64::MAX), Err(60));
    }

    #[test]
    fn a_clock_that_steps_back_renews_no_allowance() {
        let minutes = calendar(1);
        let mut counter = minutes.admit(&mut NONE.clone(), 70 * NANOS, 1).unwrap();

        assert_eq!(minutes.admit(&mut counter, 30 * NANOS, 1), Err(90 * NANOS));
    }

    #[test]
    fn a_clock_that_was_years_ahead_locks_no_client_out() {
        let minutes = calendar(1);
        let mut counter = minutes.admit(&mut NONE.clone(), 90_000 * NANOS, 1).unwrap();

        assert_eq!(minutes.admit(&mut counter, 30 * NANOS, 1), Err(30 * NANOS));
    }

    #[test]
    fn debt_is_paid_by_the_following_windows() {
        for window in [flexi(10), calendar(10)] {
            let length = window.ends.of(0);
            let first = window.admit(&mut NONE.clone(), 0, 1).unwrap();
            let owing = window.charge(first, 1, 24);

            assert_eq!(
                window.left(owing, 1),
                (0, 3 * length - 1 - length),
                "15 are paid by two windows"
            );
            assert_eq!(window.left(owing, length), (0, length));
            assert_eq!(window.left(owing, 2 * length), (5, length));
            let mut owing = owing;
            assert_eq!(window.admit(&mut owing, 2 * length, 6), Err(length));
            let used = window.admit(&mut owing, 2 * length, 5).unwrap();
            assert_eq!(used.at(3 * length), NONE, "the debt is paid");
        }
    }

    #[test]
    fn use_within_another_plan_is_no_debt() {
        let (small, large) = (flexi(10), flexi(1_000));
        let first = large.admit(&mut NONE.clone(), 0, 500).unwrap();

        let refunded = small.refund(first, 1, 20);
        assert_eq!(refunded.at(60), NONE, "nothing is owed");
        let owing = small.charge(first, 1, 25);
        assert_eq!(large.left(owing, 1).0, 475);
        assert_eq!(small.left(owing, 60).0, 0);
        assert_eq!(large.left(owing, 60).0, 1_000, "one window of the large plan pays the debt");
        assert_eq!(owing.at(240), NONE, "25 are paid by three windows");
    }

    proptest! {
        /// The model is a number that every window lowers by the allowance.
        #[test]
        fn debt_agrees_with_a_model(
            allowance in 1_u64..20,
            in_calendar in any::<bool>(),
            steps in prop::collection::vec((0_u64..3_000, 0_u64..60, 0_u8..3), 1..80),
        ) {
            let window = if in_calendar { calendar(allowance) } else { flexi(allowance) };
            let length = window.ends.of(0);
            let (mut now, mut counter) = (0, NONE);
            // The model: the used amount, and the end of its window.
            let (mut used, mut end) = (0_u64, 0_u64);
            for (gap, cost, action) in steps {
                now += gap * length / 1_000;
                counter = counter.at(now);
                while end <= now && used > 0 {
                    used = used.saturating_sub(allowance);
                    end += length;
                }
                if used == 0 {
                    end = if in_calendar { now - now % length + length } else { now + length };
                }
                if action == 2 {
                    counter = window.charge(counter, now, cost);
                    used += cost;
                } else if action == 1 {
                    counter = window.refund(counter, now, cost);
                    used = used.saturating_sub(cost);
                } else {
                    let fits = used + cost <= allowance;
                    let admitted = window.admit(&mut counter, now, cost);
                    prop_assert_eq!(admitted.is_ok(), fits);
                    if let Ok(charged) = admitted {
                        counter = charged;
                        used += cost;
                    }
                }
                if used == 0 {
                    // A window without use is none.
                    counter = NONE;
                }
                prop_assert_eq!(window.left(counter, now).0, allowance.saturating_sub(used));
            }
        }
    }

    fn flexi(allowance: u64) -> FixedWindow {
        FixedWindow::new(allowance, WindowEnds::After(60))
    }

    fn calendar(allowance: u64) -> FixedWindow {
        let minutes = Calendar::new(Zone::utc(), Unit::Minute);
        FixedWindow::new(allowance, WindowEnds::With(minutes))
    }

    const NONE: Counter = Counter { until: 0, used: 0 };
}
