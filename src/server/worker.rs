//! One thread of the data plane: its runtime, its sockets, its gateway.
//!
//! Connections never move between threads, and nothing on the common path
//! takes a lock that another worker holds for long.

use core::time::Duration;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Phase;
use super::connection;
use super::crowd::Crowd;
use super::listener::Listener;
use super::pulse::{Patience, Ward};
use crate::config::serving::Server;
use crate::gateway::{Gateway, Peer, Shared};

/// What a worker is started with.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    /// A socket of its own for every listener.
    pub(super) sockets: Vec<(Arc<Listener>, TcpListener)>,
    pub(super) crowd: Arc<Crowd>,
    pub(super) phase: watch::Receiver<Phase>,
}

impl Worker {
    /// Starts the thread. It ends when its last connection has while draining, or when the phase is [`Phase::Over`].
    pub(super) fn start(self, number: usize) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            // A runtime that cannot be made ends the process: half a gateway would be worse.
            let runtime = Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
                .expect("the system lets a thread wait for its sockets");
            runtime.block_on(self.run());
        })
    }

    async fn run(mut self) {
        let gateway = Gateway::new(Arc::clone(&self.shared));
        let ward = Ward::new();
        let beating = spawn_local(beat(ward.clone(), gateway.clone()));
        let heeding = spawn_local({
            let gateway = gateway.clone();
            async move { gateway.heed_revocations().await }
        });
        let mut accepting = JoinSet::new();
        for (listener, socket) in self.sockets.drain(..) {
            let accept = Accept {
                listener,
                gateway: gateway.clone(),
                ward: ward.clone(),
                crowd: Arc::clone(&self.crowd),
                phase: self.phase.clone(),
            };
            accepting.spawn_local(accept.run(socket));
        }
        tokio::select! {
            _ = accepting.join_all() => {}
            () = until(self.phase.clone(), Phase::Over) => {}
        }
        beating.abort();
        heeding.abort();
    }
}

/// The connections of one listener on one thread.
struct Accept {
    listener: Arc<Listener>,
    gateway: Gateway,
    ward: Ward,
    crowd: Arc<Crowd>,
    phase: watch::Receiver<Phase>,
}

impl Accept {
    /// Accepts until no new connections are wanted, then waits for the last one.
    async fn run(self, socket: TcpListener) {
        let Ok(socket) = tokio::net::TcpListener::from_std(socket) else {
            tracing::error!(listener = %self.listener.name, "A listening socket cannot be waited for.");
            return;
        };
        let mut connections = JoinSet::new();
        let closed = until(self.phase.clone(), Phase::Draining);
        let mut closed = core::pin::pin!(closed);
        loop {
            let next = async {
                let room = self.crowd.room().await?;
                Some((room, socket.accept().await))
            };
            tokio::select! {
                biased;
                () = &mut closed => break,
                next = next => match next {
                    Some((room, Ok((stream, remote)))) => {
                        if let Some(place) = self.crowd.enter(remote.ip(), room) {
                            let _ = stream.set_nodelay(true);
                            connections.spawn_local(self.serve(stream, remote, place));
                        }
                    }
                    Some((_, Err(error))) => {
                        // Out of file descriptors, most likely: connections that end make room.
                        tracing::warn!(%error, listener = %self.listener.name, "A connection could not be accepted.");
                        sleep(AFTER_AN_ERROR).await;
                    }
                    None => break,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        // Whoever the system has accepted for us already is served too.
        while let Some(Ok((stream, remote))) =
            futures_util::FutureExt::now_or_never(socket.accept())
        {
            if let Some(place) =
                self.crowd.room().await.and_then(|room| self.crowd.enter(remote.ip(), room))
            {
                connections.spawn_local(self.serve(stream, remote, place));
            }
        }
        drop(socket);
        while connections.join_next().await.is_some() {}
    }

    fn serve(
        &self,
        stream: tokio::net::TcpStream,
        remote: core::net::SocketAddr,
        place: super::crowd::Place,
    ) -> impl Future<Output = ()> + 'static {
        let (listener, gateway) = (Arc::clone(&self.listener), self.gateway.clone());
        let (pulse, phase) = (self.ward.admit(), self.phase.clone());
        async move {
            connection::serve(stream, Peer::at(remote.ip()), &listener, gateway, pulse, phase)
                .await;
            drop(place);
        }
    }
}

/// Sweeps this thread's connections, to clients and to services.
async fn beat(ward: Ward, gateway: Gateway) {
    let mut beats = interval(Ward::BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        beats.tick().await;
        ward.beat(patience(&gateway.shared().snapshot.load().server));
        gateway.sweep();
    }
}

const fn patience(server: &Server) -> Patience {
    Patience { head: server.header_timeout, idle: server.idle_timeout, write: server.body_timeout }
}

/// Resolves once the phase is at least `wanted`.
async fn until(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    // A sender that is gone means that everything is over.
    let _ = phase.wait_for(|phase| *phase >= wanted).await;
}

const AFTER_AN_ERROR: Duration = Duration::from_millis(50);
