//! What the limits have counted: kept small, and kept on disk for the next start.
//!
//! A quota's file is written whole every ten seconds and once more when the
//! last request has ended; a crash forgets what came in between, never more.

use core::time::Duration;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use super::reload::chain;
use crate::gateway::{RetainedState, Shared};
use crate::limit::Now;

/// Sweeps the limits' counts, and saves those that outlive a restart.
#[derive(Debug)]
pub struct StatePersistence {
    shared: Arc<Shared>,
    /// Where they are saved, if anywhere.
    state_dir: Option<PathBuf>,
    /// One save at a time: they write the same file.
    turn: Mutex<()>,
}

impl StatePersistence {
    /// The upkeep of what `shared` has counted; saved in `state_dir`, if there is one.
    pub(crate) const fn of(shared: Arc<Shared>, state_dir: Option<PathBuf>) -> Self {
        Self { shared, state_dir, turn: Mutex::const_new(()) }
    }

    /// Sweeps and saves until the control runtime ends.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut turns = interval(SAVE_INTERVAL);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once, and there is nothing yet.
        turns.tick().await;
        loop {
            turns.tick().await;
            let kept = &self.shared.retained;
            kept.counts().sweep(Now::of(&kept.clock));
            self.save().await;
        }
    }

    /// Waits until all that has ended is on disk, and saves the quotas. What goes wrong is logged.
    pub async fn finish(&self) {
        if let Err(error) = self.shared.retained.revocations.kept().await {
            tracing::error!(%error, "What was ended lives again after the next start.");
        }
        self.save().await;
    }

    /// Saves the quotas now. What goes wrong is logged: the file before stays.
    pub async fn save(&self) {
        let Some(dir) = self.state_dir.clone() else { return };
        let _turn = self.turn.lock().await;
        let shared = Arc::clone(&self.shared);
        let saved = spawn_blocking(move || {
            shared.retained.counts().save(&dir, Now::of(&shared.retained.clock))
        });
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(error = %chain(&error), "Quotas were not saved."),
            Err(error) => tracing::error!(%error, "Saving quotas broke off."),
        }
    }
}

/// Goes on with the quotas of the process before. To be called before a limit is made.
pub(crate) fn remember(kept: &RetainedState, dir: &Path) {
    if let Err(error) = kept.counts().load(dir, Now::of(&kept.clock)) {
        tracing::error!(error = %chain(&error), "Quotas begin afresh.");
    }
}

const SAVE_INTERVAL: Duration = Duration::from_secs(10);
