//! One HTTP/2 connection, shared by the streams of one worker (RFC 9113).
//!
//! The windows keep streams apart: the connection's has room for those of all its streams, so that content that one
//! client does not read blocks no other. A stream gets window back as its content is passed on.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::future::{Future as _, poll_fn};
use core::pin::{Pin, pin};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{self, SendRequest};
use h2::{Ping, PingPong};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::super::UpstreamError;
use super::super::connections::connect::Stream;
use super::super::connections::connection_gauges::Counted;
use super::frame_monitor::{ConnectionFacts, FrameScanner};
use crate::base::inspected_stream::InspectedStream;
use crate::http2::DATA_FRAME_BUDGET;
use crate::observe::metrics::UpstreamMetrics;

/// A connection that was opened, with its streams.
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    pub(super) facts: Rc<ConnectionFacts>,
    /// Whether the only stream shares the connection with no other.
    alone: Cell<bool>,
    /// Requests so far, without those that were not sent or not processed because the connection was closing.
    requests: Cell<usize>,
    /// The uptime since which the connection has no stream; set by the sweep.
    idle_since: Cell<Option<Duration>>,
    counted: RefCell<Counted>,
}

type Driver = client::Connection<InspectedStream<Stream, FrameScanner>>;

impl Connection {
    /// Begins HTTP/2 on `stream`, and waits for the settings of the upstream: they say how many streams it takes.
    /// To be run within a timeout.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Protocol`] if the peer does not speak HTTP/2, [`UpstreamError::TlsAlert`] if it ends TLS so,
    /// [`UpstreamError::Connect`] if the connection ends otherwise before its settings.
    pub(super) async fn open(
        stream: Stream,
        metrics: Arc<UpstreamMetrics>,
    ) -> Result<Rc<Self>, UpstreamError> {
        let facts = Rc::<ConnectionFacts>::default();
        let inspector = FrameScanner::new(Rc::clone(&facts), Instant::now());
        let (sender, driver) = client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * MAX_STREAMS as u32)
            .max_header_list_size(MAX_HEADER_LIST_BYTES)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .handshake(InspectedStream { stream, inspector })
            .await
            .map_err(|_| UpstreamError::Connect)?;
        spawn_local(drive(driver, Rc::clone(&facts)));
        if !facts.settings_received().await {
            let alert = facts.alert().map(UpstreamError::TlsAlert);
            return Err(if facts.is_violated() {
                UpstreamError::Protocol
            } else {
                alert.unwrap_or(UpstreamError::Connect)
            });
        }
        Ok(Rc::new(Self {
            sender,
            facts,
            alone: Cell::new(false),
            requests: Cell::new(0),
            idle_since: Cell::new(None),
            counted: RefCell::new(Counted::new(metrics)),
        }))
    }

    /// Returns a handle that sends requests.
    pub(super) fn sender(&self) -> SendRequest<Bytes> {
        self.sender.clone()
    }

    /// Returns the number of streams that the upstream allows at a time, up to the gateway's own limit.
    pub(super) fn max_streams(&self) -> usize {
        self.sender.current_max_send_streams().min(MAX_STREAMS)
    }

    /// Whether further streams are possible, now or when others have ended.
    pub(super) fn takes_streams(&self) -> bool {
        self.facts.accepts_streams() && self.max_streams() > 0
    }

    /// Whether the upstream takes WebSockets on streams (RFC 8441 §3).
    pub(super) fn takes_websockets(&self) -> bool {
        self.sender.is_extended_connect_protocol_enabled()
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
            Sharing::New if self.requests.get() > 0 => 0,
            Sharing::New | Sharing::Alone => self.max_streams().min(1),
            Sharing::Shared => self.max_streams(),
        };
        self.facts.accepts_streams() && !self.alone.get() && self.facts.streams() < max_streams
    }

    /// Reserves one stream; `None` if the connection has none left.
    pub(super) fn take(self: &Rc<Self>, sharing: Sharing) -> Option<StreamSlot> {
        if !self.has_room(sharing) {
            return None;
        }
        self.alone.set(sharing != Sharing::Shared);
        let streams = self.facts.streams();
        let idle = streams == 0;
        self.facts.set_streams(streams + 1);
        self.idle_since.set(None);
        if idle {
            self.counted.borrow_mut().set_idle(false);
        }
        let rested = idle && self.requests.get() > 0;
        self.requests.set(self.requests.get() + 1);
        Some(StreamSlot { connection: Rc::clone(self), rested })
    }

    /// Whether the connection is of no more use: it has ended, or has no stream and allows none, or had none for `keep_alive`.
    pub(super) fn is_over(&self, now: Duration, keep_alive: Duration) -> bool {
        if self.facts.is_closed() {
            return true;
        }
        if self.facts.streams() > 0 {
            return false;
        }
        let since = self.idle_since.get().unwrap_or(now);
        self.idle_since.set(Some(since));
        !self.takes_streams() || now.saturating_sub(since) >= keep_alive
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("streams", &self.facts.streams()).finish_non_exhaustive()
    }
}

/// Whether a stream has other streams beside it on its connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::upstream) enum Sharing {
    /// As usual.
    #[default]
    Shared,
    /// A connection of its own while it lasts: if its request makes the upstream end the connection, that concerns no
    /// other.
    Alone,
    /// The same on a connection that has had no request: whatever ends others after a while does not end this one.
    New,
}

/// The permit for one stream on a connection; released on drop.
#[derive(Debug)]
pub(super) struct StreamSlot {
    pub(super) connection: Rc<Connection>,
    /// Whether the connection was open and without a stream before: the upstream may be about to close it.
    pub(super) rested: bool,
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        let streams = self.connection.facts.streams() - 1;
        self.connection.facts.set_streams(streams);
        self.connection.alone.set(false);
        if streams == 0 {
            self.connection.counted.borrow_mut().set_idle(true);
        }
    }
}

/// Drives a connection to its end, or until the upstream shows no sign of life.
async fn drive(mut driver: Driver, facts: Rc<ConnectionFacts>) {
    let pings = driver.ping_pong();
    let mut dead = pin!(until_dead(pings, &facts));
    poll_fn(|cx| {
        // The streams that the end of the connection concerns are notified by `h2`.
        let polled = Pin::new(&mut driver).poll(cx).map(drop);
        facts.contents.gather_if_due();
        if polled.is_ready() { polled } else { dead.as_mut().poll(cx) }
    })
    .await;
    drop(driver);
    facts.close();
}

/// Waits until an upstream with open streams is silent, or one whose request was given up, even when it is asked for a sign
/// of life.
async fn until_dead(pings: Option<PingPong>, facts: &ConnectionFacts) {
    let Some(mut pings) = pings else { return core::future::pending().await };
    // The time of the last PING acknowledgement, and the reads by then.
    let mut answered: Option<(Instant, u64)> = None;
    loop {
        let reads = facts.reads();
        let is_due = if timeout(PING_INTERVAL, facts.doubted()).await.is_ok() {
            answered
                .is_none_or(|(at, reads)| facts.reads() != reads || at.elapsed() > PING_INTERVAL)
        } else {
            facts.reads() == reads && facts.streams() > 0
        };
        if !is_due {
            continue;
        }
        let mut pinged = pin!(pings.ping(Ping::opaque()));
        let mut answer = timeout(PING_PATIENCE, pinged.as_mut()).await;
        if answer.is_err() {
            // Further requests take another connection, while the streams of this one have some more time.
            facts.retire();
            answer = timeout(PING_TIMEOUT, pinged).await;
        }
        match answer {
            Ok(Ok(_)) => {
                answered = Some((Instant::now(), facts.reads()));
                sleep(PING_PAUSE).await;
            }
            // The end of the connection, which its driver notices.
            Ok(Err(_)) => return core::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Streams of one connection at a time; further ones open another connection.
const MAX_STREAMS: usize = 128;
/// Bytes of content that a stream may have received and its client not read.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of content per stream that are buffered for an upstream that is slow to read.
const SEND_BUFFER: usize = 256 * 1024;
/// Bytes of the header fields of a response, 32 more for each field (RFC 9113 §6.5.2).
pub(super) const MAX_HEADER_LIST_BYTES: u32 = 64 * 1024;
/// The silence after which an upstream with open streams is asked for a sign of life. gRPC servers close connections
/// that ask more often than every five minutes, unless a response was sent in between.
const PING_INTERVAL: Duration = Duration::from_secs(310);
/// How long its answer may take before the connection gets no further request.
const PING_PATIENCE: Duration = Duration::from_secs(2);
/// How long it may take after that before the connection is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// The shortest time between two of them: requests that are given up ask for one as often as clients like.
const PING_PAUSE: Duration = Duration::from_secs(10);
