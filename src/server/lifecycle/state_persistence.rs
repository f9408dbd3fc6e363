//! Persistence of limit counters: swept periodically, and saved for the next start.
//!
//! The counters of quotas are written whole every ten seconds and once more after the last request; a crash loses at
//! most that interval.

use core::time::Duration;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::reload::chain;
use crate::gateway::{RetainedState, Shared};
use crate::limit::Now;

/// Sweeps the counters of limits, and saves those that outlive a restart.
#[derive(Debug)]
pub struct StatePersistence {
    shared: Arc<Shared>,
    /// The directory; `None` saves nothing.
    state_dir: Option<PathBuf>,
    /// Serializes saves, which write the same file.
    save_lock: Mutex<()>,
}

impl StatePersistence {
    /// Creates the persistence of `shared`'s counters in `state_dir`, if there is one.
    pub(crate) const fn of(shared: Arc<Shared>, state_dir: Option<PathBuf>) -> Self {
        Self { shared, state_dir, save_lock: Mutex::const_new(()) }
    }

    /// Sweeps and saves until the control runtime ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut ticks = interval(SAVE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is immediate, when there is nothing to save.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let retained = &self.shared.retained;
            retained.counts().sweep(Now::of(&retained.clock));
            self.save().await;
        }
    }

    /// Waits until all revocations are on disk, and saves the counters. Failures are logged.
    pub async fn finish(&self) {
        if let Err(error) = self.shared.retained.revocations.kept().await {
            tracing::error!(%error, "Could not save revocations; tokens and sessions revoked recently are valid again after the next start.");
        }
        self.save().await;
    }

    /// Saves the counters now. Failures are logged; the previous file stays.
    pub async fn save(&self) {
        let Some(dir) = self.state_dir.clone() else { return };
        let _lock = self.save_lock.lock().await;
        let shared = Arc::clone(&self.shared);
        let saved = spawn_blocking(move || {
            shared.retained.counts().save(&dir, Now::of(&shared.retained.clock))
        });
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(error = %chain(&error), "Could not save quota state; the previous file remains.");
            }
            Err(error) => {
                tracing::error!(%error, "Could not save quota state: the task failed; the previous file remains.");
            }
        }
    }
}

/// Loads the counters of the previous process. To be called before a limit is created.
pub(crate) fn load(retained: &RetainedState, dir: &Path) {
    if let Err(error) = retained.counts().load(dir, Now::of(&retained.clock)) {
        tracing::error!(error = %chain(&error), "Saved quota state could not be loaded; all counters start at zero.");
    }
}

const SAVE_INTERVAL: Duration = Duration::from_secs(10);
