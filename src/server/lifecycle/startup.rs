//! Startup: from a validated configuration to a running gateway.

use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Handle;

use super::state_persistence;
use crate::base::clock::Clock;
use crate::config::{Config, Environment};
use crate::disk::{Directory, OpenError};
use crate::gateway::{RetainedState, Shared, compile};
use crate::metering::{Metering, MeteringError};
use crate::observe::log::Log;
use crate::observe::metrics::Metrics;
use crate::server::admin::Admin;
use crate::server::{ListenError, Readiness, Reload, Server, StartError, StatePersistence};

/// The parameters of starting a gateway.
///
/// # Examples
///
/// A program that starts the gateway of a file and waits until it is asked to stop:
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use std::io::stdout;
/// use std::path::PathBuf;
/// use std::sync::Arc;
///
/// use northgate::base::clock::Clock;
/// use northgate::config::{self, Environment};
/// use northgate::observe::log::Log;
/// use northgate::observe::log_format::Format;
/// use northgate::observe::metrics::Metrics;
/// use northgate::server::Startup;
/// use tokio::runtime::Handle;
///
/// let (file, environment) = (PathBuf::from("gateway.yaml"), Environment::from_process());
/// let clock = Clock::system();
/// let (config, warnings) = config::load(&file, &environment, clock.now())?;
/// eprint!("{warnings}");
/// let metrics = Metrics::with(config.metrics.settings.clone());
/// let (log, _events) =
///     Log::to(Box::new(stdout()), Format::Json, &config.logging, None, clock.clone(), &metrics)?;
/// let (log, control) = (Arc::new(log), Handle::current());
/// let gateway = Startup { file, environment, clock, metrics, log, control }.start(&config).await?;
/// println!("the operator's address is {}", gateway.admin);
/// tokio::signal::ctrl_c().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Startup {
    /// The path of the configuration; a reload reads it again.
    pub file: PathBuf,
    /// The variables of the configuration.
    pub environment: Environment,
    /// The injected clock.
    pub clock: Clock,
    /// All metrics.
    pub metrics: Metrics,
    /// The log.
    pub log: Arc<Log>,
    /// The runtime for everything besides requests.
    pub control: Handle,
}

/// A running gateway.
#[derive(Clone, Debug)]
pub struct RunningGateway {
    /// The listeners and workers.
    pub server: Arc<Server>,
    /// The readiness.
    pub readiness: Arc<Readiness>,
    /// Reloads the configuration.
    pub reload: Arc<Reload>,
    /// Sweeps and saves the counters of limits.
    pub upkeep: Arc<StatePersistence>,
    /// The address of the admin listener, with the actual port for port 0.
    pub admin: SocketAddr,
}

/// An error of starting a gateway.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A listener, a worker or a route failed.
    #[error(transparent)]
    Server(#[from] StartError),
    /// Usage could not be metered.
    #[error(transparent)]
    Metering(#[from] MeteringError),
    /// The state in `server.state_dir` is unreadable: without it, revoked tokens would be valid again.
    #[error("cannot load the revocations in `server.state_dir`")]
    State(#[from] OpenError),
    /// The admin listener cannot be bound.
    #[error("cannot bind the admin listener to {address} (`admin.listen`)")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    /// Whether another process listens on one of the addresses.
    pub fn is_taken(&self) -> bool {
        match self {
            Self::Server(StartError::Listen(ListenError::Taken { .. })) => true,
            Self::Server(_) | Self::State(_) | Self::Metering(_) => false,
            Self::Admin { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
        }
    }
}

impl Startup {
    /// Starts a gateway, which serves when this returns.
    ///
    /// # Errors
    ///
    /// [`LaunchError`]; nothing is left running then.
    pub async fn start(self, config: &Config) -> Result<RunningGateway, LaunchError> {
        self.launch(config, false).await
    }

    /// Starts a gateway on the addresses of another one that is still running and is to be stopped now. The system
    /// gives new connections to either of them until the other one drains.
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Self::start).
    pub async fn take_over(self, config: &Config) -> Result<RunningGateway, LaunchError> {
        self.launch(config, true).await
    }

    async fn launch(self, config: &Config, handover: bool) -> Result<RunningGateway, LaunchError> {
        let address = config.admin.listen;
        let admin = |source| LaunchError::Admin { address, source };
        let listener = listen(address, handover).map_err(admin)?;
        let bound = listener.local_addr().map_err(admin)?;
        let retained =
            RetainedState::new(self.clock.clone(), self.metrics.clone(), self.control.clone());
        let state_dir = config.server.state_dir.clone();
        if let Some(dir) = &state_dir {
            retained.persist_in(&Directory::at(dir))?;
            state_persistence::load(&retained, dir);
        }
        let snapshot = compile(config, &retained).map_err(StartError::from)?;
        // Tokens revoked before a restart must not be valid after it.
        snapshot.receive_revocations(INITIAL_SYNC_TIMEOUT).await;
        let shared = Arc::new(Shared::new(snapshot, retained, self.log.access()));
        let server = Arc::new(Server::start(config, Arc::clone(&shared), handover)?);
        let metering = match (&config.metering, &state_dir) {
            (Some(settings), Some(dir)) => {
                let (clock, metrics) = (self.clock.clone(), self.metrics.clone());
                let log = self.log.usage();
                Some(Arc::new(Metering::new(settings.clone(), dir, clock, metrics, &log)?))
            }
            _ => None,
        };
        let upkeep = Arc::new(StatePersistence::of(shared, state_dir, metering.clone()));
        self.control.spawn(Arc::clone(&upkeep).run());
        self.metrics.process().reloaded(&config.hash, self.clock.now());
        let readiness = Arc::new(Readiness::of(Arc::clone(&server)));
        let reload =
            Arc::new(Reload::new(self.file, self.environment, Arc::clone(&server), self.log));
        let operator =
            Admin::new(Arc::clone(&server), Arc::clone(&readiness), Arc::clone(&reload), metering);
        self.control.spawn(operator.serve(listener, self.control.clone()));
        Ok(RunningGateway { server, readiness, reload, upkeep, admin: bound })
    }
}

/// Binds the admin listener. The socket is shared only with a process that starts later for a handover: of two
/// gateways started with one configuration at the same instant, at most one gets the address and goes on.
fn listen(address: SocketAddr, handover: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if handover {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    // Both may bind an address that can be shared. Without sharing at the time of listening, only one of them
    // succeeds.
    let listener = socket.listen(BACKLOG)?;
    SockRef::from(&listener).set_reuse_port(true)?;
    Ok(listener)
}

/// The listen backlog of the admin listener.
const BACKLOG: u32 = 256;
/// The time that a start waits for the revocations of other instances.
const INITIAL_SYNC_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn at_most_one_of_two_concurrent_starts_binds_the_admin_address() {
        // An address of its own, so that the port is not taken by another connection of the machine.
        let free = listen("127.77.0.1:0".parse().expect("an address"), false).expect("a free port");
        let address = free.local_addr().expect("a bound socket");
        drop(free);
        for round in 0..200 {
            let barrier = Arc::new(Barrier::new(2));
            let starts = [0, 1].map(|_| {
                let (barrier, runtime) = (Arc::clone(&barrier), tokio::runtime::Handle::current());
                std::thread::spawn(move || {
                    let _runtime = runtime.enter();
                    barrier.wait();
                    listen(address, false).ok()
                })
            });
            let started = starts.map(|start| start.join().expect("a start"));
            assert!(started.iter().flatten().count() < 2, "round {round}");
        }
        let _first = listen(address, false).expect("a free port");
        assert!(listen(address, true).is_ok(), "a gateway that takes over");
        assert!(listen(address, false).is_err(), "a gateway that does not");
    }
}
