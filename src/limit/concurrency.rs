//! Requests in flight: counted when they are admitted, released when they end.

use std::sync::Arc;

use super::cells::{Cell, Place};
use super::counts::Counts;

/// So many at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slots(pub(super) u64);

impl Slots {
    /// Takes one, or says how long to wait, in nanoseconds: a guess, since nobody knows when another ends.
    pub(super) fn admit(self, cell: Cell) -> Result<Cell, u64> {
        match cell.used {
            used if used < self.0 => Ok(Cell { until: u64::MAX, used: used + 1 }),
            _ => Err(RETRY_AFTER),
        }
    }

    /// How many are free.
    pub(super) fn left(self, cell: Cell) -> u64 {
        self.0.saturating_sub(cell.used)
    }
}

/// One request that is counted as in flight until this is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    counts: Arc<Counts>,
    key: u64,
    place: Place,
}

impl InFlight {
    /// Releases, in the end, what [`Slots::admit`] has taken.
    pub(super) fn new(counts: &Arc<Counts>, key: u64, place: Place) -> Self {
        Self { counts: Arc::clone(counts), key, place }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counts.cells.give_back(self.key, self.place, |cell| match cell.used {
            0 | 1 => *cell = Cell::default(),
            _ => cell.used -= 1,
        });
    }
}

const RETRY_AFTER: u64 = 1_000_000_000;
