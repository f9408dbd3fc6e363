//! Whether a connection still moves.
//!
//! A timer per read would cost every request two timers. Instead each
//! connection notes what it waits for and since which *beat*, and one sweep
//! over the worker's connections, four times a second, ends those that have
//! waited too long. A connection notes its state with plain stores.

use core::pin::Pin;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use core::task::{Context, Poll};
use core::time::Duration;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::write_coalescing;

/// How long each kind of wait may last.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// A handshake, or a request's whole head.
    pub(super) head: Duration,
    /// The time until the next request.
    pub(super) idle: Duration,
    /// A client that reads nothing of what is sent to it.
    pub(super) write: Duration,
}

/// What one connection waits for, and since when.
#[derive(Debug)]
pub(super) struct ConnectionActivity {
    /// The worker's beat, counted in quarters of a second.
    now: Arc<AtomicU32>,
    waits_for: AtomicU32,
    since: AtomicU32,
    /// The beat at which a write first had to wait; zero if none does.
    stalled: AtomicU32,
    in_flight: AtomicU32,
    verdict: AtomicU32,
    waker: AtomicWaker,
}

/// What a sweep decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TimeoutVerdict {
    /// It moves.
    Active,
    /// No request came: it may be closed in all politeness.
    Idle,
    /// It holds the gateway up: it is cut.
    Stalled,
}

impl ConnectionActivity {
    /// A request's head is whole: the client waits for us now.
    pub(super) fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.in_flight.fetch_add(1, Relaxed);
        self.waits_for.store(WAITS_FOR_GATEWAY, Relaxed);
        ActiveRequest(Arc::clone(self))
    }

    /// What the sweeps have decided so far; the caller is woken when that changes.
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

    /// Which beat it is.
    pub(super) fn tick(&self) -> u32 {
        self.now.load(Relaxed)
    }

    /// A connection that was closed in politeness has once more the patience of a head to be gone.
    pub(super) fn start_graceful_close(&self) {
        self.verdict.store(0, Relaxed);
        self.waits_for.store(WAITS_FOR_HEAD, Relaxed);
        self.since.store(self.now.load(Relaxed), Relaxed);
    }

    /// The next head has begun.
    pub(super) fn header_started(&self) {
        if self.waits_for.load(Relaxed) == WAITS_FOR_REQUEST {
            self.waits_for.store(WAITS_FOR_HEAD, Relaxed);
            self.since.store(self.now.load(Relaxed), Relaxed);
        }
    }

    fn verdict_at(&self, patience: &Timeouts) {
        let now = self.now.load(Relaxed);
        let waited =
            |since: u32| Duration::from_millis(u64::from(now.wrapping_sub(since)) * TICK_MILLIS);
        let stalled = self.stalled.load(Relaxed);
        let since = self.since.load(Relaxed);
        let verdict = if stalled != 0 && waited(stalled) > patience.write {
            2
        } else {
            match self.waits_for.load(Relaxed) {
                WAITS_FOR_HEAD if waited(since) > patience.head => 2,
                WAITS_FOR_REQUEST if waited(since) > patience.idle => 1,
                _ => 0,
            }
        };
        if verdict > self.verdict.load(Relaxed) {
            self.verdict.store(verdict, Relaxed);
            self.waker.wake();
        }
    }
}

/// A request in flight on a connection, until its answer's body has ended.
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

/// All connections of one worker.
#[derive(Clone, Debug)]
pub(super) struct TimeoutSweeper {
    now: Arc<AtomicU32>,
    pulses: Rc<RefCell<Vec<Weak<ConnectionActivity>>>>,
}

impl TimeoutSweeper {
    pub(super) fn new() -> Self {
        // Zero means "not stalled", so the first beat is 1.
        Self { now: Arc::new(AtomicU32::new(1)), pulses: Rc::default() }
    }

    /// A new connection: its first head, or handshake, is awaited.
    pub(super) fn admit(&self) -> Arc<ConnectionActivity> {
        let pulse = Arc::new(ConnectionActivity {
            now: Arc::clone(&self.now),
            waits_for: AtomicU32::new(WAITS_FOR_HEAD),
            since: AtomicU32::new(self.now.load(Relaxed)),
            stalled: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            verdict: AtomicU32::new(0),
            waker: AtomicWaker::new(),
        });
        self.pulses.borrow_mut().push(Arc::downgrade(&pulse));
        pulse
    }

    /// Counts a beat and judges every connection. To be called every [`TimeoutSweeper::BEAT`].
    pub(super) fn tick(&self, patience: Timeouts) {
        self.now.fetch_add(1, Relaxed);
        self.pulses.borrow_mut().retain(|pulse| {
            pulse.upgrade().is_some_and(|pulse| {
                pulse.verdict_at(&patience);
                true
            })
        });
    }

    /// The time between two sweeps: how exact the limits are.
    pub(super) const TICK: Duration = Duration::from_millis(TICK_MILLIS);
}

/// A connection's bytes, with its pulse taken as they pass.
#[derive(Debug)]
pub(super) struct MonitoredStream<S> {
    stream: S,
    pulse: Arc<ConnectionActivity>,
}

impl<S> MonitoredStream<S> {
    pub(super) const fn new(stream: S, pulse: Arc<ConnectionActivity>) -> Self {
        Self { stream, pulse }
    }

    /// The connection itself.
    pub(super) const fn get_ref(&self) -> &S {
        &self.stream
    }

    fn wrote<T>(&self, polled: Poll<T>) -> Poll<T> {
        match &polled {
            Poll::Pending if self.pulse.stalled.load(Relaxed) == 0 => {
                self.pulse.stalled.store(self.pulse.now.load(Relaxed), Relaxed);
            }
            Poll::Ready(_) if self.pulse.stalled.load(Relaxed) != 0 => {
                self.pulse.stalled.store(0, Relaxed);
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
        this.wrote(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = write_coalescing::poll_write(&mut this.stream, cx, bufs);
        this.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.wrote(polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.wrote(polled)
    }
}

const TICK_MILLIS: u64 = 250;

/// The connection waits for nobody but us.
const WAITS_FOR_GATEWAY: u32 = 0;
/// It waits for the rest of a head.
const WAITS_FOR_HEAD: u32 = 1;
/// It waits for the next request.
const WAITS_FOR_REQUEST: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_does_not_come_is_cut() {
        let (ward, pulse) = connection();
        assert_eq!(after(&ward, &pulse, 9), TimeoutVerdict::Active);
        assert_eq!(after(&ward, &pulse, 2), TimeoutVerdict::Stalled);
    }

    #[test]
    fn a_request_may_take_its_time_and_silence_after_it_is_idleness() {
        let (ward, pulse) = connection();
        let request = pulse.begin();
        assert_eq!(after(&ward, &pulse, 1000), TimeoutVerdict::Active);
        drop(request);
        assert_eq!(after(&ward, &pulse, 59), TimeoutVerdict::Active);
        assert_eq!(after(&ward, &pulse, 2), TimeoutVerdict::Idle);
    }

    #[test]
    fn a_second_head_gets_no_more_time_than_the_first() {
        let (ward, pulse) = connection();
        drop(pulse.begin());
        pulse.header_started();
        assert_eq!(after(&ward, &pulse, 11), TimeoutVerdict::Stalled);
    }

    #[test]
    fn a_client_that_reads_nothing_is_cut() {
        let (ward, pulse) = connection();
        let _request = pulse.begin();
        let watched = MonitoredStream::new((), Arc::clone(&pulse));
        let _ = watched.wrote(Poll::<()>::Pending);
        assert_eq!(after(&ward, &pulse, 29), TimeoutVerdict::Active);
        let _ = watched.wrote(Poll::Ready(()));
        let _ = watched.wrote(Poll::<()>::Pending);
        assert_eq!(after(&ward, &pulse, 29), TimeoutVerdict::Active);
        assert_eq!(after(&ward, &pulse, 2), TimeoutVerdict::Stalled);
    }

    fn connection() -> (TimeoutSweeper, Arc<ConnectionActivity>) {
        let ward = TimeoutSweeper::new();
        let pulse = ward.admit();
        (ward, pulse)
    }

    fn after(ward: &TimeoutSweeper, pulse: &ConnectionActivity, secs: u32) -> TimeoutVerdict {
        (0..secs * 4).for_each(|_| ward.tick(PATIENCE));
        pulse.verdict(&Context::from_waker(futures_util::task::noop_waker_ref()))
    }

    const PATIENCE: Timeouts = Timeouts {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        write: Duration::from_secs(30),
    };
}
