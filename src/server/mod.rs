//! Floor 7: sockets and threads.
//!
//! Workers serve; a small control runtime reloads, asks authorization servers
//! and answers the operator. [`Server::start`] binds every address before the
//! first request is taken, [`Server::reload`] swaps the snapshot, and
//! [`Server::drain`] lets what was accepted end.

mod admin;
mod admin_revoke;
mod catch_panic;
mod connection;
mod connection_limit;
mod connection_timeouts;
pub mod fd_limit;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod http1;
mod http2;
mod lifecycle;
mod listener;
mod worker;
mod write_coalescing;

use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use self::connection_limit::ConnectionLimiter;
pub use self::lifecycle::readiness::Readiness;
pub use self::lifecycle::reload::{Reload, Reloaded, chain};
pub use self::lifecycle::restart::AFTER_RESTART;
use self::lifecycle::restart::StartedSettings;
pub use self::lifecycle::startup::{LaunchError, RunningGateway, Startup};
pub use self::lifecycle::state_persistence::StatePersistence;
pub use self::listener::ListenError;
use self::listener::Listener;
use self::worker::Worker;
use crate::config::{self, Config};
use crate::gateway::{CompileError, Shared, Snapshot, compile};

/// A running gateway: its listeners, its workers, and the snapshot they serve from.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Arc<Listener>>,
    crowd: Arc<ConnectionLimiter>,
    started: StartedSettings,
    operator: ArcSwap<Operator>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    phase: watch::Sender<Phase>,
    /// Whether a worker has ended although the gateway serves.
    failed: watch::Sender<bool>,
}

/// What the operator's listener answers by.
#[derive(Debug)]
pub(super) struct Operator {
    pub(super) settings: config::Admin,
    pub(super) metrics_path: String,
}

impl Operator {
    fn of(config: &Config) -> Self {
        Self { settings: config.admin.clone(), metrics_path: config.metrics.path.clone() }
    }
}

/// What the gateway does with new connections and requests.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Phase {
    /// It serves.
    Serving,
    /// It serves what it has accepted, and takes nothing new.
    Draining,
    /// What is left is cut.
    Over,
}

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address or its certificates cannot be used.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The configuration names something that cannot be made.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The system gives no thread, or nothing that it could wait for its sockets with.
    #[error("a worker cannot be started")]
    Worker(#[source] io::Error),
}

impl Server {
    /// Binds every address, and serves from then on. With `handover`, also where another gateway listens: connections
    /// go to either of them until that one drains.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left running then.
    pub fn start(config: &Config, shared: Arc<Shared>, handover: bool) -> Result<Self, StartError> {
        let workers = config.server.workers.map_or_else(cpus, usize::from);
        if !handover {
            listener::refuse_taken(&config.listeners)?;
        }
        let mut bound = Vec::new();
        for settings in &config.listeners {
            bound.push(Listener::bind(settings, workers, &shared.retained.metrics)?);
        }
        let crowd = Arc::new(ConnectionLimiter::new(
            config.server.max_connections,
            config.server.max_connections_per_ip,
        ));
        let mut listeners = Vec::new();
        let mut sockets: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
        for (listener, of_listener) in bound {
            let listener = Arc::new(listener);
            for (of_worker, socket) in sockets.iter_mut().zip(of_listener) {
                of_worker.push((Arc::clone(&listener), socket));
            }
            listeners.push(listener);
        }
        let server = Self {
            shared: Arc::clone(&shared),
            listeners,
            crowd,
            started: StartedSettings::with(config),
            operator: ArcSwap::from_pointee(Operator::of(config)),
            workers: Mutex::default(),
            phase: watch::Sender::new(Phase::Serving),
            failed: watch::Sender::new(false),
        };
        server.start_workers(sockets).inspect_err(|_| {
            server.phase.send_replace(Phase::Over);
            join(server.take_workers());
        })?;
        Ok(server)
    }

    /// Starts a worker for each list of sockets. They serve when this returns.
    fn start_workers(
        &self,
        sockets: Vec<Vec<(Arc<Listener>, TcpListener)>>,
    ) -> Result<(), StartError> {
        let (started, each) = mpsc::sync_channel(sockets.len());
        for (number, sockets) in sockets.into_iter().enumerate() {
            let worker = Worker {
                shared: Arc::clone(&self.shared),
                sockets,
                crowd: Arc::clone(&self.crowd),
                phase: self.phase.subscribe(),
                started: started.clone(),
                failed: self.failed.clone(),
            };
            let thread = worker.start(number).map_err(StartError::Worker)?;
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        drop(started);
        let wanted = self.workers.lock().unwrap_or_else(PoisonError::into_inner).len();
        for _ in 0..wanted {
            // A worker that has said nothing and is gone has panicked.
            let said = each.recv().unwrap_or_else(|_| Err(io::Error::other("it has panicked")));
            said.map_err(StartError::Worker)?;
        }
        Ok(())
    }

    fn take_workers(&self) -> Vec<JoinHandle<()>> {
        core::mem::take(&mut *self.workers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until a worker has ended although the gateway serves: by a panic, since nothing else ends one.
    pub async fn failed(&self) {
        // The sender is this server's own.
        let _ = self.failed.subscribe().wait_for(|failed| *failed).await;
    }

    /// Where it listens, in the order of the file, with the ports that were found for port 0.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address()).collect()
    }

    /// What all threads share.
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What new requests are served from.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// What the operator's listener answers by at this moment.
    pub(super) fn operator(&self) -> Arc<Operator> {
        self.operator.load_full()
    }

    /// Compiles `config` and serves new connections and requests from it. What a restart is needed for stays as it
    /// is, and is what this returns: the keys of [`AFTER_RESTART`] that have changed.
    ///
    /// # Errors
    ///
    /// If anything cannot be made; everything stays as it was.
    pub fn reload(&self, config: &Config) -> Result<Vec<&'static str>, StartError> {
        let snapshot = compile(config, &self.shared.retained)?;
        let prepared = self.listeners.iter().map(|listener| listener.prepare(&config.listeners));
        let prepared = prepared.collect::<Result<Vec<_>, _>>()?;
        // Nothing fails from here on.
        for (listener, prepared) in self.listeners.iter().zip(prepared) {
            if let Some(prepared) = prepared {
                listener.take_over(prepared);
            }
        }
        let server = &config.server;
        self.crowd.resize(server.max_connections, server.max_connections_per_ip);
        self.operator.store(Arc::new(Operator::of(config)));
        self.shared.snapshot.store(Arc::new(snapshot));
        Ok(self.started.waiting(config))
    }

    /// Takes nothing new, waits until what was accepted has ended, at most `timeout`, and cuts the rest.
    /// Then waits for calls under way whose requests have been answered already, as long as there is time
    /// left. True if no connection had to be cut.
    pub async fn drain(&self, timeout: Duration) -> bool {
        let end = tokio::time::Instant::now() + timeout;
        self.phase.send_replace(Phase::Draining);
        let workers = self.take_workers();
        let ended = tokio::task::spawn_blocking(move || join(workers));
        let mut ended = core::pin::pin!(ended);
        let politely = tokio::time::timeout(timeout, &mut ended).await.is_ok();
        if !politely {
            self.phase.send_replace(Phase::Over);
            let _ = ended.await;
        }
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        self.shared.retained.drain(left.max(FLUSH_TIMEOUT)).await;
        // Now that the last request has revoked what it may have.
        self.snapshot().publish_revocations(FLUSH_TIMEOUT).await;
        politely
    }
}

/// Waits for the end of `workers`. A panic was printed when it happened, and [`Server::failed`] tells of it.
fn join(workers: Vec<JoinHandle<()>>) {
    for worker in workers {
        drop(worker.join());
    }
}

/// How long an end waits until other gateways have been told what was revoked.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Processors this process may use, its quota counted.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
