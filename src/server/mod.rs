//! Sockets and threads (floor 7).
//!
//! Workers serve requests; a small control runtime reloads, calls authorization servers and serves the admin API.
//! [`Server::start`] binds every address before the first request is accepted, [`Server::reload`] replaces the
//! snapshot, and [`Server::drain`] lets accepted requests finish.

mod admin;
mod catch_panic;
mod connection;
mod connection_limit;
mod connection_timeouts;
mod date;
pub mod fd_limit;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod http1;
mod http2;
mod lifecycle;
mod listener;
mod listener_set;
mod proxy_protocol;
mod tcp_handshake_drain;
mod worker;
mod write_coalescing;

use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc as channel, watch};

use self::connection_limit::ConnectionLimiter;
pub use self::lifecycle::phase::Phase;
pub use self::lifecycle::readiness::Readiness;
pub use self::lifecycle::reload::{Reload, Reloaded, chain};
use self::lifecycle::restart_required::RestartRequired;
pub use self::lifecycle::startup::{LaunchError, RunningGateway, Startup};
pub use self::lifecycle::state_persistence::StatePersistence;
pub use self::listener::ListenError;
use self::listener::Listener;
use self::listener_set::{ListenerSet, OpenSocket};
use self::worker::Worker;
use crate::base::lock::IgnorePoison;
use crate::config::{self, Config};
use crate::gateway::{CompileError, Shared, Snapshot, compile};

/// A running gateway: its listeners, its workers, and the snapshot they serve from.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Mutex<ListenerSet>,
    limiter: Arc<ConnectionLimiter>,
    started: RestartRequired,
    admin: ArcSwap<AdminSettings>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    phase: watch::Sender<Phase>,
    /// Set when a successor serves the admin address.
    admin_released: watch::Sender<bool>,
    /// Set if a worker ends while the gateway serves.
    failed: watch::Sender<bool>,
}

/// The settings of the admin listener that a reload may change.
#[derive(Debug)]
pub(super) struct AdminSettings {
    pub(super) settings: config::Admin,
    pub(super) metrics_path: String,
}

impl AdminSettings {
    fn of(config: &Config) -> Self {
        Self { settings: config.admin.clone(), metrics_path: config.metrics.path.clone() }
    }
}

/// An error of starting the gateway.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address or its certificates are unusable.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The system provides no thread or no I/O driver.
    #[error("cannot start a worker")]
    Worker(#[source] io::Error),
}

impl Server {
    /// Binds every address, and serves from then on. With `handover`, addresses on which another gateway listens are
    /// shared: either gateway gets new connections until the other one drains.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left running then.
    pub fn start(config: &Config, shared: Arc<Shared>, handover: bool) -> Result<Self, StartError> {
        let workers = config.server.workers.map_or_else(cpus, usize::from);
        if !handover {
            listener::refuse_taken(&config.listeners)?;
        }
        let bound = config.listeners.iter().map(|settings| {
            let (listener, sockets) =
                Listener::bind(settings, workers, &shared.retained().metrics)?;
            Ok((Arc::new(listener), sockets))
        });
        let bound = bound.collect::<Result<Vec<_>, ListenError>>()?;
        let limiter = Arc::new(ConnectionLimiter::new(
            config.server.max_connections,
            config.server.max_connections_per_ip,
        ));
        let (listeners, receivers) = ListenerSet::of(bound, workers);
        let server = Self {
            shared: Arc::clone(&shared),
            listeners: Mutex::new(listeners),
            limiter,
            started: RestartRequired::with(config),
            admin: ArcSwap::from_pointee(AdminSettings::of(config)),
            workers: Mutex::default(),
            phase: watch::Sender::new(Phase::Serving),
            admin_released: watch::Sender::new(false),
            failed: watch::Sender::new(false),
        };
        server.start_workers(receivers).inspect_err(|_| {
            server.phase.send_replace(Phase::Terminated);
            join(server.take_workers());
        })?;
        Ok(server)
    }

    /// Starts a worker for each source of sockets, and waits until they serve.
    fn start_workers(
        &self,
        sources: Vec<channel::UnboundedReceiver<OpenSocket>>,
    ) -> Result<(), StartError> {
        let (started, each) = mpsc::sync_channel(sources.len());
        for (number, sockets) in sources.into_iter().enumerate() {
            let worker = Worker {
                shared: Arc::clone(&self.shared),
                sockets,
                limiter: Arc::clone(&self.limiter),
                phase: self.phase.subscribe(),
                started: started.clone(),
                failed: self.failed.clone(),
            };
            let thread = worker.start(number).map_err(StartError::Worker)?;
            self.workers.lock().ignore_poison().push(thread);
        }
        drop(started);
        let wanted = self.workers.lock().ignore_poison().len();
        for _ in 0..wanted {
            // A worker that is gone without a report has panicked.
            let report =
                each.recv().unwrap_or_else(|_| Err(io::Error::other("the worker panicked")));
            report.map_err(StartError::Worker)?;
        }
        Ok(())
    }

    fn take_workers(&self) -> Vec<JoinHandle<()>> {
        core::mem::take(&mut *self.workers.lock().ignore_poison())
    }

    /// Waits until a worker has ended while the gateway serves, which only a panic causes.
    pub async fn failed(&self) {
        // The sender belongs to this server and is never dropped before.
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
    }

    /// Returns the bound addresses, in the order of the configuration, with actual ports for port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners().addresses()
    }

    fn listeners(&self) -> MutexGuard<'_, ListenerSet> {
        self.listeners.lock().ignore_poison()
    }

    /// Closes the admin listener: a successor serves its address.
    pub fn release_admin(&self) {
        self.admin_released.send_replace(true);
    }

    /// Waits until a successor serves the admin address.
    pub(super) async fn admin_released(&self) {
        // The sender belongs to this server and is never dropped before.
        let _ = self.admin_released.subscribe().wait_for(|released| *released).await;
    }

    /// Returns the state that all threads share.
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Returns the snapshot that new requests use.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Returns the current settings of the admin listener.
    pub(super) fn admin_settings(&self) -> Arc<AdminSettings> {
        self.admin.load_full()
    }

    /// Compiles `config` and serves new connections and requests from it: binds addresses that are new, and drains
    /// the listeners of addresses that are gone. Settings that only a restart changes stay as they are; returns the
    /// changed keys that wait for a restart.
    ///
    /// # Errors
    ///
    /// [`StartError`]; everything stays as it was then.
    pub fn reload(&self, config: &Config) -> Result<Vec<&'static str>, StartError> {
        let snapshot = compile(config, self.shared.retained())?;
        let mut listeners = self.listeners();
        let prepared = listeners.prepare(&config.listeners, &self.shared.retained().metrics)?;
        // Applying cannot fail.
        listeners.apply(prepared);
        drop(listeners);
        let server = &config.server;
        self.limiter.resize(server.max_connections, server.max_connections_per_ip);
        self.admin.store(Arc::new(AdminSettings::of(config)));
        self.shared.replace(snapshot);
        Ok(self.started.waiting(config))
    }

    /// Accepts nothing new, waits up to `timeout` until accepted connections have ended, and drops the rest. Shortly before,
    /// gRPC calls that go on end with a status, by which their clients turn to another gateway. Then
    /// waits for calls under way whose requests were already answered, as long as time is left. Returns true if no
    /// connection was dropped.
    pub async fn drain(&self, timeout: Duration) -> bool {
        let end = tokio::time::Instant::now() + timeout;
        self.phase.send_replace(Phase::Draining);
        self.listeners().drain();
        let workers = self.take_workers();
        let ended = tokio::task::spawn_blocking(move || join(workers));
        let mut ended = core::pin::pin!(ended);
        let last_calls = end - LAST_CALLS.min(timeout / 4);
        let mut graceful = tokio::time::timeout_at(last_calls, &mut ended).await.is_ok();
        if !graceful {
            self.phase.send_replace(Phase::EndingCalls);
            graceful = tokio::time::timeout_at(end, &mut ended).await.is_ok();
        }
        if !graceful {
            self.phase.send_replace(Phase::Terminated);
            let _ = ended.await;
        }
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        self.shared.retained().drain(left.max(FLUSH_TIMEOUT)).await;
        // After the last request, which may have revoked tokens.
        self.snapshot().publish_revocations(FLUSH_TIMEOUT).await;
        graceful
    }
}

/// Waits for the end of `workers`. A panic was printed when it happened, and [`Server::failed`] reports it.
fn join(workers: Vec<JoinHandle<()>>) {
    for worker in workers {
        drop(worker.join());
    }
}

/// The time before the end of a drain in which gRPC calls are told their status.
const LAST_CALLS: Duration = Duration::from_millis(500);
/// The time that a shutdown waits for publishing revocations to other instances.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Returns the number of processors available to this process, considering its quota.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
