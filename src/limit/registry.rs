//! Every limit's counts, kept as long as a snapshot uses them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::counters::{LimitCounters, Now};
use super::persistence::{self, SavedCounters, StateError};
use super::settings::{LimitId, Settings};
use crate::base::weak_map::WeakMap;
use crate::observe::metrics::Metrics;

/// Counts by limit: what outlives a reload and, with a directory for it, a restart.
///
/// The server sweeps and saves every ten seconds or so, and saves once more when the last request has ended; both on a
/// thread that may block.
#[derive(Debug, Default)]
pub struct LimitRegistry {
    counts: WeakMap<LimitId, LimitCounters>,
    remembered: Mutex<Option<RetainedLimit>>,
}

impl LimitRegistry {
    /// Goes on with the quotas that an earlier process has saved in `dir`. To be called before a limit is made.
    ///
    /// # Errors
    ///
    /// Returns [`StateError`] if there is a file that cannot be read or is damaged; then quotas begin afresh.
    pub fn load(&self, dir: &Path, moment: Now) -> Result<(), StateError> {
        let limits = persistence::load(dir)?;
        *self.remembered() = Some(RetainedLimit { limits, at: moment });
        Ok(())
    }

    /// Saves all quotas in `dir`, whole or not at all.
    ///
    /// # Errors
    ///
    /// Returns [`StateError::Write`] if the file cannot be written; then the one before is still there.
    pub fn save(&self, dir: &Path, moment: Now) -> Result<(), StateError> {
        // Limits that the present configuration does not have may come back with the next.
        let mut limits =
            self.remembered().as_ref().map_or_else(HashMap::new, |earlier| earlier.limits.clone());
        limits.extend(self.counts.values().iter().filter_map(|counts| counts.save(moment)));
        persistence::save(dir, &limits)
    }

    /// Forgets every count that has recovered; holds no lock for longer than some microseconds.
    pub fn sweep(&self, moment: Now) {
        for counts in self.counts.values() {
            counts.sweep(moment);
        }
    }

    /// The counts of this limit: those of the snapshot before, those of the process before, or none yet.
    pub(super) fn get_or_create(
        &self,
        settings: &Settings,
        metrics: &Metrics,
    ) -> Arc<LimitCounters> {
        self.counts.get_or_insert_with(settings.id(), || {
            let counts = LimitCounters::new(settings, metrics);
            match &mut *self.remembered() {
                Some(earlier) => counts.restore(&mut earlier.limits, earlier.at),
                None => counts,
            }
        })
    }

    fn remembered(&self) -> MutexGuard<'_, Option<RetainedLimit>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an earlier process has counted and no limit has asked for yet.
#[derive(Debug)]
struct RetainedLimit {
    limits: HashMap<String, SavedCounters>,
    /// When it was read.
    at: Now,
}
