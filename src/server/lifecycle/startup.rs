//! From a checked configuration to a running gateway: the order in which everything starts.

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
use crate::observe::log::Log;
use crate::observe::metrics::Metrics;
use crate::server::admin::Admin;
use crate::server::{ListenError, Readiness, Reload, Server, StartError, StatePersistence};

/// What a gateway is started with.
#[derive(Debug)]
pub struct Startup {
    /// Where the configuration came from; a reload reads it again.
    pub file: PathBuf,
    /// What its variables mean.
    pub environment: Environment,
    /// The only reader of time.
    pub clock: Clock,
    /// Everything that is counted.
    pub metrics: Metrics,
    /// The running log.
    pub log: Arc<Log>,
    /// The runtime for everything that is not a request.
    pub control: Handle,
}

/// A running gateway.
#[derive(Clone, Debug)]
pub struct RunningGateway {
    /// Its listeners and workers.
    pub server: Arc<Server>,
    /// Whether requests should be sent to it.
    pub readiness: Arc<Readiness>,
    /// How it takes over a changed file.
    pub reload: Arc<Reload>,
    /// What keeps the limits' counts small, and on disk.
    pub upkeep: Arc<StatePersistence>,
    /// Where the operator's listener is, with the port that was found for port 0.
    pub admin: SocketAddr,
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A listener, a worker or a route.
    #[error(transparent)]
    Server(#[from] StartError),
    /// What earlier processes have kept in `server.state_dir`: without it, what they ended would live again.
    #[error("what was ended before the start is not known (`server.state_dir`)")]
    State(#[from] OpenError),
    /// The operator's listener.
    #[error("cannot listen on {address} for the operator (`admin.listen`)")]
    Admin {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl LaunchError {
    /// Whether another process listens where this gateway should.
    pub fn is_taken(&self) -> bool {
        match self {
            Self::Server(StartError::Listen(ListenError::Taken { .. })) => true,
            Self::Server(_) | Self::State(_) => false,
            Self::Admin { source, .. } => source.kind() == io::ErrorKind::AddrInUse,
        }
    }
}

impl Startup {
    /// Starts a gateway. It serves when this returns.
    ///
    /// # Errors
    ///
    /// [`LaunchError`]; nothing is left running then.
    pub async fn start(self, config: &Config) -> Result<RunningGateway, LaunchError> {
        self.launch(config, false).await
    }

    /// Starts a gateway on the addresses of another one that still runs, and is to be stopped now. From here on the
    /// system gives connections to either of them, until that one drains.
    ///
    /// # Errors
    ///
    /// As for [`start`](Self::start).
    pub async fn take_over(self, config: &Config) -> Result<RunningGateway, LaunchError> {
        self.launch(config, true).await
    }

    async fn launch(self, config: &Config, handover: bool) -> Result<RunningGateway, LaunchError> {
        let address = config.admin.listen;
        let admin = |source| LaunchError::Admin { address, source };
        let listener = listen(address, handover).map_err(admin)?;
        let bound = listener.local_addr().map_err(admin)?;
        let kept =
            RetainedState::new(self.clock.clone(), self.metrics.clone(), self.control.clone());
        let state_dir = config.server.state_dir.clone();
        if let Some(dir) = &state_dir {
            kept.persist_in(&Directory::at(dir))?;
            state_persistence::remember(&kept, dir);
        }
        let snapshot = compile(config, &kept).map_err(StartError::from)?;
        // A restart must not let in again what was revoked before it.
        snapshot.receive_revocations(INITIAL_SYNC_TIMEOUT).await;
        let shared = Arc::new(Shared::new(snapshot, kept, self.log.access()));
        let server = Arc::new(Server::start(config, Arc::clone(&shared), handover)?);
        let upkeep = Arc::new(StatePersistence::of(shared, state_dir));
        self.control.spawn(Arc::clone(&upkeep).run());
        self.metrics.process().reloaded(&config.hash, self.clock.now());
        let readiness = Arc::new(Readiness::of(Arc::clone(&server)));
        let reload =
            Arc::new(Reload::new(self.file, self.environment, Arc::clone(&server), self.log));
        let operator = Admin::new(Arc::clone(&server), Arc::clone(&readiness), Arc::clone(&reload));
        self.control.spawn(operator.serve(listener, self.control.clone()));
        Ok(RunningGateway { server, readiness, reload, upkeep, admin: bound })
    }
}

/// The operator's socket. It is shared with no other process, unless that one starts later and takes over: of two
/// gateways that start with one configuration in the same instant, one at the most gets it and goes on.
fn listen(address: SocketAddr, handover: bool) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if handover {
        socket.set_reuseport(true)?;
    }
    socket.bind(address)?;
    // Two that may share an address can both be bound to it. Not shared when it begins to listen, only one can do that.
    let listener = socket.listen(BACKLOG)?;
    SockRef::from(&listener).set_reuse_port(true)?;
    Ok(listener)
}

/// Connections that the system accepts for the operator's listener before the gateway does.
const BACKLOG: u32 = 256;
/// How long a start waits for what the other gateways of its Redis have revoked.
const INITIAL_SYNC_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn of_two_gateways_that_start_at_once_one_at_the_most_gets_the_operators_address() {
        // On an address of its own, so that the port is not given to a connection of the machine.
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
