//! A service that does as it is told and remembers every byte.

use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::client::fields;
use super::{PATIENCE, eventually};

/// A service on a port of its own. Dropping it closes the port.
pub(crate) struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    over: Arc<AtomicBool>,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The number of its connection, from 0.
    pub(crate) connection: usize,
    /// Request line and fields, without the empty line.
    pub(crate) head: String,
    /// The body without its framing.
    pub(crate) body: Vec<u8>,
    /// What came after the last chunk.
    pub(crate) trailers: String,
}

impl Upstream {
    /// A service that answers every request with `answer` of it, bytes and all.
    pub(crate) fn start(answer: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::by_hand(move |mut stream, connection, seen| {
            let mut reading = Reading::new(&stream);
            while let Some(request) = reading.request(connection) {
                let bytes = answer(&request);
                seen(request);
                if stream.write_all(&bytes).is_err() || closes(&bytes) {
                    break;
                }
            }
        })
    }

    /// A service that says `200 OK` to everything.
    pub(crate) fn polite() -> Self {
        Self::start(|_| ok("fine"))
    }

    /// A service whose every connection, numbered from 0, is handled by `talk`, which reports what it has seen.
    pub(crate) fn by_hand(
        talk: impl Fn(TcpStream, usize, &dyn Fn(Seen)) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (seen, over) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicBool>::default());
        let connections = Arc::<AtomicUsize>::default();
        let (to, ended, count) = (Arc::clone(&seen), Arc::clone(&over), Arc::clone(&connections));
        let talk = Arc::new(talk);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(SeqCst) {
                    break;
                }
                let stream = stream.expect("a connection");
                stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
                stream.set_nodelay(true).expect("a socket");
                let number = count.fetch_add(1, SeqCst);
                let (talk, to) = (Arc::clone(&talk), Arc::clone(&to));
                thread::spawn(move || {
                    talk(stream, number, &|request| {
                        to.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                    });
                });
            }
        });
        Self { address, seen, connections, over }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that arrived.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets everything that arrived.
    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How many connections were opened.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    /// The only request that arrived.
    pub(crate) fn only(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.remove(0)
    }

    /// Waits until so many requests have arrived.
    pub(crate) fn reached(&self, times: usize) {
        eventually("a request's arrival", || self.seen().len() >= times);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Seen {
    /// A request without a body.
    pub(crate) fn head(connection: usize, head: &[u8]) -> Self {
        let head = String::from_utf8_lossy(head).trim_end().to_owned();
        Self { connection, head, body: Vec::new(), trailers: String::new() }
    }

    pub(crate) fn line(&self) -> &str {
        self.head.split("\r\n").next().unwrap_or_default()
    }

    /// The target in the request line.
    pub(crate) fn target(&self) -> &str {
        self.line().split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let values = self.fields(name);
        assert!(values.len() < 2, "{name} comes twice: {}", self.head);
        values.first().copied()
    }

    pub(crate) fn fields(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }
}

/// `200 OK` with a body.
pub(crate) fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn closes(answer: &[u8]) -> bool {
    let head = String::from_utf8_lossy(answer).to_ascii_lowercase();
    head.contains("connection: close")
        || !(head.contains("content-length") || head.contains("chunked") || head.contains(" 204 "))
}

/// Reads requests as a strict service would.
pub(crate) struct Reading {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Reading {
    pub(crate) fn new(stream: &TcpStream) -> Self {
        Self { stream: stream.try_clone().expect("a socket"), buffer: Vec::new() }
    }

    /// The next request; `None` if the connection ends.
    pub(crate) fn request(&mut self, connection: usize) -> Option<Seen> {
        let mut seen = self.head(connection)?;
        self.body(&mut seen)?;
        Some(seen)
    }

    /// The next request's head.
    pub(crate) fn head(&mut self, connection: usize) -> Option<Seen> {
        let head = self.until(b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&head[..head.len() - 4]).into_owned();
        Some(Seen { connection, head, body: Vec::new(), trailers: String::new() })
    }

    /// The body of a request whose head was read; `None` if the connection ends before it.
    pub(crate) fn body(&mut self, seen: &mut Seen) -> Option<()> {
        if !seen.fields("transfer-encoding").is_empty() {
            assert_eq!(seen.fields("content-length"), [""; 0], "two framings: {}", seen.head);
            assert_eq!(seen.field("transfer-encoding"), Some("chunked"));
            loop {
                let line = String::from_utf8(self.until(b"\r\n")?).expect("text");
                let size = usize::from_str_radix(line.trim_end(), 16).expect("a bare size");
                if size == 0 {
                    break;
                }
                seen.body.extend(self.exactly(size)?);
                assert_eq!(self.exactly(2)?, b"\r\n");
            }
            loop {
                let line = self.until(b"\r\n")?;
                if line == b"\r\n" {
                    break;
                }
                seen.trailers.push_str(&String::from_utf8_lossy(&line));
            }
        } else if let Some(length) = seen.field("content-length") {
            let length = length.parse().expect("a length");
            seen.body = self.exactly(length)?;
        }
        Some(())
    }

    pub(crate) fn until(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                return Some(self.buffer.drain(..at + end.len()).collect());
            }
            self.more()?;
        }
    }

    pub(crate) fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            self.more()?;
        }
        Some(self.buffer.drain(..length).collect())
    }

    fn more(&mut self) -> Option<()> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) | Err(_) => None,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Some(())
            }
        }
    }
}
