//! Counted quotas: "10 000 requests a day, from midnight to midnight".
//!
//! A *spike arrest* asks what a service can survive, and smooths traffic. A
//! *quota* asks what a client has bought, and counts it. This file counts:
//! all of a window may be used in its first second. When windows begin and end
//! is not its business: `calendar` knows, or the key's first request says.

use core::num::NonZeroU64;

use super::counter_table::Counter;

/// So many per window.
#[derive(Clone, Copy, Debug)]
pub(super) struct FixedWindow(NonZeroU64);

impl FixedWindow {
    /// `limit` per window, at least 1.
    pub(super) fn new(limit: u64) -> Self {
        Self(NonZeroU64::new(limit).unwrap_or(NonZeroU64::MIN))
    }

    /// Counts `cost`, or says when to ask again: the end of the window.
    ///
    /// `fresh` is when a window ends that begins now.
    pub(super) fn admit(self, cell: Counter, fresh: NewWindow, cost: u64) -> Result<Counter, u64> {
        let cell = fresh.cell(cell);
        match cell.used.checked_add(cost) {
            Some(used) if used <= self.0.get() => Ok(Counter { used, ..cell }),
            _ => Err(cell.until),
        }
    }

    /// How many are left in this window.
    pub(super) fn left(self, cell: Counter) -> u64 {
        self.0.get().saturating_sub(cell.used)
    }
}

/// The window of a key that has none, in nanoseconds of the limit's own time.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewWindow {
    /// When it ends.
    pub(super) end: u64,
    /// The latest that any window can end which a clock that runs well has begun.
    pub(super) latest: u64,
}

impl NewWindow {
    /// The key's window, or this one if it has none.
    pub(super) fn cell(self, cell: Counter) -> Counter {
        if cell == Counter::default() { Counter { until: self.end, used: 0 } } else { cell }
    }

    /// Sets right a window that ends later than a fresh one, as one does that was begun before the clock stepped back.
    ///
    /// It stays, so that a window used up is not had twice; but not for years, if the clock had been that wrong.
    pub(super) fn correct_clock(self, cell: &mut Counter) {
        if cell.until > self.latest {
            cell.until = self.end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_the_request_after_the_last_one_bought() {
        let allowance = FixedWindow::new(2);
        let first = allowance.admit(NONE, WINDOW, 1).unwrap();
        let second = allowance.admit(first, WINDOW, 1).unwrap();

        assert_eq!(allowance.left(first), 1);
        assert_eq!(allowance.left(second), 0);
        assert_eq!(allowance.admit(second, WINDOW, 1), Err(60));
    }

    #[test]
    fn admits_exactly_what_is_left() {
        let allowance = FixedWindow::new(10);
        let used = allowance.admit(NONE, WINDOW, 7).unwrap();

        assert_eq!(allowance.admit(used, WINDOW, 4), Err(60));
        assert!(allowance.admit(used, WINDOW, 3).is_ok());
        assert_eq!(allowance.admit(used, WINDOW, u64::MAX), Err(60));
    }

    #[test]
    fn forgives_nothing_when_the_clock_steps_back() {
        let allowance = FixedWindow::new(1);
        let mut cell = allowance.admit(NONE, NewWindow { end: 120, latest: 180 }, 1).unwrap();
        WINDOW.correct_clock(&mut cell);

        assert_eq!(allowance.admit(cell, WINDOW, 1), Err(120));
    }

    #[test]
    fn a_clock_that_was_years_ahead_locks_nobody_out() {
        let allowance = FixedWindow::new(1);
        let years_ahead = NewWindow { end: 90_000, latest: 90_060 };
        let mut cell = allowance.admit(NONE, years_ahead, 1).unwrap();
        WINDOW.correct_clock(&mut cell);

        assert_eq!(allowance.admit(cell, WINDOW, 1), Err(60));
    }

    const NONE: Counter = Counter { until: 0, used: 0 };
    const WINDOW: NewWindow = NewWindow { end: 60, latest: 120 };
}
