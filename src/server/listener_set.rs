//! The listeners of all workers, which a reload may change.

use core::net::SocketAddr;
use std::net::TcpListener;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::listener::{CurrentListener, ListenError, Listener, refuse_taken};
use super::tcp_handshake_drain::listening_sockets;
use crate::config;
use crate::observe::metrics::Metrics;

/// A socket of a listener, for one worker.
pub(super) type OpenSocket = (Arc<Listener>, TcpListener);

/// The listeners, and the channels through which the workers receive sockets.
#[derive(Debug)]
pub(super) struct ListenerSet {
    /// In the order of the configuration.
    listeners: Vec<Arc<Listener>>,
    workers: Vec<UnboundedSender<OpenSocket>>,
    draining: bool,
}

/// The listeners of another configuration, bound but not in use.
#[derive(Debug)]
pub(super) struct PreparedListeners(Vec<Prepared>);

#[derive(Debug)]
enum Prepared {
    /// A listener that stays, with new settings.
    Kept(Arc<Listener>, Arc<CurrentListener>),
    /// A new one, with a socket for each worker.
    New(Arc<Listener>, Vec<TcpListener>),
}

impl ListenerSet {
    /// Creates the set of these listeners, each with a socket for each of `workers`; returns the receivers of the
    /// workers' sockets.
    pub(super) fn of(
        bound: Vec<(Arc<Listener>, Vec<TcpListener>)>,
        workers: usize,
    ) -> (Self, Vec<UnboundedReceiver<OpenSocket>>) {
        let (senders, receivers) = (0..workers).map(|_| unbounded_channel()).unzip();
        let mut set = Self { listeners: Vec::new(), workers: senders, draining: false };
        for (listener, sockets) in bound {
            set.open(&listener, sockets);
            set.listeners.push(listener);
        }
        (set, receivers)
    }

    /// Returns the bound addresses, with actual ports for port 0.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|listener| listener.address()).collect()
    }

    /// Prepares the listeners of a new configuration: binds addresses that are new, and loads the TLS settings of all.
    ///
    /// # Errors
    ///
    /// [`ListenError`]; nothing has changed then.
    pub(super) fn prepare(
        &self,
        wanted: &[config::Listener],
        metrics: &Metrics,
    ) -> Result<PreparedListeners, ListenError> {
        // Several listeners may have port 0, each with a port of its own.
        let mut left: Vec<_> = self.listeners.iter().collect();
        let mut prepare = |settings: &config::Listener| {
            if let Some(index) = left.iter().position(|own| own.is_for(settings)) {
                let listener = left.remove(index);
                return Ok(Prepared::Kept(Arc::clone(listener), listener.prepare(settings)?));
            }
            // The address of a listener of this process is taken, of course: the two share connections for a moment.
            if !self.listeners.iter().any(|own| own.overlaps(settings)) {
                refuse_taken([settings])?;
            }
            let (listener, sockets) = Listener::bind(settings, self.workers.len(), metrics)?;
            Ok(Prepared::New(Arc::new(listener), sockets))
        };
        wanted.iter().map(&mut prepare).collect::<Result<_, _>>().map(PreparedListeners)
    }

    /// Opens new listeners, applies new settings, and drains listeners that are gone. A gateway that drains opens
    /// none.
    pub(super) fn apply(&mut self, prepared: PreparedListeners) {
        if self.draining {
            return;
        }
        let mut next = Vec::new();
        for prepared in prepared.0 {
            next.push(match prepared {
                Prepared::Kept(listener, settings) => {
                    listener.apply(settings);
                    listener
                }
                Prepared::New(listener, sockets) => {
                    self.open(&listener, sockets);
                    tracing::info!(address = %listener.address(), "Listening.");
                    listener
                }
            });
        }
        // After the new ones are open: addresses that overlap are served without a gap.
        for gone in core::mem::replace(&mut self.listeners, next) {
            if !self.listeners.iter().any(|listener| Arc::ptr_eq(listener, &gone)) {
                let address = gone.address();
                gone.drain(self.listeners.iter().any(|own| own.overlaps_with(address)));
                tracing::info!(address = %gone.address(), "Listener removed; closing its connections after their current requests.");
            }
        }
    }

    /// Drains all listeners.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        let ports: Vec<_> = self.addresses().iter().map(SocketAddr::port).collect();
        let sockets = listening_sockets(&ports);
        for (index, listener) in self.listeners.iter().enumerate() {
            let own = ports.iter().filter(|port| **port == ports[index]).count();
            // Sockets beyond our own are those of a successor; so they may be, where the system does not report it.
            let others =
                sockets.as_ref().is_none_or(|sockets| sockets[index] > own * self.workers.len());
            listener.drain(others);
        }
    }

    fn open(&self, listener: &Arc<Listener>, sockets: Vec<TcpListener>) {
        for (worker, socket) in self.workers.iter().zip(sockets) {
            // A worker that is gone has failed, which ends the gateway.
            let _ = worker.send((Arc::clone(listener), socket));
        }
    }
}
