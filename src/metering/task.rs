//! The task that collects, saves and exports usage.

use core::time::Duration;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout};

use super::event::{Batch, Record};
use super::export::{ExportError, Exporter};
use super::outbox::Outbox;
use super::settings::Settings;
use crate::base::clock::Clock;
use crate::base::lock::IgnorePoison;
use crate::disk::Directory;
use crate::limit::{LimitRegistry, Now};
use crate::observe::metrics::Metrics;
use crate::tls::TlsError;

/// The metering of one gateway.
#[derive(Debug)]
pub struct Metering {
    outbox: Arc<Mutex<Outbox>>,
    interval: Duration,
    exporter: Exporter,
    clock: Clock,
    metrics: Metrics,
    state: tokio::sync::Mutex<State>,
}

/// The state of the task between two rounds.
#[derive(Debug)]
struct State {
    collected: Instant,
    looked: Instant,
    /// The batch on its way, with what came of it.
    export: Option<JoinHandle<(Batch, Result<(), ExportError>)>>,
    /// When the next export may begin, after a failure.
    not_before: Instant,
    failures: u32,
    is_due: bool,
    has_failed: bool,
}

/// The reason why metering cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum MeteringError {
    /// The outbox cannot be created.
    #[error("cannot write usage to `server.state_dir`")]
    Outbox(#[source] io::Error),
    /// The certificates of the destination's authority cannot be used.
    #[error("cannot prepare the export of usage")]
    Tls(#[from] TlsError),
}

impl Metering {
    /// Prepares metering in the state directory `dir`.
    ///
    /// # Errors
    ///
    /// [`MeteringError`] if nothing could be exported or saved.
    pub fn new(
        settings: Settings,
        dir: &Path,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Self, MeteringError> {
        let outbox = Outbox::open(Directory::at(dir)).map_err(MeteringError::Outbox)?;
        let interval = settings.interval;
        let now = Instant::now();
        let state = State {
            collected: now,
            // Files of earlier processes are looked for at once.
            looked: now.checked_sub(LOOK_INTERVAL).unwrap_or(now),
            export: None,
            not_before: now,
            failures: 0,
            is_due: true,
            has_failed: false,
        };
        Ok(Self {
            outbox: Arc::new(Mutex::new(outbox)),
            interval,
            exporter: Exporter::new(settings)?,
            clock,
            metrics,
            state: tokio::sync::Mutex::new(state),
        })
    }

    /// Collects, saves and exports the usage of `limits` until the control runtime ends.
    pub async fn run(&self, limits: &LimitRegistry) {
        loop {
            self.round(limits, false).await;
            sleep(SAVE_INTERVAL).await;
        }
    }

    /// Collects and saves all usage after the last request, and tries to export it; what is left waits for the next
    /// process.
    pub async fn finish(&self, limits: &LimitRegistry) {
        self.round(limits, true).await;
        let exported = async {
            while self.waiting() > 0 && self.state.lock().await.failures == 0 {
                sleep(FINISH_POLL_INTERVAL).await;
                self.round(limits, false).await;
            }
        };
        // What is left is on disk.
        let _ = timeout(FINISH_TIMEOUT, exported).await;
    }

    /// Returns what waits, for operators.
    pub fn status(&self) -> Value {
        let outbox = self.outbox.lock().ignore_poison();
        let events: usize = outbox.batches.iter().map(|batch| batch.records.len()).sum();
        json!({ "waiting_batches": outbox.batches.len(), "waiting_events": events })
    }

    fn waiting(&self) -> usize {
        self.outbox.lock().ignore_poison().batches.len()
    }

    async fn round(&self, limits: &LimitRegistry, collect: bool) {
        let mut state = self.state.lock().await;
        let moment = Now::of(&self.clock);
        if state.looked.elapsed() >= LOOK_INTERVAL {
            state.looked = Instant::now();
            let pending = limits.pending_usage(moment).into_iter().map(Record::from).collect();
            let taking = self.with_outbox(move |outbox| outbox.take_over(pending, moment.now));
            if let Err(error) = taking.await {
                tracing::error!(%error, "Could not take over the usage of earlier processes; trying again.");
            }
        }
        self.exported(&mut state).await;
        if collect || state.collected.elapsed() >= self.interval {
            state.collected = Instant::now();
            let records: Vec<Record> =
                limits.collect_usage(moment).into_iter().map(Record::from).collect();
            if !records.is_empty() {
                self.outbox.lock().ignore_poison().collect(records, moment.now);
                state.is_due = true;
            }
        }
        if limits.take_usage_changed() {
            state.is_due = true;
        }
        if state.is_due {
            let pending = limits.pending_usage(moment).into_iter().map(Record::from).collect();
            let saved = self.with_outbox(move |outbox| outbox.save(pending)).await;
            state.is_due = saved.is_err();
            Self::log_save(&mut state, saved.err());
        }
        self.metrics.process().usage_waiting(self.waiting());
        // Only what is on disk: its ids must be the same after a restart.
        if !state.is_due && state.export.is_none() && Instant::now() >= state.not_before {
            self.export_next(&mut state);
        }
    }

    /// Begins the export of the oldest batch.
    fn export_next(&self, state: &mut State) {
        let first = self.outbox.lock().ignore_poison().batches.front().cloned();
        let Some(mut batch) = first else { return };
        let exporter = self.exporter.clone();
        state.export = Some(tokio::runtime::Handle::current().spawn(async move {
            let outcome = exporter.export(&mut batch).await;
            (batch, outcome)
        }));
    }

    /// Records the end of an export.
    async fn exported(&self, state: &mut State) {
        let Some(export) = state.export.take_if(|export| export.is_finished()) else { return };
        let outcome = export.await;
        let mut outbox = self.outbox.lock().ignore_poison();
        let process = self.metrics.process();
        match outcome {
            Ok((batch, Ok(()))) => {
                outbox.batches.retain(|waiting| waiting.id != batch.id);
                process.usage_exported(true, batch.records.len());
                (state.failures, state.is_due) = (0, true);
            }
            Ok((batch, Err(error))) => {
                tracing::warn!(error = %chain(&error), waiting = outbox.batches.len(), "Could not export usage; it stays on disk and is tried again.");
                process.usage_exported(false, batch.records.len());
                // A destination that has the batch is not asked again.
                if let Some(waiting) = outbox.batches.iter_mut().find(|one| one.id == batch.id) {
                    waiting.done = batch.done;
                }
                state.delay();
            }
            Err(error) => {
                tracing::error!(%error, "The export of usage failed; it is tried again.");
                state.delay();
            }
        }
    }

    fn log_save(state: &mut State, error: Option<io::Error>) {
        match error {
            None if state.has_failed => {
                state.has_failed = false;
                tracing::info!("Usage could be saved again.");
            }
            Some(error) if !state.has_failed => {
                state.has_failed = true;
                tracing::error!(%error, "Could not save usage; it is not exported until it can be.");
            }
            _ => {}
        }
    }

    async fn with_outbox<R: Send + 'static>(
        &self,
        act: impl FnOnce(&mut Outbox) -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        let outbox = Arc::clone(&self.outbox);
        let done = spawn_blocking(move || act(&mut outbox.lock().ignore_poison())).await;
        done.unwrap_or_else(|failed| Err(io::Error::other(failed)))
    }
}

impl State {
    /// Waits longer after each failure.
    fn delay(&mut self) {
        self.is_due = true;
        self.failures = self.failures.saturating_add(1);
        let delay = Duration::from_secs(1 << self.failures.min(6)).min(MAX_DELAY);
        self.not_before = Instant::now() + delay;
    }
}

/// Returns an error with its causes.
fn chain(error: &dyn core::error::Error) -> String {
    let causes = core::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

const SAVE_INTERVAL: Duration = Duration::from_millis(500);
/// The time between two looks for files of processes that have ended.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
const MAX_DELAY: Duration = Duration::from_secs(60);
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);
const FINISH_POLL_INTERVAL: Duration = Duration::from_millis(50);
