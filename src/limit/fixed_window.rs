//! Quotas in fixed windows: "10 000 requests a day, from midnight to midnight".
//!
//! A *spike arrest* protects an upstream, and smooths traffic. A
//! *quota* is an allowance of a client, and counts it: all of a window may be used in
//! its first second. Begin and end of a window are given by
//! `calendar`, or by the key's first request.

use core::num::NonZeroU64;

use super::counter_table::Counter;

/// An allowance per window.
#[derive(Clone, Copy, Debug)]
pub(super) struct FixedWindow(NonZeroU64);

impl FixedWindow {
    /// Creates an allowance of `limit` per window, at least 1.
    pub(super) fn new(limit: u64) -> Self {
        Self(NonZeroU64::new(limit).unwrap_or(NonZeroU64::MIN))
    }

    /// Counts `cost`, or returns when to retry: the end of the window.
    ///
    /// `fresh` is the window that would begin now.
    pub(super) fn admit(self, cell: Counter, fresh: NewWindow, cost: u64) -> Result<Counter, u64> {
        let cell = fresh.cell(cell);
        match cell.used.checked_add(cost) {
            Some(used) if used <= self.0.get() => Ok(Counter { used, ..cell }),
            _ => Err(cell.until),
        }
    }

    /// Returns the remaining allowance of the window.
    pub(super) fn left(self, cell: Counter) -> u64 {
        self.0.get().saturating_sub(cell.used)
    }
}

/// A window that begins now, for a key without one; in nanoseconds of the limit's own time.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewWindow {
    /// The end.
    pub(super) end: u64,
    /// The latest end of any window begun by a correct clock.
    pub(super) latest: u64,
}

impl NewWindow {
    /// Returns the key's window, or this one if it has none.
    pub(super) fn cell(self, cell: Counter) -> Counter {
        if cell == Counter::default() { Counter { until: self.end, used: 0 } } else { cell }
    }

    /// Corrects a window that ends later than a new one, because it was begun before the clock stepped back.
    ///
    /// The window is kept, so that a used allowance is not renewed; but only until `latest`, if the clock was far ahead.
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
    fn a_clock_that_steps_back_renews_no_allowance() {
        let allowance = FixedWindow::new(1);
        let mut cell = allowance.admit(NONE, NewWindow { end: 120, latest: 180 }, 1).unwrap();
        WINDOW.correct_clock(&mut cell);

        assert_eq!(allowance.admit(cell, WINDOW, 1), Err(120));
    }

    #[test]
    fn a_clock_that_was_years_ahead_locks_no_client_out() {
        let allowance = FixedWindow::new(1);
        let years_ahead = NewWindow { end: 90_000, latest: 90_060 };
        let mut cell = allowance.admit(NONE, years_ahead, 1).unwrap();
        WINDOW.correct_clock(&mut cell);

        assert_eq!(allowance.admit(cell, WINDOW, 1), Err(60));
    }

    const NONE: Counter = Counter { until: 0, used: 0 };
    const WINDOW: NewWindow = NewWindow { end: 60, latest: 120 };
}
