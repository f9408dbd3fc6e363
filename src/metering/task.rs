//! The task that collects, saves and exports usage.

use core::time::Duration;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::delivery::{Delivery, Outcome};
use super::event::Record;
use super::export::ExportDestination;
use super::outbox::Outbox;
use super::settings::Settings;
use crate::base::clock::Clock;
use crate::base::lock::IgnorePoison;
use crate::disk::Directory;
use crate::limit::{LimitRegistry, Now};
use crate::observe::metrics::Metrics;
use crate::observe::usage_log::UsageLog;
use crate::tls::TlsError;

/// The metering of one gateway.
#[derive(Debug)]
pub struct Metering {
    outbox: Arc<Mutex<Outbox>>,
    interval: Duration,
    clock: Clock,
    metrics: Metrics,
    state: tokio::sync::Mutex<State>,
}

/// The state of the task between two rounds.
#[derive(Debug)]
struct State {
    collected: Instant,
    looked: Instant,
    deliveries: Vec<Delivery>,
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
        log: &UsageLog,
    ) -> Result<Self, MeteringError> {
        let interval = settings.interval;
        let destinations = ExportDestination::all(settings, log)?;
        let names = destinations.iter().map(ExportDestination::name);
        let outbox = Outbox::open(Directory::at(dir), names).map_err(MeteringError::Outbox)?;
        let now = Instant::now();
        let state = State {
            collected: now,
            // The first round looks for files of earlier processes.
            looked: now.checked_sub(LOOK_INTERVAL).unwrap_or(now),
            deliveries: destinations.into_iter().map(Delivery::new).collect(),
            is_due: true,
            has_failed: false,
        };
        Ok(Self {
            outbox: Arc::new(Mutex::new(outbox)),
            interval,
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
            while self.can_export(&*self.state.lock().await) {
                sleep(FINISH_POLL_INTERVAL).await;
                self.round(limits, false).await;
            }
        };
        // The rest stays on disk for the next process.
        let _ = timeout(FINISH_TIMEOUT, exported).await;
    }

    /// Returns what waits, for operators.
    pub fn status(&self) -> Value {
        Value::Object(self.outbox.lock().ignore_poison().status())
    }

    /// Whether an export can start: a destination has a pending batch, and its previous export succeeded.
    fn can_export(&self, state: &State) -> bool {
        let outbox = self.outbox.lock().ignore_poison();
        let lacks = |delivery: &Delivery| !outbox.due(delivery.name(), 0).is_empty();
        state.is_due || state.deliveries.iter().any(|one| !one.has_failed() && lacks(one))
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
        self.end_exports(&mut state).await;
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
        let outbox = self.outbox.lock().ignore_poison();
        self.metrics.process().usage_waiting(outbox.waiting());
        for delivery in state.deliveries.iter_mut().filter(|delivery| delivery.is_ready()) {
            let due = outbox.due(delivery.name(), MAX_EXPORTED_EVENTS);
            if !due.is_empty() {
                delivery.begin(outbox.files().clone(), due);
            }
        }
    }

    /// Records the exports that have ended.
    async fn end_exports(&self, state: &mut State) {
        let State { deliveries, is_due, .. } = state;
        for delivery in deliveries {
            let Some(Outcome { exported, failed }) = delivery.ended().await else { continue };
            let mut outbox = self.outbox.lock().ignore_poison();
            let process = self.metrics.process();
            for number in exported {
                if let Some(events) = outbox.exported(delivery.name(), number) {
                    process.usage_exported(true, events);
                }
                *is_due = true;
            }
            if let Some((events, error)) = failed {
                let to = delivery.name();
                tracing::warn!(destination = to, error = %chain(&error), waiting = outbox.waiting(), "Could not export usage; it stays on disk and is tried again.");
                process.usage_exported(false, events);
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

/// Returns an error with its causes.
fn chain(error: &dyn core::error::Error) -> String {
    let causes = core::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

const SAVE_INTERVAL: Duration = Duration::from_millis(500);
/// The time between two looks for files of processes that have ended.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// The maximum number of events in one export of several batches: they are found again at the end of a file.
const MAX_EXPORTED_EVENTS: usize = 10_000;
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);
const FINISH_POLL_INTERVAL: Duration = Duration::from_millis(50);
