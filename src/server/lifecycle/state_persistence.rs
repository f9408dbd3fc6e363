//! Persistence of limit counters: swept periodically, and saved for the next start.
//!
//! The counters of quotas are written twice a second if one has changed, and once more after the last request; a crash
//! loses at most the last second. During a handover one of the two processes writes, since neither knows what the other
//! counts: the old one until a successor serves that it has started itself, or else until it ends.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::reload::chain;
use crate::disk::Directory;
use crate::gateway::{RetainedState, Shared};
use crate::limit::{Now, StateError};
use crate::metering::Metering;

/// Sweeps the counters of limits, and saves those that outlive a restart.
#[derive(Debug)]
pub struct StatePersistence {
    shared: Arc<Shared>,
    /// The directory; `None` saves nothing.
    state_dir: Option<PathBuf>,
    /// Collects and exports usage, if configured.
    metering: Option<Arc<Metering>>,
    /// Serializes saves, which write the same file, also between processes.
    save_lock: Arc<Mutex<SaveLock>>,
    /// Whether the last save failed, and the log says so.
    has_failed: AtomicBool,
}

impl StatePersistence {
    /// Creates the persistence of `shared`'s counters in `state_dir`, if there is one.
    pub(crate) fn of(
        shared: Arc<Shared>,
        state_dir: Option<PathBuf>,
        metering: Option<Arc<Metering>>,
    ) -> Self {
        Self {
            shared,
            state_dir,
            metering,
            save_lock: Arc::default(),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Sweeps and saves until the control runtime ends.
    pub(crate) async fn run(self: Arc<Self>) {
        if let Some(metering) = &self.metering {
            let (metering, shared) = (Arc::clone(metering), Arc::clone(&self.shared));
            tokio::runtime::Handle::current()
                .spawn(async move { metering.run(shared.retained().counts()).await });
        }
        let mut swept = Instant::now();
        // The first save shows whether the directory can be written.
        let mut pause = Duration::ZERO;
        loop {
            sleep(pause).await;
            let began = Instant::now();
            if swept.elapsed() >= SWEEP_INTERVAL {
                swept = began;
                let retained = self.shared.retained();
                retained.counts().sweep(Now::of(&retained.clock));
            }
            self.save().await;
            // The pause is at least as long as the save took, so that a slow disk is busy half of the time at most.
            pause = SAVE_INTERVAL.max(began.elapsed());
        }
    }

    /// Waits until all revocations are on disk, and saves the counters. Failures are logged.
    pub async fn finish(&self) {
        if let Err(error) = self.shared.retained().revocations.kept().await {
            tracing::error!(%error, "Could not save revocations; tokens and sessions revoked recently are valid again after the next start.");
        }
        self.save().await;
        if self.state_dir.is_some() && matches!(self.hand_over().await, SaveLock::Awaited) {
            tracing::warn!(
                "Quotas were not saved: another process still saves its own in `server.state_dir`."
            );
        }
        if let Some(metering) = &self.metering {
            metering.finish(self.shared.retained().counts()).await;
        }
    }

    /// Leaves the file to a successor, whose counters are the later ones: this process saves nothing any more.
    pub async fn leave_to_successor(&self) {
        drop(self.hand_over().await);
    }

    async fn hand_over(&self) -> SaveLock {
        core::mem::replace(&mut *self.save_lock.lock().await, SaveLock::GivenUp)
    }

    /// Saves the counters now, unless another process saves its own. Failures are logged; the previous file stays.
    pub async fn save(&self) {
        let Some(dir) = self.state_dir.clone() else { return };
        let mut lock = Arc::clone(&self.save_lock).lock_owned().await;
        let shared = Arc::clone(&self.shared);
        let saved = spawn_blocking(move || {
            if !lock.acquire(&dir).map_err(StateError::Write)? {
                return Ok(false);
            }
            shared.retained().counts().save(&dir, Now::of(&shared.retained().clock))
        });
        let process = self.shared.retained().metrics.process();
        match saved.await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => {
                process.state_written(true);
                if self.has_failed.swap(false, Relaxed) {
                    tracing::info!("Quota state could be saved again.");
                }
            }
            // Once: the next attempt is half a second away, and the metric shows how long it lasts.
            Ok(Err(_)) if self.has_failed.swap(true, Relaxed) => process.state_written(false),
            Ok(Err(error)) => {
                process.state_written(false);
                tracing::error!(error = %chain(&error), "Could not save quota state; the previous file remains.");
            }
            Err(error) => {
                process.state_written(false);
                tracing::error!(%error, "Could not save quota state: the task failed; the previous file remains.");
            }
        }
    }
}

/// The right to write the file of quotas.
#[derive(Debug, Default)]
enum SaveLock {
    /// Another process may hold it.
    #[default]
    Awaited,
    /// This process writes.
    Held { _lock: File },
    /// A successor writes.
    GivenUp,
}

impl SaveLock {
    /// Whether this process writes, for which it asks if none does.
    fn acquire(&mut self, dir: &Path) -> io::Result<bool> {
        if matches!(self, Self::Awaited)
            && let Some(lock) = Directory::at(dir).lock(LOCK)?
        {
            *self = Self::Held { _lock: lock };
        }
        Ok(matches!(self, Self::Held { .. }))
    }
}

/// Loads the counters of the previous process. To be called before a limit is created.
pub(crate) fn load(retained: &RetainedState, dir: &Path) {
    if let Err(error) = retained.counts().load(dir, Now::of(&retained.clock)) {
        tracing::error!(error = %chain(&error), "Saved quota state could not be loaded; all counters start at zero.");
    }
}

/// The file whose lock the process holds that saves quotas.
const LOCK: &str = "quotas.lock";
const SAVE_INTERVAL: Duration = Duration::from_millis(500);
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
