//! A listener: one socket per worker, and its TLS settings, which a reload replaces.

use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::sync::watch;

use super::lifecycle::phase::Phase;
use crate::config;
use crate::config::server::{Address, Certificates};
use crate::observe::metrics::{LabeledGauge, ListenerMetrics, Metrics};
use crate::tls::{self, TlsError};
use crate::upstream::enable_keep_alive;

/// A listener, shared by its workers.
#[derive(Debug)]
pub(super) struct Listener {
    /// The address as written in the configuration.
    pub(super) name: Arc<str>,
    pub(super) metrics: Arc<ListenerMetrics>,
    /// The configured address.
    configured: Address,
    address: SocketAddr,
    current: ArcSwap<CurrentListener>,
    /// Its own phase: a listener that a reload removes drains while the gateway serves.
    phase: watch::Sender<Phase>,
    /// Whether other sockets get the connections that arrive after the drain.
    succeeded: AtomicBool,
}

/// The settings of a listener that a reload may change: open connections keep theirs.
#[derive(Debug)]
pub(super) struct CurrentListener {
    pub(super) http2: bool,
    pub(super) redirect_https: Option<u16>,
    /// Whether every connection begins with a header of the PROXY protocol.
    pub(super) proxy_protocol: bool,
    tls: Option<Tls>,
}

impl CurrentListener {
    /// Returns the TLS configuration; `None` on an unencrypted listener.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(|tls| Arc::clone(&tls.config))
    }
}

/// A TLS configuration, with the metrics of its certificates.
#[derive(Debug)]
struct Tls {
    config: Arc<ServerConfig>,
    _certificates: Vec<Arc<LabeledGauge>>,
}

/// An error of setting up a listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on the address.
    #[error("{address} is in use by another program, or by a gateway that is already running")]
    Taken {
        /// The address.
        address: String,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The certificates are unusable.
    #[error("cannot use the TLS settings of {address}")]
    Tls {
        /// The address.
        address: String,
        /// The cause.
        #[source]
        source: TlsError,
    },
}

impl Listener {
    /// Prepares a listener, and binds a socket for each of `workers`: the system distributes connections among them.
    ///
    /// # Errors
    ///
    /// [`ListenError`] names the address.
    pub(super) fn bind(
        settings: &config::Listener,
        workers: usize,
        metrics: &Metrics,
    ) -> Result<(Self, Vec<TcpListener>), ListenError> {
        let name = settings.address.to_string();
        let bind = |source| ListenError::Bind { address: name.clone(), source };
        let Address::Tcp(configured) = &settings.address else {
            return Err(bind(io::Error::from(io::ErrorKind::Unsupported)));
        };
        let mut address = *configured;
        let mut sockets = Vec::with_capacity(workers);
        for _ in 0..workers {
            let socket = listen(address).map_err(bind)?;
            // For port 0 the first socket determines the port of the others.
            address = socket.local_addr().map_err(bind)?;
            sockets.push(socket);
        }
        let metrics = metrics.listener(&settings.name);
        let listener = Self {
            name: Arc::clone(&settings.name),
            current: ArcSwap::from_pointee(current_settings(&metrics, settings)?),
            metrics,
            configured: settings.address.clone(),
            address,
            phase: watch::Sender::new(Phase::Serving),
            succeeded: AtomicBool::new(false),
        };
        Ok((listener, sockets))
    }

    /// Returns the bound address, with the actual port for port 0.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether this listener has the address of `settings`.
    pub(super) fn is_for(&self, settings: &config::Listener) -> bool {
        settings.address == self.configured
    }

    /// Whether a socket of this listener receives connections for the address of `settings`, too.
    pub(super) fn overlaps(&self, settings: &config::Listener) -> bool {
        matches!(settings.address, Address::Tcp(other) if self.overlaps_with(other))
    }

    /// Whether a socket of this listener receives connections for `other`, too.
    pub(super) fn overlaps_with(&self, other: SocketAddr) -> bool {
        let all = self.address.ip().is_unspecified() || other.ip().is_unspecified();
        self.address.port() == other.port() && (all || self.address.ip() == other.ip())
    }

    /// Prepares new settings for this listener.
    ///
    /// # Errors
    ///
    /// [`ListenError::Tls`] if the certificates are unusable.
    pub(super) fn prepare(
        &self,
        settings: &config::Listener,
    ) -> Result<Arc<CurrentListener>, ListenError> {
        current_settings(&self.metrics, settings).map(Arc::new)
    }

    /// Accepts nothing new; connections end after their current request. `succeeded` is whether other sockets get the
    /// connections that arrive from then on.
    pub(super) fn drain(&self, succeeded: bool) {
        self.succeeded.store(succeeded, Relaxed);
        self.phase.send_replace(Phase::Draining);
    }

    /// Whether other sockets get the connections that arrive after the drain.
    pub(super) fn is_succeeded(&self) -> bool {
        self.succeeded.load(Relaxed)
    }

    /// Returns the phase of this listener and of its connections.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Applies prepared settings to new connections.
    pub(super) fn apply(&self, prepared: Arc<CurrentListener>) {
        self.current.store(prepared);
    }

    /// Returns the settings for a new connection.
    pub(super) fn current(&self) -> Arc<CurrentListener> {
        self.current.load_full()
    }
}

fn current_settings(
    metrics: &ListenerMetrics,
    settings: &config::Listener,
) -> Result<CurrentListener, ListenError> {
    let failed = |source| ListenError::Tls { address: settings.address.to_string(), source };
    let tls = settings.tls.as_ref().map(|tls| Tls::new(metrics, settings, tls)).transpose();
    Ok(CurrentListener {
        http2: settings.http2,
        redirect_https: settings.redirect_https,
        proxy_protocol: settings.proxy_protocol,
        tls: tls.map_err(failed)?,
    })
}

impl Tls {
    fn new(
        metrics: &ListenerMetrics,
        settings: &config::Listener,
        tls: &config::server::Tls,
    ) -> Result<Self, TlsError> {
        let generated;
        let certificates = match &tls.certificates {
            Certificates::Files(identities) => identities.as_slice(),
            Certificates::SelfSigned => {
                generated = [tls::server::self_signed()?];
                &generated
            }
        };
        let mut gauges = Vec::new();
        for identity in certificates {
            let names = tls::server::CertificateNames::of(identity)?;
            let name = names.dns.first().map_or("", String::as_str);
            gauges.push(metrics.certificate(name, names.expires));
        }
        let options = tls::server::ServerOptions {
            only_tls13: tls.only_tls13,
            session_tickets: tls.session_tickets,
            http2: settings.http2,
            clients: tls.clients.as_ref(),
        };
        let config = tls::server::config(certificates, options)?;
        Ok(Self { config: Arc::new(config), _certificates: gauges })
    }
}

/// Refuses addresses on which another process listens: the workers' sockets share their address (`SO_REUSEPORT`), and
/// would also share it with another gateway, which then takes some of the connections.
///
/// All addresses are tried before the first is bound: those of one configuration may overlap (`0.0.0.0` and `[::]`).
///
/// # Errors
///
/// [`ListenError`] names the address.
pub(super) fn refuse_taken<'a>(
    listeners: impl IntoIterator<Item = &'a config::Listener>,
) -> Result<(), ListenError> {
    for settings in listeners {
        let Address::Tcp(address) = settings.address else { continue };
        let name = || settings.address.to_string();
        match socket(address).and_then(|socket| socket.bind(&address.into())) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(ListenError::Taken { address: name() });
            }
            Err(source) => return Err(ListenError::Bind { address: name(), source }),
        }
    }
    Ok(())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier process in TIME_WAIT do not count as in use.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    enable_keep_alive(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The listen backlog of one socket.
pub(super) const BACKLOG: i32 = 4096;
