//! One HTTP/2 connection, shared by the streams of one worker (RFC 9113).
//!
//! The windows keep streams apart: the connection's has room for those of all its streams, so that content that one
//! client does not read blocks no other. hyper returns window to a stream as its content is passed on.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::Poll;
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::super::UpstreamError;
use super::super::connect::Stream;
use super::super::connection_gauges::Counted;
use super::frame_monitor::{ConnectionFacts, FrameScanner};
use super::stream::{StreamContent, StreamExecutor};
use crate::base::inspected_stream::InspectedStream;
use crate::observe::metrics::UpstreamMetrics;

/// A connection that was opened, with its streams.
pub(super) struct Connection {
    sender: SendRequest<StreamContent>,
    driver: SharedDriver,
    pub(super) facts: Rc<ConnectionFacts>,
    pub(super) executor: StreamExecutor,
    streams: Cell<usize>,
    /// Whether the only stream shares the connection with no other.
    alone: Cell<bool>,
    /// Requests so far, without those that were not sent or not processed because the connection was closing.
    requests: Cell<usize>,
    /// The uptime since which the connection has no stream; set by the sweep.
    idle_since: Cell<Option<Duration>>,
    counted: RefCell<Counted>,
}

type Driver = http2::Connection<
    TokioIo<InspectedStream<Stream, FrameScanner>>,
    StreamContent,
    StreamExecutor,
>;

/// `None` once the connection has ended.
type SharedDriver = Rc<RefCell<Option<Driver>>>;

impl Connection {
    /// Begins HTTP/2 on `stream`, and waits for the settings of the upstream: they say how many streams it takes.
    /// To be run within a timeout.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Protocol`] if the peer does not speak HTTP/2, [`UpstreamError::Connect`] if the connection ends
    /// before its settings.
    pub(super) async fn open(
        stream: Stream,
        metrics: Arc<UpstreamMetrics>,
    ) -> Result<Rc<Self>, UpstreamError> {
        let (facts, executor) = (Rc::<ConnectionFacts>::default(), StreamExecutor::default());
        let inspector = FrameScanner::new(Rc::clone(&facts), Instant::now());
        let (sender, driver) = http2::Builder::new(executor.clone())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS as u32)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(InspectedStream { stream, inspector }))
            .await
            .map_err(|_| UpstreamError::Connect)?;
        let driver = Rc::new(RefCell::new(Some(driver)));
        spawn_local(drive(Rc::clone(&driver), Rc::clone(&facts)));
        if !facts.settled().await {
            return Err(if facts.is_violated() {
                UpstreamError::Protocol
            } else {
                UpstreamError::Connect
            });
        }
        Ok(Rc::new(Self {
            sender,
            driver,
            facts,
            executor,
            streams: Cell::new(0),
            alone: Cell::new(false),
            requests: Cell::new(0),
            idle_since: Cell::new(None),
            counted: RefCell::new(Counted::new(metrics)),
        }))
    }

    /// Returns a handle that sends requests.
    pub(super) fn sender(&self) -> SendRequest<StreamContent> {
        self.sender.clone()
    }

    /// Returns the number of streams that the upstream allows at a time, up to the gateway's own limit.
    pub(super) fn max_streams(&self) -> usize {
        // Only the driver's own poll borrows it mutably, and that opens no stream.
        let driver = self.driver.try_borrow();
        let max = driver.ok().and_then(|driver| Some(driver.as_ref()?.current_max_send_streams()));
        max.unwrap_or(0).min(MAX_STREAMS)
    }

    /// Returns the number of requests so far.
    pub(super) fn requests(&self) -> usize {
        self.requests.get()
    }

    /// Records that a request was not sent, or not processed, because the connection was closing. Returns the number of
    /// those that were, if the upstream had announced the end by GOAWAY.
    pub(super) fn unsent(&self) -> Option<usize> {
        let requests = self.requests.get().saturating_sub(1);
        self.requests.set(requests);
        self.facts.is_going_away().then_some(requests)
    }

    /// Whether a stream may be opened now.
    fn has_room(&self, sharing: Sharing) -> bool {
        let max_streams = match sharing {
            Sharing::Alone => self.max_streams().min(1),
            Sharing::Shared => self.max_streams(),
        };
        self.facts.accepts_streams()
            && !self.sender.is_closed()
            && !self.alone.get()
            && self.streams.get() < max_streams
    }

    /// Takes a place for one stream; `None` if there is none.
    pub(super) fn take(self: &Rc<Self>, sharing: Sharing) -> Option<StreamSlot> {
        if !self.has_room(sharing) {
            return None;
        }
        self.alone.set(sharing == Sharing::Alone);
        let streams = self.streams.get();
        let idle = streams == 0;
        self.streams.set(streams + 1);
        self.idle_since.set(None);
        if idle {
            self.counted.borrow_mut().set_idle(false);
        }
        let rested = idle && self.requests.get() > 0;
        self.requests.set(self.requests.get() + 1);
        Some(StreamSlot { connection: Rc::clone(self), rested })
    }

    /// Whether the connection is of no more use: it has ended, or has been without a stream for `keep_alive`.
    pub(super) fn is_over(&self, now: Duration, keep_alive: Duration) -> bool {
        if self.facts.is_closed() {
            return true;
        }
        if self.streams.get() > 0 {
            return false;
        }
        let since = self.idle_since.get().unwrap_or(now);
        self.idle_since.set(Some(since));
        !self.facts.accepts_streams() || now.saturating_sub(since) >= keep_alive
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("streams", &self.streams.get()).finish_non_exhaustive()
    }
}

/// Whether a stream has other streams beside it on its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::upstream) enum Sharing {
    /// As usual.
    Shared,
    /// A connection of its own while it lasts: if its request makes the upstream end the connection, that concerns no
    /// other.
    Alone,
}

/// A place for one stream on a connection; released on drop.
#[derive(Debug)]
pub(super) struct StreamSlot {
    pub(super) connection: Rc<Connection>,
    /// Whether the connection was open and without a stream before: the upstream may be about to close it.
    pub(super) rested: bool,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let streams = self.connection.streams.get() - 1;
        self.connection.streams.set(streams);
        self.connection.alone.set(false);
        if streams == 0 {
            self.connection.counted.borrow_mut().set_idle(true);
        }
    }
}

/// Drives a connection to its end.
async fn drive(driver: SharedDriver, facts: Rc<ConnectionFacts>) {
    poll_fn(|cx| match &mut *driver.borrow_mut() {
        // The streams that the end of the connection concerns are notified by hyper.
        Some(driver) => Pin::new(driver).poll(cx).map(drop),
        None => Poll::Ready(()),
    })
    .await;
    facts.close();
    // hyper's end of the queue is dropped with it: requests that were queued after its last poll fail as unsent, where
    // they would wait for ever.
    let ended = driver.take();
    drop(ended);
}

/// Streams of one connection at a time; further ones open another connection.
const MAX_STREAMS: usize = 128;
/// Bytes of content that a stream may have received and its client not read.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of content per stream that are buffered for an upstream that is slow to read.
const SEND_BUFFER: usize = 256 * 1024;
/// Bytes of the header fields of a response, 32 more for each field (RFC 9113 §6.5.2).
const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;
/// The silence after which an upstream with open streams is asked for a sign of life. gRPC servers close connections
/// that ask more often than every five minutes.
const PING_INTERVAL: Duration = Duration::from_secs(310);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
