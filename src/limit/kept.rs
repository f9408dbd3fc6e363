//! Every limit's counts, kept as long as a snapshot uses them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counts::{Counts, Moment};
use super::settings::{LimitId, Settings};
use super::state::{self, Saved, StateError};
use crate::base::shelf::Shelf;
use crate::observe::metrics::Metrics;

/// Counts by limit: what outlives a reload and, with a directory for it, a restart.
///
/// The server sweeps and saves every ten seconds or so, and saves once more when the last request has ended; both on a
/// thread that may block.
#[derive(Debug, Default)]
pub struct Kept {
    counts: Shelf<LimitId, Counts>,
    remembered: Mutex<Option<Remembered>>,
}

impl Kept {
    /// Goes on with the quotas that an earlier process has saved in `dir`. To be called before a limit is made.
    ///
    /// # Errors
    ///
    /// Returns [`StateError`] if there is a file that cannot be read or is damaged; then quotas begin afresh.
    pub fn remember(&self, dir: &Path, moment: Moment) -> Result<(), StateError> {
        let limits = state::load(dir)?;
        *self.remembered() = Some(Remembered { limits, at: moment });
        Ok(())
    }

    /// Saves all quotas in `dir`, whole or not at all.
    ///
    /// # Errors
    ///
    /// Returns [`StateError::Write`] if the file cannot be written; then the one before is still there.
    pub fn save(&self, dir: &Path, moment: Moment) -> Result<(), StateError> {
        // Limits that the present configuration does not have may come back with the next.
        let mut limits =
            self.remembered().as_ref().map_or_else(HashMap::new, |earlier| earlier.limits.clone());
        limits.extend(self.counts.living().iter().filter_map(|counts| counts.save(moment)));
        state::save(dir, &limits)
    }

    /// Forgets every count that has recovered; holds no lock for longer than some microseconds.
    pub fn sweep(&self, moment: Moment) {
        for counts in self.counts.living() {
            counts.sweep(moment);
        }
    }

    /// The counts of this limit: those of the snapshot before, those of the process before, or none yet.
    pub(super) fn of(&self, settings: &Settings, metrics: &Metrics) -> Arc<Counts> {
        self.counts.keep(settings.id(), || {
            let counts = Counts::new(settings, metrics);
            match &mut *self.remembered() {
                Some(earlier) => counts.go_on(&mut earlier.limits, earlier.at),
                None => counts,
            }
        })
    }

    fn remembered(&self) -> MutexGuard<'_, Option<Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an earlier process has counted and no limit has asked for yet.
#[derive(Debug)]
struct Remembered {
    limits: HashMap<String, Saved>,
    /// When it was read.
    at: Moment,
}
