//! Connection timeouts: request head, idle connection, blocked write.
//!
//! A timer per read would cost every request two timers. Instead each connection records the awaited event and the
//! tick since when it waits, and one sweep over the worker's connections, four times a second, ends those that exceed
//! a timeout. Connections record their state with plain stores.

use core::pin::Pin;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32};
use core::task::{Context, Poll};
use core::time::Duration;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::write_coalescing;

/// The timeouts of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// The TLS handshake, or a whole request head.
    pub(super) head: Duration,
    /// The wait for the next request.
    pub(super) idle: Duration,
    /// A write that is blocked because the client does not read.
    pub(super) write: Duration,
}

/// Timeout state of one connection: the awaited event and since which tick.
#[derive(Debug)]
pub(super) struct ConnectionActivity {
    /// The worker's current tick, in quarters of a second.
    now: Arc<AtomicU32>,
    waits_for: AtomicU32,
    since: AtomicU32,
    /// The tick at which a write first blocked; zero if none does.
    stalled: AtomicU32,
    in_flight: AtomicU32,
    /// Whether the gateway drains.
    drains: AtomicBool,
    verdict: AtomicU32,
    waker: AtomicWaker,
}

/// The decision of a sweep.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TimeoutVerdict {
    /// No timeout has expired.
    Active,
    /// Keep-alive timeout expired: close gracefully.
    Idle,
    /// Head or write timeout expired: drop the connection.
    Stalled,
}

impl ConnectionActivity {
    /// Records the end of a request head: the client waits for the gateway now.
    pub(super) fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.in_flight.fetch_add(1, Relaxed);
        self.waits_for.store(WAITS_FOR_GATEWAY, Relaxed);
        ActiveRequest(Arc::clone(self))
    }

    /// Returns the verdict of the sweeps; the caller is woken when it changes.
    pub(super) fn verdict(&self, cx: &Context<'_>) -> TimeoutVerdict {
        match self.verdict.load(Relaxed) {
            0 => {
                self.waker.register(cx.waker());
                TimeoutVerdict::Active
            }
            1 => TimeoutVerdict::Idle,
            _ => TimeoutVerdict::Stalled,
        }
    }

    /// Returns the current tick.
    pub(super) fn tick(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// Shortens the wait for the next request to [`MAX_DRAIN_IDLE`].
    pub(super) fn start_drain(&self) {
        self.drains.store(true, Relaxed);
    }

    /// Restarts the head timeout for a connection that is being closed gracefully.
    pub(super) fn start_graceful_close(&self) {
        self.verdict.store(0, Relaxed);
        self.waits_for.store(WAITS_FOR_HEAD, Relaxed);
        self.since.store(self.now.load(Relaxed), Relaxed);
    }

    /// Records the beginning of the next request head.
    pub(super) fn header_started(&self) {
        if self.waits_for.load(Relaxed) == WAITS_FOR_REQUEST {
            self.waits_for.store(WAITS_FOR_HEAD, Relaxed);
            self.since.store(self.now.load(Relaxed), Relaxed);
        }
    }

    fn update_verdict(&self, timeouts: &Timeouts) {
        let now = self.now.load(Relaxed);
        let waited =
            |since: u32| Duration::from_millis(u64::from(now.wrapping_sub(since)) * TICK_MILLIS);
        let stalled = self.stalled.load(Relaxed);
        let since = self.since.load(Relaxed);
        let drains = self.drains.load(Relaxed);
        let idle = if drains { timeouts.idle.min(MAX_DRAIN_IDLE) } else { timeouts.idle };
        // A connection that still writes waits for nothing else.
        let verdict = if stalled != 0 {
            if waited(stalled) > timeouts.write { 2 } else { 0 }
        } else {
            match self.waits_for.load(Relaxed) {
                WAITS_FOR_HEAD if waited(since) > timeouts.head => 2,
                WAITS_FOR_REQUEST if waited(since) > idle => 1,
                _ => 0,
            }
        };
        if verdict > self.verdict.load(Relaxed) {
            self.verdict.store(verdict, Relaxed);
            self.waker.wake();
        }
    }
}

/// A request in flight on a connection, until its response content has ended.
#[derive(Debug)]
pub(super) struct ActiveRequest(Arc<ConnectionActivity>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Relaxed) == 1 {
            self.0.since.store(self.0.now.load(Relaxed), Relaxed);
            self.0.waits_for.store(WAITS_FOR_REQUEST, Relaxed);
        }
    }
}

/// The connections of one worker.
#[derive(Clone, Debug)]
pub(super) struct TimeoutSweeper {
    now: Arc<AtomicU32>,
    connections: Rc<RefCell<Vec<Weak<ConnectionActivity>>>>,
}

impl TimeoutSweeper {
    pub(super) fn new() -> Self {
        // Zero means "not blocked", so the first tick is 1.
        Self { now: Arc::new(AtomicU32::new(1)), connections: Rc::default() }
    }

    /// Registers a new connection, which waits for its first head or handshake.
    pub(super) fn register(&self) -> Arc<ConnectionActivity> {
        let activity = Arc::new(ConnectionActivity {
            now: Arc::clone(&self.now),
            waits_for: AtomicU32::new(WAITS_FOR_HEAD),
            since: AtomicU32::new(self.now.load(Relaxed)),
            stalled: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            drains: AtomicBool::new(false),
            verdict: AtomicU32::new(0),
            waker: AtomicWaker::new(),
        });
        self.connections.borrow_mut().push(Arc::downgrade(&activity));
        activity
    }

    /// Advances the tick and checks every connection. To be called every [`TimeoutSweeper::TICK`].
    pub(super) fn tick(&self, timeouts: Timeouts) {
        self.now.fetch_add(1, Relaxed);
        self.connections.borrow_mut().retain(|activity| {
            activity.upgrade().is_some_and(|activity| {
                activity.update_verdict(&timeouts);
                true
            })
        });
    }

    /// The time between two sweeps, which is the resolution of the timeouts.
    pub(super) const TICK: Duration = Duration::from_millis(TICK_MILLIS);
}

/// A stream that records blocked writes.
#[derive(Debug)]
pub(super) struct MonitoredStream<S> {
    stream: S,
    activity: Arc<ConnectionActivity>,
}

impl<S> MonitoredStream<S> {
    pub(super) const fn new(stream: S, activity: Arc<ConnectionActivity>) -> Self {
        Self { stream, activity }
    }

    /// Returns the stream itself.
    pub(super) const fn get_ref(&self) -> &S {
        &self.stream
    }

    fn record_write<T>(&self, polled: Poll<T>) -> Poll<T> {
        match &polled {
            Poll::Pending if self.activity.stalled.load(Relaxed) == 0 => {
                self.activity.stalled.store(self.activity.now.load(Relaxed), Relaxed);
            }
            Poll::Ready(_) if self.activity.stalled.load(Relaxed) != 0 => {
                self.activity.stalled.store(0, Relaxed);
                self.activity.since.store(self.activity.now.load(Relaxed), Relaxed);
            }
            _ => {}
        }
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MonitoredStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MonitoredStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.record_write(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = write_coalescing::poll_write(&mut this.stream, cx, bufs);
        this.record_write(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.record_write(polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.record_write(polled)
    }
}

const TICK_MILLIS: u64 = 250;
/// The wait for the next request while the gateway drains. A connection in use gets a response that announces its end
/// (`Connection: close`) in that time; one that was closed at once would cut off a request that is on its way.
const MAX_DRAIN_IDLE: Duration = Duration::from_secs(1);

/// The connection waits for the gateway.
const WAITS_FOR_GATEWAY: u32 = 0;
/// The connection waits for the rest of a head.
const WAITS_FOR_HEAD: u32 = 1;
/// The connection waits for the next request.
const WAITS_FOR_REQUEST: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_head_stalls_the_connection() {
        let (sweeper, activity) = connection();
        assert_eq!(after(&sweeper, &activity, 9), TimeoutVerdict::Active);
        assert_eq!(after(&sweeper, &activity, 2), TimeoutVerdict::Stalled);
    }

    #[test]
    fn a_request_in_flight_does_not_time_out_and_is_followed_by_idleness() {
        let (sweeper, activity) = connection();
        let request = activity.begin();
        assert_eq!(after(&sweeper, &activity, 1000), TimeoutVerdict::Active);
        drop(request);
        assert_eq!(after(&sweeper, &activity, 59), TimeoutVerdict::Active);
        assert_eq!(after(&sweeper, &activity, 2), TimeoutVerdict::Idle);
    }

    #[test]
    fn a_connection_that_drains_waits_a_second_for_the_next_request() {
        let (sweeper, activity) = connection();
        drop(activity.begin());

        activity.start_drain();

        assert_eq!(after(&sweeper, &activity, 1), TimeoutVerdict::Active);
        assert_eq!(after(&sweeper, &activity, 1), TimeoutVerdict::Idle);
    }

    #[test]
    fn a_second_head_has_the_same_timeout_as_the_first() {
        let (sweeper, activity) = connection();
        drop(activity.begin());
        activity.header_started();
        assert_eq!(after(&sweeper, &activity, 11), TimeoutVerdict::Stalled);
    }

    #[test]
    fn a_blocked_write_stalls_the_connection() {
        let (sweeper, activity) = connection();
        let _request = activity.begin();
        let watched = MonitoredStream::new((), Arc::clone(&activity));
        let _ = watched.record_write(Poll::<()>::Pending);
        assert_eq!(after(&sweeper, &activity, 29), TimeoutVerdict::Active);
        let _ = watched.record_write(Poll::Ready(()));
        let _ = watched.record_write(Poll::<()>::Pending);
        assert_eq!(after(&sweeper, &activity, 29), TimeoutVerdict::Active);
        assert_eq!(after(&sweeper, &activity, 2), TimeoutVerdict::Stalled);
    }

    #[test]
    fn a_connection_that_still_writes_what_remains_of_its_responses_is_not_idle() {
        let (sweeper, activity) = connection();
        drop(activity.begin());
        activity.start_drain();
        let watched = MonitoredStream::new((), Arc::clone(&activity));
        for _ in 0..3 {
            let _ = watched.record_write(Poll::<()>::Pending);
            assert_eq!(after(&sweeper, &activity, 29), TimeoutVerdict::Active);
            let _ = watched.record_write(Poll::Ready(()));
            assert_eq!(after(&sweeper, &activity, 1), TimeoutVerdict::Active);
        }
        assert_eq!(after(&sweeper, &activity, 1), TimeoutVerdict::Idle);
    }

    fn connection() -> (TimeoutSweeper, Arc<ConnectionActivity>) {
        let sweeper = TimeoutSweeper::new();
        let activity = sweeper.register();
        (sweeper, activity)
    }

    fn after(sweeper: &TimeoutSweeper, activity: &ConnectionActivity, secs: u32) -> TimeoutVerdict {
        (0..secs * 4).for_each(|_| sweeper.tick(TIMEOUTS));
        activity.verdict(&Context::from_waker(futures_util::task::noop_waker_ref()))
    }

    const TIMEOUTS: Timeouts = Timeouts {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        write: Duration::from_secs(30),
    };
}
