//! One thread of the data plane: its runtime, its sockets, its gateway.
//!
//! Connections never move between threads, and nothing on the common path
//! takes a lock that another worker holds for long.

use core::convert::Infallible;
use core::net::SocketAddr;
use core::time::Duration;
use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_local, yield_now};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Phase;
use super::connection;
use super::connection_limit::{ConnectionLimiter, ConnectionPermit};
use super::connection_timeouts::{TimeoutSweeper, Timeouts};
use super::listener::{BACKLOG, Listener};
use crate::config::server::Server;
use crate::gateway::{Gateway, Peer, Shared};

/// What a worker is started with.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// A socket of its own for every listener.
    pub(super) sockets: Vec<(Arc<Listener>, StdListener)>,
    pub(super) crowd: Arc<ConnectionLimiter>,
    pub(super) phase: watch::Receiver<Phase>,
    /// Where the worker says once whether it serves.
    pub(super) started: SyncSender<io::Result<()>>,
    /// Where it is said that a worker has ended although the gateway serves.
    pub(super) failed: watch::Sender<bool>,
}

impl Worker {
    /// Starts the thread. It ends when its last connection has while draining, or when the phase is [`Phase::Over`].
    pub(super) fn start(self, number: usize) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let _lifeline = WorkerGuard { phase: self.phase.clone(), failed: self.failed.clone() };
            let runtime =
                Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(self.run()),
                // The gateway that waits for this has gone only if another worker has failed, too.
                Err(error) => drop(self.started.send(Err(error))),
            }
        })
    }

    async fn run(mut self) {
        let sockets = self.sockets.drain(..).map(|(listener, socket)| {
            let socket = TcpListener::from_std(socket)?;
            Ok((listener, socket))
        });
        let sockets = match sockets.collect::<io::Result<Vec<_>>>() {
            Ok(sockets) => sockets,
            Err(error) => return drop(self.started.send(Err(error))),
        };
        let gateway = Gateway::new(Arc::clone(&self.shared));
        let ward = TimeoutSweeper::new();
        // None of these may end before the worker does.
        let mut always = JoinSet::new();
        always.spawn_local(beat(ward.clone(), gateway.clone()));
        always.spawn_local({
            let gateway = gateway.clone();
            async move { gateway.watch_revocations().await }
        });
        let mut accepting = JoinSet::new();
        for (listener, socket) in sockets {
            let accept = AcceptLoop {
                listener,
                gateway: gateway.clone(),
                ward: ward.clone(),
                crowd: Arc::clone(&self.crowd),
                phase: self.phase.clone(),
            };
            accepting.spawn_local(accept.run(socket));
        }
        // Only a start that has been given up already does not hear it.
        let _ = self.started.send(Ok(()));
        tokio::select! {
            () = all(&mut accepting) => {}
            _ = always.join_next() => {}
            () = until(self.phase.clone(), Phase::Over) => {}
        }
    }
}

/// Waits until every accept loop has ended, or one of them in a panic.
async fn all(accepting: &mut JoinSet<()>) {
    while let Some(Ok(())) = accepting.join_next().await {}
}

/// Tells that its worker has ended, unless the gateway drains: one with fewer workers than it was started with
/// would leave a part of its clients waiting.
struct WorkerGuard {
    phase: watch::Receiver<Phase>,
    failed: watch::Sender<bool>,
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        if *self.phase.borrow() == Phase::Serving {
            self.failed.send_replace(true);
        }
    }
}

/// The connections of one listener on one thread.
struct AcceptLoop {
    listener: Arc<Listener>,
    gateway: Gateway,
    ward: TimeoutSweeper,
    crowd: Arc<ConnectionLimiter>,
    phase: watch::Receiver<Phase>,
}

impl AcceptLoop {
    /// Accepts until no new connections are wanted, then waits for the last one.
    ///
    /// A connection that has ended leaves nothing behind that would have to be collected: clients could keep the
    /// socket ready for ever, and nothing else in this loop would have its turn.
    async fn run(self, socket: TcpListener) {
        // Each connection holds one sender; the receiver hears when the last of them has gone.
        let (open, mut closed) = mpsc::channel::<Infallible>(1);
        let draining = until(self.phase.clone(), Phase::Draining);
        let mut draining = core::pin::pin!(draining);
        // Accepted, and not served yet when the drain begins.
        let mut waiting = Vec::new();
        for accepted_in_turn in 1_u64.. {
            let accepted = tokio::select! {
                biased;
                () = &mut draining => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    if let Some(mut place) = self.crowd.acquire(remote.ip()) {
                        tokio::select! {
                            biased;
                            () = place.ready() => {}
                            () = &mut draining => {
                                waiting.push((stream, remote, place));
                                break;
                            }
                        }
                        spawn_local(self.serve(stream, remote, place, open.clone()));
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely: connections that end make room.
                    tracing::warn!(%error, listener = %self.listener.name, "A connection could not be accepted.");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
            if accepted_in_turn % MAX_ACCEPTED_IN_TURN == 0 {
                // Connections that are open have their turn before more are accepted.
                yield_now().await;
            }
        }
        waiting.extend(self.queued(socket));
        for (stream, remote, mut place) in waiting {
            place.ready().await;
            spawn_local(self.serve(stream, remote, place, open.clone()));
        }
        drop(open);
        let _ = closed.recv().await;
    }

    /// The connections that the system has accepted for the gateway already: they are served, too. At most as many
    /// as its queue takes, since more may come meanwhile. The socket is closed then.
    fn queued(&self, socket: TcpListener) -> Vec<(TcpStream, SocketAddr, ConnectionPermit)> {
        let mut queued = Vec::new();
        let socket = match socket.into_std() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, listener = %self.listener.name, "Connections that were queued are lost.");
                return queued;
            }
        };
        for _ in 0..BACKLOG {
            // Nothing more is queued, or there is no file descriptor for it.
            let Ok((stream, remote)) = socket.accept() else { break };
            let Some(place) = self.crowd.acquire(remote.ip()) else { continue };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            match stream {
                Ok(stream) => queued.push((stream, remote, place)),
                Err(error) => {
                    tracing::warn!(%error, listener = %self.listener.name, "A connection that was queued is lost.");
                }
            }
        }
        queued
    }

    /// Serves a connection. It holds `open` to its end.
    fn serve(
        &self,
        stream: TcpStream,
        remote: SocketAddr,
        place: ConnectionPermit,
        open: mpsc::Sender<Infallible>,
    ) -> impl Future<Output = ()> + 'static {
        let (listener, gateway) = (Arc::clone(&self.listener), self.gateway.clone());
        let (pulse, phase) = (self.ward.admit(), self.phase.clone());
        async move {
            // Without it small answers wait for the client's acknowledgement: slower, and no less right.
            let _ = stream.set_nodelay(true);
            connection::serve(stream, Peer::new(remote.ip()), &listener, gateway, pulse, phase)
                .await;
            drop((place, open));
        }
    }
}

/// Sweeps this thread's connections, to clients and to services.
async fn beat(ward: TimeoutSweeper, gateway: Gateway) {
    let mut beats = interval(TimeoutSweeper::TICK);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        beats.tick().await;
        ward.tick(patience(&gateway.shared().snapshot.load().server));
        gateway.sweep();
    }
}

const fn patience(server: &Server) -> Timeouts {
    Timeouts { head: server.header_timeout, idle: server.idle_timeout, write: server.body_timeout }
}

/// Resolves once the phase is at least `wanted`.
async fn until(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    // A sender that is gone means that everything is over.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// Connections that are accepted one after the other before those that are open have their turn.
const MAX_ACCEPTED_IN_TURN: u64 = 32;

#[cfg(test)]
mod tests {
    use core::future::pending;

    use super::*;

    #[test]
    fn a_worker_that_ends_in_a_panic_fails_the_gateway_unless_it_drains() {
        for (phase, fails) in [(Phase::Serving, true), (Phase::Draining, false)] {
            let (_phase, watched) = watch::channel(phase);
            let failed = watch::Sender::new(false);
            let lifeline = WorkerGuard { phase: watched, failed: failed.clone() };
            let worker = std::thread::spawn(move || {
                let _lifeline = lifeline;
                panic!("on purpose");
            });
            assert!(worker.join().is_err());
            assert_eq!(*failed.borrow(), fails);
        }
    }

    #[tokio::test]
    async fn a_worker_ends_with_the_first_accept_loop_that_panics() {
        let mut accepting = JoinSet::new();
        accepting.spawn(pending());
        accepting.spawn(async { panic!("on purpose") });
        all(&mut accepting).await;
        assert_eq!(accepting.len(), 1, "the other one would have gone on");
    }
}
