//! One address on which clients connect: its sockets, one per worker, and its TLS side, replaced in place.

use core::net::SocketAddr;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config;
use crate::config::server::{Address, Certificates};
use crate::observe::metrics::{LabeledGauge, ListenerMetrics, Metrics};
use crate::tls::{self, TlsError};
use crate::upstream::enable_keep_alive;

/// A listener as its workers see it.
#[derive(Debug)]
pub(super) struct Listener {
    /// The address as the file has it.
    pub(super) name: Arc<str>,
    pub(super) metrics: Arc<ListenerMetrics>,
    /// Where the file wants it.
    wanted: Address,
    address: SocketAddr,
    in_force: ArcSwap<CurrentListener>,
}

/// What a reload may change about a listener: connections that are open keep theirs.
#[derive(Debug)]
pub(super) struct CurrentListener {
    pub(super) http2: bool,
    pub(super) redirect_https: Option<u16>,
    tls: Option<Tls>,
}

impl CurrentListener {
    /// The TLS side, or `None` in the clear.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.as_ref().map(|tls| Arc::clone(&tls.config))
    }
}

/// The TLS side, with what metrics say of its certificates.
#[derive(Debug)]
struct Tls {
    config: Arc<ServerConfig>,
    _certificates: Vec<Arc<LabeledGauge>>,
}

/// Why a listener cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process listens on the address.
    #[error("{address} is taken by another program, or by a gateway that runs already")]
    Taken {
        /// The address.
        address: String,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its certificates cannot be used.
    #[error("the TLS settings of {address} cannot be used")]
    Tls {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: TlsError,
    },
}

impl Listener {
    /// Prepares a listener, and binds a socket for each of `workers`: the system spreads connections over them.
    ///
    /// # Errors
    ///
    /// [`ListenError`] says which address cannot be bound, and why.
    pub(super) fn bind(
        settings: &config::Listener,
        workers: usize,
        metrics: &Metrics,
    ) -> Result<(Self, Vec<TcpListener>), ListenError> {
        let name = settings.address.to_string();
        let bind = |source| ListenError::Bind { address: name.clone(), source };
        let Address::Tcp(wanted) = &settings.address else {
            return Err(bind(io::Error::from(io::ErrorKind::Unsupported)));
        };
        let mut address = *wanted;
        let mut sockets = Vec::with_capacity(workers);
        for _ in 0..workers {
            let socket = listen(address).map_err(bind)?;
            // The first socket of port 0 decides for the others.
            address = socket.local_addr().map_err(bind)?;
            sockets.push(socket);
        }
        let metrics = metrics.listener(&settings.name);
        let listener = Self {
            name: Arc::clone(&settings.name),
            in_force: ArcSwap::from_pointee(in_force(&metrics, settings)?),
            metrics,
            wanted: settings.address.clone(),
            address,
        };
        Ok((listener, sockets))
    }

    /// Where it listens, with the port that was found for port 0.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// What `listeners` say of it from a reload on, if it is among them.
    ///
    /// # Errors
    ///
    /// [`ListenError::Tls`] if the certificates cannot be used.
    pub(super) fn prepare(
        &self,
        listeners: &[config::Listener],
    ) -> Result<Option<Arc<CurrentListener>>, ListenError> {
        let settings = listeners.iter().find(|settings| settings.address == self.wanted);
        settings.map(|settings| in_force(&self.metrics, settings).map(Arc::new)).transpose()
    }

    /// Takes over what was prepared.
    pub(super) fn take_over(&self, prepared: Arc<CurrentListener>) {
        self.in_force.store(prepared);
    }

    /// What holds for a connection that begins now.
    pub(super) fn current(&self) -> Arc<CurrentListener> {
        self.in_force.load_full()
    }
}

fn in_force(
    metrics: &ListenerMetrics,
    settings: &config::Listener,
) -> Result<CurrentListener, ListenError> {
    let failed = |source| ListenError::Tls { address: settings.address.to_string(), source };
    let tls = settings.tls.as_ref().map(|tls| Tls::new(metrics, settings, tls)).transpose();
    Ok(CurrentListener {
        http2: settings.http2,
        redirect_https: settings.redirect_https,
        tls: tls.map_err(failed)?,
    })
}

impl Tls {
    fn new(
        metrics: &ListenerMetrics,
        settings: &config::Listener,
        tls: &config::server::Tls,
    ) -> Result<Self, TlsError> {
        let made;
        let certificates = match &tls.certificates {
            Certificates::Files(identities) => identities.as_slice(),
            Certificates::SelfSigned => {
                made = [tls::server::self_signed()?];
                &made
            }
        };
        let mut shown = Vec::new();
        for identity in certificates {
            let names = tls::server::CertificateNames::of(identity)?;
            let name = names.dns.first().map_or("", String::as_str);
            shown.push(metrics.certificate(name, names.expires));
        }
        let config = tls::server::config(
            certificates,
            tls.only_tls13,
            tls.session_tickets,
            settings.http2,
            tls.clients.as_ref(),
        )?;
        Ok(Self { config: Arc::new(config), _certificates: shown })
    }
}

/// Refuses an address on which another process listens: the workers' sockets share theirs (`SO_REUSEPORT`), and
/// would share them with another gateway just as well, which then gets a part of the connections.
///
/// All addresses are tried before the first is bound: those of one configuration may overlap (`0.0.0.0` and `[::]`).
///
/// # Errors
///
/// [`ListenError`] says which address cannot be bound, and why.
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
    // Connections of a process before that are not quite over do not count as taken.
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

/// Connections that the system accepts for one socket before the gateway does.
pub(super) const BACKLOG: i32 = 4096;
