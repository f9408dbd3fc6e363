//! The counters of all limits, kept while a snapshot uses them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::counters::{LimitCounters, Now};
use super::persistence::{self, SavedCounters, StateError};
use super::settings::{LimitId, Settings};
use crate::base::lock::IgnorePoison;
use crate::base::weak_map::WeakMap;
use crate::observe::metrics::Metrics;

/// Counters by limit: state that outlives a reload and, with a directory, a restart.
///
/// The server sweeps and saves every ten seconds or so, and once more after the last request; both on a
/// thread that may block.
#[derive(Debug, Default)]
pub struct LimitRegistry {
    counts: WeakMap<LimitId, LimitCounters>,
    earlier: Mutex<Option<RetainedLimit>>,
}

impl LimitRegistry {
    /// Loads the quotas that an earlier process has saved in `dir`. To be called before a limit is created.
    ///
    /// # Errors
    ///
    /// Returns [`StateError`] if the file cannot be read or is damaged; then all counters start at zero.
    pub fn load(&self, dir: &Path, moment: Now) -> Result<(), StateError> {
        let limits = persistence::load(dir)?;
        *self.earlier() = Some(RetainedLimit { limits, at: moment });
        Ok(())
    }

    /// Saves all quotas in `dir`, atomically.
    ///
    /// # Errors
    ///
    /// Returns [`StateError::Write`] if the file cannot be written; then the previous file remains.
    pub fn save(&self, dir: &Path, moment: Now) -> Result<(), StateError> {
        // Limits that the current configuration lacks may return with the next one.
        let mut limits =
            self.earlier().as_ref().map_or_else(HashMap::new, |retained| retained.limits.clone());
        limits.extend(self.counts.values().iter().filter_map(|counts| counts.save(moment)));
        persistence::save(dir, &limits)
    }

    /// Removes every recovered counter; holds no lock for longer than microseconds.
    pub fn sweep(&self, moment: Now) {
        for counts in self.counts.values() {
            counts.sweep(moment);
        }
    }

    /// Returns the counters of this limit: the previous snapshot's, the previous process's, or new ones.
    pub(super) fn get_or_create(
        &self,
        settings: &Settings,
        metrics: &Metrics,
    ) -> Arc<LimitCounters> {
        self.counts.get_or_insert_with(settings.id(), || {
            let counts = LimitCounters::new(settings, metrics);
            match &mut *self.earlier() {
                Some(retained) => counts.restore(&mut retained.limits, retained.at),
                None => counts,
            }
        })
    }

    fn earlier(&self) -> MutexGuard<'_, Option<RetainedLimit>> {
        self.earlier.lock().ignore_poison()
    }
}

/// The counters of an earlier process that no limit has taken over yet.
#[derive(Debug)]
struct RetainedLimit {
    limits: HashMap<String, SavedCounters>,
    /// When they were read.
    at: Now,
}
