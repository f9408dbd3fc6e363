//! Counted quotas: "10 000 requests a day, from midnight to midnight".
//!
//! A *spike arrest* asks what a service can survive, and smooths traffic. A
//! *quota* asks what a client has bought, and counts it. This file counts:
//! all of a window may be used in its first second. When windows begin and end
//! is not its business: `calendar` knows, or the key's first request says.

use core::num::NonZeroU64;

use super::cells::Cell;

/// So many per window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance(NonZeroU64);

impl Allowance {
    /// `limit` per window, at least 1.
    pub(super) fn new(limit: u64) -> Self {
        Self(NonZeroU64::new(limit).unwrap_or(NonZeroU64::MIN))
    }

    /// Counts `cost`, or says when to ask again: the end of the window.
    ///
    /// `fresh` is when a window ends that begins now.
    pub(super) fn admit(self, cell: Cell, fresh: Fresh, cost: u64) -> Result<Cell, u64> {
        let cell = fresh.cell(cell);
        match cell.used.checked_add(cost) {
            Some(used) if used <= self.0.get() => Ok(Cell { used, ..cell }),
            _ => Err(cell.until),
        }
    }

    /// How many are left in this window.
    pub(super) fn left(self, cell: Cell) -> u64 {
        self.0.get().saturating_sub(cell.used)
    }
}

/// The window of a key that has none, in nanoseconds of the limit's own time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fresh {
    /// When it ends.
    pub(super) end: u64,
    /// The latest that any window can end which a clock that runs well has begun.
    pub(super) latest: u64,
}

impl Fresh {
    /// The key's window, or this one if it has none.
    pub(super) fn cell(self, cell: Cell) -> Cell {
        if cell == Cell::default() { Cell { until: self.end, used: 0 } } else { cell }
    }

    /// Sets right a window that ends later than a fresh one, as one does that was begun before the clock stepped back.
    ///
    /// It stays, so that a window used up is not had twice; but not for years, if the clock had been that wrong.
    pub(super) fn set_right(self, cell: &mut Cell) {
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
        let allowance = Allowance::new(2);
        let first = allowance.admit(NONE, WINDOW, 1).unwrap();
        let second = allowance.admit(first, WINDOW, 1).unwrap();

        assert_eq!(allowance.left(first), 1);
        assert_eq!(allowance.left(second), 0);
        assert_eq!(allowance.admit(second, WINDOW, 1), Err(60));
    }

    #[test]
    fn admits_exactly_what_is_left() {
        let allowance = Allowance::new(10);
        let used = allowance.admit(NONE, WINDOW, 7).unwrap();

        assert_eq!(allowance.admit(used, WINDOW, 4), Err(60));
        assert!(allowance.admit(used, WINDOW, 3).is_ok());
        assert_eq!(allowance.admit(used, WINDOW, u64::MAX), Err(60));
    }

    #[test]
    fn forgives_nothing_when_the_clock_steps_back() {
        let allowance = Allowance::new(1);
        let mut cell = allowance.admit(NONE, Fresh { end: 120, latest: 180 }, 1).unwrap();
        WINDOW.set_right(&mut cell);

        assert_eq!(allowance.admit(cell, WINDOW, 1), Err(120));
    }

    #[test]
    fn a_clock_that_was_years_ahead_locks_nobody_out() {
        let allowance = Allowance::new(1);
        let years_ahead = Fresh { end: 90_000, latest: 90_060 };
        let mut cell = allowance.admit(NONE, years_ahead, 1).unwrap();
        WINDOW.set_right(&mut cell);

        assert_eq!(allowance.admit(cell, WINDOW, 1), Err(60));
    }

    const NONE: Cell = Cell { until: 0, used: 0 };
    const WINDOW: Fresh = Fresh { end: 60, latest: 120 };
}
