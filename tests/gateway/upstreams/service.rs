//! A service that can be killed and restarted at its address, and counts what it receives.

use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use core::time::Duration;
use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::support::{Reading, Seen, eventually};

/// A service with an address of its own for as long as the test lasts.
pub(super) struct Service {
    pub(super) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    alive: AtomicBool,
    listening: AtomicBool,
    over: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    /// How often each request target was received.
    received: Mutex<HashMap<String, usize>>,
    answer: Box<Answering>,
}

/// Returns the response to a request.
type Answering = dyn Fn(&Seen) -> Vec<u8> + Send + Sync;

impl Service {
    /// A service that is alive, at a free port of 127.0.0.1.
    pub(super) fn start(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", answer)
    }

    pub(super) fn at(
        address: &str,
        answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let first = TcpListener::bind(address).expect("a free address");
        let address = first.local_addr().expect("a bound socket");
        let state = Arc::new(State {
            alive: AtomicBool::new(true),
            listening: AtomicBool::new(true),
            over: AtomicBool::new(false),
            connections: Mutex::default(),
            received: Mutex::default(),
            answer: Box::new(answer),
        });
        let of_thread = Arc::clone(&state);
        thread::spawn(move || of_thread.run(first, address));
        Self { address, state }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes the port and every connection, as the end of a process does.
    pub(super) fn kill(&self) {
        self.state.alive.store(false, SeqCst);
        eventually("the service's end", || !self.state.listening.load(SeqCst));
    }

    pub(super) fn restart(&self) {
        self.state.alive.store(true, SeqCst);
        eventually("the service's start", || self.state.listening.load(SeqCst));
    }

    /// How often each request target was received.
    pub(super) fn received(&self) -> HashMap<String, usize> {
        self.state.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests were received for targets that begin with `prefix`.
    pub(super) fn count(&self, prefix: &str) -> usize {
        let received = self.received();
        received.iter().filter(|(target, _)| target.starts_with(prefix)).map(|(_, n)| n).sum()
    }
}

impl State {
    fn run(self: Arc<Self>, first: TcpListener, address: SocketAddr) {
        let mut listener = Some(first);
        while !self.over.load(SeqCst) {
            match &listener {
                None if self.alive.load(SeqCst) => {
                    let Ok(bound) = TcpListener::bind(address) else {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    listener = Some(bound);
                    self.listening.store(true, SeqCst);
                }
                None => thread::sleep(Duration::from_millis(1)),
                Some(_) if !self.alive.load(SeqCst) => {
                    listener = None;
                    for stream in self.lock(&self.connections).drain(..) {
                        let socket = socket2::SockRef::from(&stream);
                        let _ = socket.set_linger(Some(Duration::ZERO));
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    self.listening.store(false, SeqCst);
                }
                Some(bound) => {
                    bound.set_nonblocking(true).expect("a socket");
                    match bound.accept() {
                        Ok((stream, _)) => Arc::clone(&self).talk(stream),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            thread::sleep(Duration::from_micros(300));
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }

    fn talk(self: Arc<Self>, stream: TcpStream) {
        stream.set_nonblocking(false).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        self.lock(&self.connections).push(stream.try_clone().expect("a socket"));
        thread::spawn(move || {
            let mut reading = Reading::new(&stream);
            let mut writing = stream;
            while let Some(seen) = reading.request(0) {
                *self.lock(&self.received).entry(seen.target().to_owned()).or_default() += 1;
                let answer = (self.answer)(&seen);
                if answer.is_empty() || writing.write_all(&answer).is_err() {
                    break;
                }
            }
            // The list of connections holds the socket, too.
            let _ = writing.shutdown(Shutdown::Both);
        });
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.state.over.store(true, SeqCst);
    }
}
