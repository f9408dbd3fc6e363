//! Exports batches to one destination, in order and independently of other destinations.

use core::time::Duration;
use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;

use super::batch_files::BatchFiles;
use super::export::{ExportDestination, ExportError};
use super::outbox::Due;

/// The state of the exports to one destination.
#[derive(Debug)]
pub(super) struct Delivery {
    destination: Arc<ExportDestination>,
    export: Option<JoinHandle<Outcome>>,
    /// When the next export may begin, after a failure.
    not_before: Instant,
    failures: u32,
}

/// The end of an export.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The files of the batches that the destination has now.
    pub(super) exported: Vec<u64>,
    /// The number of events that it did not take, and the reason.
    pub(super) failed: Option<(usize, ExportError)>,
}

impl Delivery {
    /// Creates the state of exports to `destination`.
    pub(super) fn new(destination: ExportDestination) -> Self {
        let destination = Arc::new(destination);
        Self { destination, export: None, not_before: Instant::now(), failures: 0 }
    }

    /// Returns the destination's name.
    pub(super) fn name(&self) -> &'static str {
        self.destination.name()
    }

    /// Whether an export may begin now.
    pub(super) fn is_ready(&self) -> bool {
        self.export.is_none() && Instant::now() >= self.not_before
    }

    /// Whether the last export failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.failures > 0
    }

    /// Begins the export of the batches `due`, oldest first.
    pub(super) fn begin(&mut self, files: BatchFiles, due: Vec<Due>) {
        let destination = Arc::clone(&self.destination);
        self.export = Some(Handle::current().spawn(async move {
            let mut outcome = Outcome::default();
            for batch in due {
                if let Err(error) = export(&destination, &files, batch).await {
                    outcome.failed = Some((batch.events, error));
                    break;
                }
                outcome.exported.push(batch.number);
            }
            outcome
        }));
    }

    /// Returns the end of the export, if it has ended. The next one waits longer after each failure.
    pub(super) async fn ended(&mut self) -> Option<Outcome> {
        let export = self.export.take_if(|export| export.is_finished())?;
        let outcome = export.await.unwrap_or_else(|failed| Outcome {
            exported: Vec::new(),
            failed: Some((0, ExportError::Task(failed))),
        });
        if outcome.failed.is_some() {
            self.failures = self.failures.saturating_add(1);
            let delay = Duration::from_secs(1 << self.failures.min(6)).min(MAX_DELAY);
            self.not_before = Instant::now() + delay;
        } else {
            self.failures = 0;
        }
        Some(outcome)
    }
}

/// Exports one batch. One whose file is gone or damaged cannot be exported any more, and does not hold up those after it.
async fn export(
    destination: &ExportDestination,
    files: &BatchFiles,
    due: Due,
) -> Result<(), ExportError> {
    let reader = files.clone();
    let read = spawn_blocking(move || reader.read(due.number)).await;
    let stored = read.unwrap_or_else(|failed| Err(io::Error::other(failed)));
    if let Some(stored) = stored.map_err(ExportError::Read)? {
        destination.export(&stored.batch, due.is_adopted).await
    } else {
        let (to, events) = (destination.name(), due.events);
        tracing::error!(
            destination = to,
            events,
            "The file of a batch of usage is gone; it is not exported."
        );
        Ok(())
    }
}

const MAX_DELAY: Duration = Duration::from_secs(60);
