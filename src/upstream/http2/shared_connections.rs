//! The HTTP/2 connections of one worker, by endpoint.
//!
//! A request takes a stream of the first connection with room. If there is none, a task opens another connection, for
//! which all waiting requests are notified: a request that is cancelled cancels no connection that others wait for.

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::rc::{self, Rc};
use std::sync::{Arc, Weak};

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::super::balancing::endpoint::Slot;
use super::super::connections::connect::{ConnectError, Stream, connect};
use super::super::connections::tls_connectors::Offer;
use super::super::{Endpoint, UpstreamError};
use super::connection::{Connection, Sharing, StreamSlot};
use super::health::WITHOUT_HTTP2;
use crate::observe::metrics::UpstreamMetrics;

/// The HTTP/2 connections of one worker. Cheap to clone; deliberately not `Send`.
#[derive(Clone, Debug, Default)]
pub(in crate::upstream) struct SharedConnections(Rc<RefCell<Vec<Option<Rc<EndpointPool>>>>>);

/// The settings of connections to one endpoint.
#[derive(Clone, Copy, Debug)]
pub(in crate::upstream) struct PoolSettings<'a> {
    /// Timeout of a connection attempt.
    pub(in crate::upstream) connect_timeout: Duration,
    /// Timeout of the request.
    pub(in crate::upstream) wait: Duration,
    /// How long a connection without streams is kept.
    pub(in crate::upstream) keep_alive: Duration,
    pub(in crate::upstream) metrics: &'a Arc<UpstreamMetrics>,
}

/// The way to send a request.
#[derive(Debug)]
pub(in crate::upstream) enum Acquired {
    /// The permit for a stream.
    Http2(StreamPermit),
    /// The endpoint speaks HTTP/1.1. `Some` is the connection on which it has just been selected.
    Http1(Option<Stream>),
}

/// The permit for one stream on a connection.
#[derive(Debug)]
pub(in crate::upstream) struct StreamPermit {
    pub(super) slot: StreamSlot,
    /// Notified when the stream is free again.
    pub(super) pool: Rc<EndpointPool>,
}

impl StreamPermit {
    /// Whether the upstream takes a WebSocket here (RFC 8441).
    pub(in crate::upstream) fn takes_websocket(&self) -> bool {
        self.slot.connection.takes_websockets()
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        self.pool.changed.notify_one();
    }
}

/// The connections to one endpoint.
#[derive(Debug)]
pub(super) struct EndpointPool {
    /// The generation of the endpoint's slot.
    generation: u64,
    endpoint: Weak<Endpoint>,
    connections: RefCell<Vec<Rc<Connection>>>,
    opening: Cell<usize>,
    /// Connections opened so far.
    opened: Cell<u64>,
    /// Requests that wait for a stream.
    waiting: Cell<usize>,
    /// The waiting requests that must not share a connection.
    waiting_alone: Cell<usize>,
    /// The number of streams that the last connection allowed.
    streams_per_connection: Cell<usize>,
    /// The number of requests after which the endpoint ends a connection, as observed recently: see
    /// [`EndpointPool::unsent`].
    max_requests: Cell<usize>,
    /// The last connection that ended so.
    ended: RefCell<Option<EndedConnection>>,
    /// The uptime at which both are forgotten; `None` until the next sweep.
    max_requests_until: Cell<Option<Duration>>,
    /// Failed attempts so far.
    failures: Cell<u64>,
    /// The last failure.
    failure: RefCell<Option<ConnectError>>,
    /// Why a request that was opened connections for gets a stream on none.
    no_stream_cause: Cell<&'static str>,
    /// Connections in a row that the endpoint closed before its settings.
    closed_early: Cell<usize>,
    /// The time of the last attempt that failed while other connections took streams.
    refused_further: Cell<Option<Instant>>,
    /// The uptime until which the endpoint is known to select HTTP/1.1.
    http1_until: Cell<Duration>,
    /// A connection that turned out to speak HTTP/1.1.
    http1: RefCell<Option<Stream>>,
    keep_alive: Cell<Duration>,
    changed: Notify,
}

impl SharedConnections {
    /// Acquires a stream to `endpoint`, opening a connection if needed. `now` is the uptime.
    ///
    /// # Errors
    ///
    /// The error of a failed connection attempt, unless others succeed at the same time; [`UpstreamError::Overflow`] if no
    /// stream became free within the timeout of the request, or [`MAX_CONNECTS_WAITED`] times that of an attempt, although
    /// there are connections.
    pub(in crate::upstream) async fn acquire(
        &self,
        endpoint: &Arc<Endpoint>,
        settings: &PoolSettings<'_>,
        sharing: Sharing,
        now: Duration,
    ) -> Result<Acquired, ConnectError> {
        if let Some(acquired) = self.ready(endpoint, sharing, settings.keep_alive, now) {
            return Ok(acquired);
        }
        // Rare, and large: boxed, to keep it out of the future of every request.
        let pool = self.of(endpoint);
        Box::pin(pool.wait_for_stream(endpoint, settings, sharing, now)).await
    }

    /// Acquires a stream to `endpoint` if that needs no wait; connections without a stream are kept for `keep_alive`.
    pub(in crate::upstream) fn ready(
        &self,
        endpoint: &Arc<Endpoint>,
        sharing: Sharing,
        keep_alive: Duration,
        now: Duration,
    ) -> Option<Acquired> {
        let pool = self.of(endpoint);
        // A reload may have changed it.
        pool.keep_alive.set(keep_alive);
        if now < pool.http1_until.get() {
            return Some(Acquired::Http1(None));
        }
        pool.take(sharing).map(Acquired::Http2)
    }

    /// Forgets that `endpoint` has selected HTTP/1.1: it no longer speaks that.
    pub(in crate::upstream) fn forget_http1(&self, endpoint: &Arc<Endpoint>) {
        self.of(endpoint).http1_until.set(Duration::ZERO);
    }

    fn of(&self, endpoint: &Arc<Endpoint>) -> Rc<EndpointPool> {
        let mut endpoints = self.0.borrow_mut();
        let Slot { index, generation } = *endpoint.slot();
        if endpoints.len() <= index {
            endpoints.resize_with(index + 1, || None);
        }
        // The index may have been that of another endpoint, which is gone.
        let slot = &mut endpoints[index];
        if let Some(pool) = slot.as_ref().filter(|pool| pool.generation == generation) {
            return Rc::clone(pool);
        }
        Rc::clone(slot.insert(Rc::new(EndpointPool::new(generation, endpoint))))
    }

    /// Drops connections that have ended or are no longer needed, and those without a stream to addresses that are no longer in
    /// use; called by a worker every second or so.
    pub(in crate::upstream) fn sweep(&self, now: Duration) {
        for pool in self.0.borrow().iter().flatten() {
            pool.expire_max_requests(now);
            let is_gone = pool.endpoint.upgrade().is_none_or(|endpoint| endpoint.is_retired());
            let keep_alive = if is_gone { Duration::ZERO } else { pool.keep_alive.get() };
            // Dropped after the borrow ends: closing a connection wakes tasks.
            let over: Vec<_> = {
                let mut connections = pool.connections.borrow_mut();
                connections
                    .extract_if(.., |connection| connection.is_over(now, keep_alive))
                    .collect()
            };
            drop(over);
        }
    }
}

impl EndpointPool {
    fn new(generation: u64, endpoint: &Arc<Endpoint>) -> Self {
        Self {
            generation,
            endpoint: Arc::downgrade(endpoint),
            connections: RefCell::default(),
            opening: Cell::new(0),
            opened: Cell::new(0),
            waiting: Cell::new(0),
            waiting_alone: Cell::new(0),
            streams_per_connection: Cell::new(TYPICAL_STREAMS),
            max_requests: Cell::new(usize::MAX),
            ended: RefCell::default(),
            max_requests_until: Cell::new(None),
            failures: Cell::new(0),
            failure: RefCell::default(),
            no_stream_cause: Cell::new(NO_STREAM_BEGAN),
            closed_early: Cell::new(0),
            refused_further: Cell::new(None),
            http1_until: Cell::new(Duration::ZERO),
            http1: RefCell::default(),
            keep_alive: Cell::new(Duration::ZERO),
            changed: Notify::new(),
        }
    }

    /// Takes a stream of the first connection that has one.
    fn take(self: &Rc<Self>, sharing: Sharing) -> Option<StreamPermit> {
        // A connection that had no request was opened for those that must not share.
        let is_reserved = sharing == Sharing::Shared && self.waiting_alone.get() > 0;
        let slot = {
            let connections = self.connections.borrow();
            let mut open = connections.iter().filter(|open| !is_reserved || open.requests() > 0);
            open.find_map(|connection| connection.take(sharing))?
        };
        let is_last = slot.connection.requests() >= self.max_requests.get();
        if is_last || self.keep_alive.get().is_zero() {
            // Not reused: this stream is the last one.
            slot.connection.facts.retire();
        }
        Some(StreamPermit { slot, pool: Rc::clone(self) })
    }

    /// Records that a request was not processed because the endpoint was ending `connection`.
    ///
    /// Some servers end each connection after a number of requests (nginx: `keepalive_requests`), whatever arrives
    /// after the last one. Further connections receive no more than that for a while, so that a request is not refused
    /// repeatedly. A connection that ends early is no evidence, since its server may have restarted: two must end
    /// alike.
    pub(super) fn unsent(&self, connection: &Rc<Connection>) {
        let Some(processed) = connection.unsent() else { return };
        let connection = Rc::downgrade(connection);
        let before = self.ended.take().and_then(|last| {
            // Each further unprocessed request of one connection narrows down how many were processed.
            let is_same = last.connection.ptr_eq(&connection);
            if is_same { last.before } else { Some(last.processed) }
        });
        self.ended.replace(Some(EndedConnection { connection, processed, before }));
        self.max_requests_until.set(None);
        if before == Some(processed) {
            self.max_requests.set(processed.max(MIN_REQUESTS_PER_CONNECTION));
        }
    }

    /// Forgets after a while how many requests the endpoint takes per connection.
    fn expire_max_requests(&self, now: Duration) {
        match self.max_requests_until.get() {
            _ if self.ended.borrow().is_none() => {}
            None => self.max_requests_until.set(Some(now + MAX_REQUESTS_RETENTION)),
            Some(until) if now < until => {}
            Some(_) => {
                self.max_requests.set(usize::MAX);
                self.ended.take();
            }
        }
    }

    /// Whether a connection takes further streams, now or when others have ended.
    fn takes_streams(&self) -> bool {
        self.connections.borrow().iter().any(|connection| connection.takes_streams())
    }

    /// Returns the time at which a further connection may be opened, if the endpoint has refused one just now: some limit
    /// how many they take.
    fn takes_more_connections_at(&self) -> Option<Instant> {
        let at = self.refused_further.get()? + REFUSED_FURTHER_RETENTION;
        (at > Instant::now()).then_some(at)
    }

    /// Whether a connection has taken streams, although it ends.
    fn took_streams(&self) -> bool {
        self.connections.borrow().iter().any(|connection| connection.requests() > 0)
    }

    async fn wait_for_stream(
        self: Rc<Self>,
        endpoint: &Arc<Endpoint>,
        settings: &PoolSettings<'_>,
        sharing: Sharing,
        now: Duration,
    ) -> Result<Acquired, ConnectError> {
        let wait = settings.wait.min(settings.connect_timeout * MAX_CONNECTS_WAITED);
        let deadline = Instant::now() + wait;
        let failures = self.failures.get();
        let mut waiting = Waiting::begin(&self, sharing);
        let mut opened = 0;
        loop {
            // A request that has waited long enough for a connection of its own shares one.
            let sharing = if opened < MAX_OPENED_ALONE { sharing } else { waiting.share() };
            if let Some(permit) = self.take(sharing) {
                return Ok(Acquired::Http2(permit));
            }
            if let Some(stream) = self.http1.take() {
                return Ok(Acquired::Http1(Some(stream)));
            }
            if now < self.http1_until.get() {
                return Ok(Acquired::Http1(None));
            }
            if self.failures.get() != failures {
                let failure = self.failure.borrow().clone();
                return Err(failure.unwrap_or_else(|| UpstreamError::Connect.into()));
            }
            let streams = self.streams_per_connection.get().min(self.max_requests.get());
            let alone = self.waiting_alone.get();
            let needed = (self.waiting.get() - alone).div_ceil(streams) + alone;
            if self.opening.get() < needed.clamp(1, MAX_OPENING) {
                let takes_streams = self.takes_streams();
                let may_open = if takes_streams {
                    opened < MAX_OPENED_IN_VAIN && self.takes_more_connections_at().is_none()
                } else {
                    opened < MAX_OPENED_IN_VAIN || self.took_streams()
                };
                if may_open {
                    opened += 1;
                    self.open(endpoint, settings, now);
                } else if !takes_streams {
                    // The endpoint closes every connection, or allows no streams: it accepts no request.
                    return Err(ConnectError::new(
                        UpstreamError::Refused,
                        self.no_stream_cause.get(),
                    ));
                }
            }
            // Every connection attempt ends in a notification, within a timeout of its own. Otherwise wait until the
            // endpoint takes another connection.
            let until = self.takes_more_connections_at().map_or(deadline, |at| at.min(deadline));
            if timeout_at(until, self.changed.notified()).await.is_err() && until == deadline {
                let has_connections = self.takes_streams() || self.opening.get() == 0;
                return Err(if has_connections {
                    UpstreamError::Overflow.into()
                } else {
                    // A handshake takes longer than the request may.
                    ConnectError::timeout(wait)
                });
            }
        }
    }

    /// Records a failed attempt, for the requests that wait.
    fn fail(&self, failure: ConnectError) {
        self.failures.set(self.failures.get() + 1);
        self.failure.replace(Some(failure));
    }

    /// Opens a connection in a task of its own.
    fn open(self: &Rc<Self>, endpoint: &Arc<Endpoint>, settings: &PoolSettings<'_>, now: Duration) {
        self.opening.set(self.opening.get() + 1);
        let (pool, endpoint) = (Rc::clone(self), Arc::clone(endpoint));
        let (limit, metrics) = (settings.connect_timeout, Arc::clone(settings.metrics));
        let opened_before = self.opened.get();
        spawn_local(async move {
            let opened = open(&endpoint, limit, Arc::clone(&metrics)).await;
            pool.opening.set(pool.opening.get() - 1);
            let others_serve = pool.takes_streams();
            if others_serve && !matches!(opened, Ok(Opened::Http2(_))) {
                pool.refused_further.set(Some(Instant::now()));
            }
            match opened {
                Ok(Opened::Http2(connection)) => {
                    metrics.target_version(endpoint.name()).set(2);
                    pool.closed_early.set(0);
                    pool.streams_per_connection.set(connection.max_streams().max(1));
                    if connection.max_streams() > 0 {
                        pool.no_stream_cause.set(NO_STREAM_BEGAN);
                        pool.connections.borrow_mut().push(connection);
                    } else {
                        // The connection allows no stream; dropping it closes it.
                        pool.no_stream_cause.set(ALLOWS_NO_STREAM);
                    }
                    pool.opened.set(pool.opened.get() + 1);
                }
                Ok(Opened::Http1(stream)) => {
                    pool.http1_until.set(now + HTTP1_RETENTION);
                    // Without a waiting request it would stay idle until the endpoint closes it.
                    pool.http1.replace(Some(stream).filter(|_| pool.waiting.get() > 0));
                }
                // A server that reloads closes connections that it has just accepted: the waiting requests open others.
                // A server that limits its connections closes new ones while older ones serve: the waiting requests use
                // those.
                Ok(Opened::ClosedEarly)
                    if pool.closed_early.get() < MAX_CLOSED_EARLY || others_serve =>
                {
                    pool.closed_early.set(pool.closed_early.get() + 1);
                }
                Ok(Opened::ClosedEarly) => {
                    pool.closed_early.set(0);
                    pool.fail(ConnectError::new(UpstreamError::Connect, CLOSED_BEFORE_SETTINGS));
                }
                // The endpoint accepts connections: the waiting requests open others, or wait for a stream.
                Err(_) if pool.opened.get() != opened_before || others_serve => {}
                Err(failure) => pool.fail(failure),
            }
            pool.changed.notify_waiters();
        });
    }
}

/// A connection that its endpoint has ended by GOAWAY.
#[derive(Debug)]
struct EndedConnection {
    connection: rc::Weak<Connection>,
    /// The number of its requests that were processed.
    processed: usize,
    /// That number of the connection that ended so before it.
    before: Option<usize>,
}

enum Opened {
    Http2(Rc<Connection>),
    Http1(Stream),
    /// Closed by the endpoint before its settings.
    ClosedEarly,
}

async fn open(
    endpoint: &Endpoint,
    limit: Duration,
    metrics: Arc<UpstreamMetrics>,
) -> Result<Opened, ConnectError> {
    let deadline = Instant::now() + limit;
    let stream = connect(endpoint, limit, Offer::Http2).await?;
    match stream.selected_http2() {
        Some(false) if endpoint.requires_http2() => {
            return Err(ConnectError::new(UpstreamError::Tls, WITHOUT_HTTP2));
        }
        Some(false) => return Ok(Opened::Http1(stream)),
        Some(true) | None => {}
    }
    match timeout_at(deadline, Connection::open(stream, metrics)).await {
        Ok(Ok(connection)) => Ok(Opened::Http2(connection)),
        Ok(Err(UpstreamError::Connect)) => Ok(Opened::ClosedEarly),
        Ok(Err(UpstreamError::TlsAlert(cause))) => {
            Err(ConnectError::new(UpstreamError::Tls, cause))
        }
        Ok(Err(failure)) => Err(ConnectError::new(failure, NOT_HTTP2)),
        Err(_) => Err(ConnectError::new(UpstreamError::Connect, NO_SETTINGS)),
    }
}

/// Counts a request that waits for a stream.
struct Waiting<'a> {
    pool: &'a EndpointPool,
    alone: usize,
}

impl<'a> Waiting<'a> {
    fn begin(pool: &'a EndpointPool, sharing: Sharing) -> Self {
        let alone = usize::from(sharing != Sharing::Shared);
        pool.waiting.set(pool.waiting.get() + 1);
        pool.waiting_alone.set(pool.waiting_alone.get() + alone);
        Self { pool, alone }
    }

    /// Lets the request share a connection.
    fn share(&mut self) -> Sharing {
        self.pool
            .waiting_alone
            .set(self.pool.waiting_alone.get() - core::mem::take(&mut self.alone));
        Sharing::Shared
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.waiting.set(self.pool.waiting.get() - 1);
        if self.pool.waiting.get() == 0 {
            self.pool.http1.take();
        }
        self.pool.waiting_alone.set(self.pool.waiting_alone.get() - self.alone);
    }
}

/// The causes of failures, for the log.
const NO_STREAM_BEGAN: &str = "each connection ended before a stream could begin";
pub(super) const ALLOWS_NO_STREAM: &str = "the settings of HTTP/2 allow no stream";
pub(super) const CLOSED_BEFORE_SETTINGS: &str = "closed before the settings of HTTP/2";
pub(in crate::upstream) const NO_SETTINGS: &str = "timed out: connected, but no settings of HTTP/2";
pub(super) const NOT_HTTP2: &str =
    "the upstream does not speak HTTP/2: its first frame is not SETTINGS";

/// The number of streams that a connection is expected to allow, before one was opened (RFC 9113 §6.5.2).
const TYPICAL_STREAMS: usize = 100;
/// Connections to one endpoint that are opened at a time.
const MAX_OPENING: usize = 8;
/// The longest wait for a stream, as a multiple of the timeout of a connection attempt: thousands of requests may come
/// at once, and connections are opened a few at a time.
const MAX_CONNECTS_WAITED: u32 = 10;
/// Connections that are opened for one request, if it gets a stream on none.
const MAX_OPENED_IN_VAIN: usize = MAX_CLOSED_EARLY + 1;
/// Connections that are opened for one request that must not share: other requests may take them first.
const MAX_OPENED_ALONE: usize = 3;
/// The smallest number of requests per connection that is learned: fewer come from a restart, not from a limit of the
/// endpoint.
const MIN_REQUESTS_PER_CONNECTION: usize = 4;
/// How long the number of requests per connection is remembered.
const MAX_REQUESTS_RETENTION: Duration = Duration::from_secs(60);
/// Connections in a row that an endpoint may close before its settings, without failing the requests that wait.
const MAX_CLOSED_EARLY: usize = 3;
/// How long an endpoint that refused a further connection is offered no other, while it has some.
const REFUSED_FURTHER_RETENTION: Duration = Duration::from_secs(1);
/// How long an endpoint that selected HTTP/1.1 is not asked again.
const HTTP1_RETENTION: Duration = Duration::from_secs(60);
