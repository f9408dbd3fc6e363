//! A worker: one thread of the data plane with its runtime, its sockets and its gateway.
//!
//! Connections never move between threads, and the common path takes no lock that another worker holds for long.

use core::convert::Infallible;
use core::net::SocketAddr;
use core::pin::pin;
use core::time::Duration;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_local, yield_now};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::connection::{self, Accepted};
use super::connection_limit::ConnectionLimiter;
use super::connection_timeouts::{TimeoutSweeper, Timeouts};
use super::lifecycle::phase::Phase;
use super::listener::{BACKLOG, Listener};
use super::listener_set::OpenSocket;
use super::tcp_handshake_drain::{HANDSHAKES_COMPLETE, ignore_new_handshakes};
use crate::config::server::Server;
use crate::gateway::{Gateway, Shared};

/// The parameters of a worker.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// One socket of its own for every listener: those at startup, and later those that a reload adds.
    pub(super) sockets: mpsc::UnboundedReceiver<OpenSocket>,
    pub(super) limiter: Arc<ConnectionLimiter>,
    pub(super) phase: watch::Receiver<Phase>,
    /// Reports once whether the worker has started.
    pub(super) started: SyncSender<io::Result<()>>,
    /// Set if a worker ends while the gateway serves.
    pub(super) failed: watch::Sender<bool>,
}

impl Worker {
    /// Starts the thread. It ends when its last connection has ended while draining, or in [`Phase::Terminated`].
    pub(super) fn start(self, number: usize) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            let _guard = WorkerGuard { phase: self.phase.clone(), failed: self.failed.clone() };
            let runtime =
                Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => runtime.block_on(self.run()),
                // The receiver is gone only if another worker has failed, too.
                Err(error) => drop(self.started.send(Err(error))),
            }
        })
    }

    async fn run(mut self) {
        let mut sockets = Vec::new();
        while let Ok((listener, socket)) = self.sockets.try_recv() {
            match TcpListener::from_std(socket) {
                Ok(socket) => sockets.push((listener, socket)),
                Err(error) => return drop(self.started.send(Err(error))),
            }
        }
        let gateway = Gateway::new(Arc::clone(&self.shared));
        let sweeper = TimeoutSweeper::new();
        // None of these tasks may end before the worker does.
        let mut always = JoinSet::new();
        always.spawn_local(sweep_connections(sweeper.clone(), gateway.clone()));
        always.spawn_local({
            let gateway = gateway.clone();
            async move { gateway.watch_revocations().await }
        });
        always.spawn_local({
            let (gateway, phase) = (gateway.clone(), self.phase.clone());
            async move {
                phase_reached(phase, Phase::EndingCalls).await;
                gateway.end_calls();
                core::future::pending::<()>().await;
            }
        });
        let loop_of = |listener| AcceptLoop {
            listener,
            gateway: gateway.clone(),
            sweeper: sweeper.clone(),
            limiter: Arc::clone(&self.limiter),
        };
        let mut accepting = JoinSet::new();
        for (listener, socket) in sockets {
            accepting.spawn_local(loop_of(listener).run(socket));
        }
        // The receiver is gone only if the start was aborted already.
        let _ = self.started.send(Ok(()));
        let mut draining = pin!(phase_reached(self.phase.clone(), Phase::Draining));
        let mut terminated = pin!(phase_reached(self.phase.clone(), Phase::Terminated));
        let mut drains = false;
        while !(drains && accepting.is_empty()) {
            tokio::select! {
                () = &mut draining, if !drains => drains = true,
                Some((listener, socket)) = self.sockets.recv() => {
                    let name = Arc::clone(&listener.name);
                    match TcpListener::from_std(socket) {
                        Ok(socket) => drop(accepting.spawn_local(loop_of(listener).run(socket))),
                        Err(error) => {
                            tracing::error!(%error, listener = %name, "Could not serve a new listener on one worker; the other workers serve it.");
                        }
                    }
                }
                well = one_ended(&mut accepting), if !accepting.is_empty() => if !well { return },
                _ = always.join_next() => return,
                () = &mut terminated => return,
            }
        }
        tokio::select! {
            () = gateway.finish() => {}
            () = terminated => {}
        }
    }
}

/// Waits until an accept loop has ended; false if in a panic.
async fn one_ended(accepting: &mut JoinSet<()>) -> bool {
    matches!(accepting.join_next().await, Some(Ok(())))
}

/// Reports that its worker has ended unless the gateway drains: with fewer workers than sockets, some clients would
/// wait forever.
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

/// The accept loop of one listener on one thread.
struct AcceptLoop {
    listener: Arc<Listener>,
    gateway: Gateway,
    sweeper: TimeoutSweeper,
    limiter: Arc<ConnectionLimiter>,
}

impl AcceptLoop {
    /// Accepts connections until the listener drains, then waits for the last one to end.
    ///
    /// An ended connection leaves nothing to be collected: clients could keep the socket ready forever, and a
    /// collecting branch of this loop would never run.
    async fn run(self, socket: TcpListener) {
        // Each connection holds one sender; the receiver ends with the last of them.
        let (open, mut closed) = mpsc::channel::<Infallible>(1);
        let mut draining = pin!(phase_reached(self.listener.phase(), Phase::Draining));
        // Connections that were accepted but not served yet when the drain began.
        let mut waiting = Vec::new();
        for accepted_in_turn in 1_u64.. {
            let accepted = tokio::select! {
                biased;
                () = &mut draining => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, remote)) => {
                    if let Some(mut accepted) = self.admit(stream, remote) {
                        tokio::select! {
                            biased;
                            () = accepted.permit.ready() => {}
                            () = &mut draining => {
                                waiting.push(accepted);
                                break;
                            }
                        }
                        spawn_local(self.serve(accepted, open.clone()));
                    }
                }
                Err(error) => {
                    // Usually out of file descriptors: connections that end release some.
                    tracing::warn!(%error, listener = %self.listener.name, "Could not accept a connection; trying again shortly.");
                    sleep(ACCEPT_RETRY_DELAY).await;
                }
            }
            if accepted_in_turn % MAX_ACCEPTED_IN_TURN == 0 {
                // Open connections are polled before more are accepted.
                yield_now().await;
            }
        }
        for accepted in waiting {
            spawn_local(self.serve(accepted, open.clone()));
        }
        self.complete_handshakes(&socket, &open).await;
        for accepted in self.queued(socket) {
            spawn_local(self.serve(accepted, open.clone()));
        }
        drop(open);
        let _ = closed.recv().await;
    }

    /// Accepts the connections whose handshake is under way, while the system begins no new ones: if other sockets get
    /// those.
    async fn complete_handshakes(&self, socket: &TcpListener, open: &mpsc::Sender<Infallible>) {
        if !self.listener.is_succeeded() {
            return;
        }
        if let Err(error) = ignore_new_handshakes(socket) {
            tracing::debug!(%error, "Could not stop handshakes before a listener closes; one that is under way may be reset.");
            return;
        }
        let complete = async {
            loop {
                let Ok((stream, remote)) = socket.accept().await else {
                    sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                };
                if let Some(accepted) = self.admit(stream, remote) {
                    spawn_local(self.serve(accepted, open.clone()));
                }
                yield_now().await;
            }
        };
        // Always ends by the timeout.
        let _ = timeout(HANDSHAKES_COMPLETE, complete).await;
    }

    /// Accepts the connections in the system's queue, which are served, too, and closes the socket. At most as many
    /// as the queue holds, since more may arrive meanwhile.
    fn queued(&self, socket: TcpListener) -> Vec<Accepted> {
        let mut queued = Vec::new();
        let socket = match socket.into_std() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, listener = %self.listener.name, "Could not drain the accept queue of a listener; its queued connections are lost.");
                return queued;
            }
        };
        for _ in 0..BACKLOG {
            // The queue is empty, or there is no file descriptor.
            let Ok((stream, remote)) = socket.accept() else { break };
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            match stream {
                Ok(stream) => queued.extend(self.admit(stream, remote)),
                Err(error) => {
                    tracing::warn!(%error, listener = %self.listener.name, "Could not serve a queued connection; it is closed.");
                }
            }
        }
        queued
    }

    /// Counts a new connection; `None` if its address has too many, and it is closed. With the PROXY protocol its
    /// client's address is not known yet.
    fn admit(&self, stream: TcpStream, remote: SocketAddr) -> Option<Accepted> {
        let settings = self.listener.current();
        let permit = if settings.proxy_protocol {
            Some(self.limiter.acquire_unnamed())
        } else {
            self.limiter.acquire(remote.ip())
        };
        let Some(permit) = permit else {
            connection::record_over_limit(&self.listener, &self.gateway, remote.ip());
            return None;
        };
        Some(Accepted { stream, remote, settings, permit })
    }

    /// Serves a connection, which holds `open` to its end.
    fn serve(
        &self,
        mut accepted: Accepted,
        open: mpsc::Sender<Infallible>,
    ) -> impl Future<Output = ()> + 'static {
        let (listener, gateway) = (Arc::clone(&self.listener), self.gateway.clone());
        let (sweeper, phase) = (self.sweeper.clone(), listener.phase());
        async move {
            // Connections accepted during a drain may still wait for a permit.
            accepted.permit.ready().await;
            let activity = sweeper.register();
            // Without it small responses wait for the client's acknowledgement: slower, but correct.
            let _ = accepted.stream.set_nodelay(true);
            connection::serve(accepted, &listener, gateway, activity, phase).await;
            drop(open);
        }
    }
}

/// Sweeps this thread's client and upstream connections periodically.
async fn sweep_connections(sweeper: TimeoutSweeper, gateway: Gateway) {
    let mut ticks = interval(TimeoutSweeper::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        sweeper.tick(timeouts(gateway.shared().snapshot.load().server()));
        gateway.sweep();
    }
}

const fn timeouts(server: &Server) -> Timeouts {
    Timeouts { head: server.header_timeout, idle: server.idle_timeout, write: server.body_timeout }
}

/// Resolves once the phase is at least `wanted`.
async fn phase_reached(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    // A dropped sender means that the gateway has ended.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);
/// Connections accepted in a row before open ones are polled.
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
    async fn an_accept_loop_that_panics_ends_its_worker() {
        let mut accepting = JoinSet::new();
        accepting.spawn(pending());
        accepting.spawn(async { panic!("on purpose") });
        assert!(!one_ended(&mut accepting).await);
        assert_eq!(accepting.len(), 1, "the other one would have gone on");
    }
}
