//! The only reader of the system's clock; tests use a manual one.
//!
//! Two kinds of time: [`Timestamp`] is calendar time: a token's `exp`, a
//! quota's midnight. It may step when the
//! machine's clock is corrected. [`Clock::uptime`] is monotonic: rates
//! and durations are measured with it.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A moment on the calendar, to the nanosecond, from 1970 to 2554.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The latest moment, for values that never expire.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the moment `secs` seconds after the Unix epoch; [`Timestamp::MAX`] if that is beyond 2554.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(NANOS))
    }

    /// Returns the moment `nanos` nanoseconds after the Unix epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Returns whole seconds since the Unix epoch.
    pub const fn as_secs(self) -> u64 {
        self.0 / NANOS
    }

    /// Returns nanoseconds since the Unix epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns the moment `secs` seconds later.
    #[must_use]
    pub const fn plus_secs(self, secs: u64) -> Self {
        Self(self.0.saturating_add(secs.saturating_mul(NANOS)))
    }

    /// Returns the moment `duration` later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// Returns the moment `duration` earlier, at least the epoch.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// Returns the time since `earlier`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The source of time. Cheap to clone; clones of a manual clock move together.
///
/// # Examples
///
/// ```
/// use core::time::Duration;
/// use northgate::base::clock::{Clock, Timestamp};
///
/// let clock = Clock::manual(Timestamp::from_secs(1_000));
/// let gateways = clock.clone();
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(gateways.now(), Timestamp::from_secs(1_005));
/// ```
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { started: Instant },
    Manual { started: Timestamp, now: Arc<AtomicU64> },
}

impl Clock {
    /// Creates a clock that reads the system's.
    pub fn system() -> Self {
        Self(Source::System { started: Instant::now() })
    }

    /// Creates a clock that stands at `now` until [`Clock::advance`] moves it.
    pub fn manual(now: Timestamp) -> Self {
        Self(Source::Manual { started: now, now: Arc::new(AtomicU64::new(now.as_nanos())) })
    }

    /// Returns calendar time.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads it")]
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            // A clock before 1970 fails closed: every token is "not yet valid".
            Source::System { .. } => {
                Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanos))
            }
            Source::Manual { now, .. } => Timestamp(now.load(Relaxed)),
        }
    }

    /// Returns calendar time and uptime of one moment, with one system call. A step of the system's clock shows within
    /// 0.1 s.
    pub fn now_and_instant(&self) -> (Timestamp, Duration) {
        let Source::System { started } = &self.0 else { return (self.now(), self.uptime()) };
        let instant = Instant::now();
        let now = match CACHED_NOW.get() {
            Some((at, now)) if instant.duration_since(at) < CACHE_PERIOD => {
                now.plus(instant.duration_since(at))
            }
            _ => {
                let now = self.now();
                CACHED_NOW.set(Some((instant, now)));
                now
            }
        };
        (now, instant.duration_since(*started))
    }

    /// Converts an [uptime](Self::uptime) for timers; a manual clock cannot, and returns the current moment.
    pub fn instant(&self, uptime: Duration) -> Instant {
        match &self.0 {
            Source::System { started } => *started + uptime,
            Source::Manual { .. } => Instant::now(),
        }
    }

    /// Returns the time since this clock was created; never steps back.
    pub fn uptime(&self) -> Duration {
        match &self.0 {
            Source::System { started } => started.elapsed(),
            Source::Manual { started, now } => Timestamp(now.load(Relaxed)).since(*started),
        }
    }

    /// Moves a manual clock forward.
    ///
    /// # Panics
    ///
    /// If this is the system's clock.
    pub fn advance(&self, by: Duration) {
        match &self.0 {
            Source::Manual { now, .. } => now.fetch_add(nanos(by), Relaxed),
            Source::System { .. } => panic!("only a manual clock can be moved"),
        };
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

thread_local! {
    /// The last reading of the system's clock on this thread.
    static CACHED_NOW: Cell<Option<(Instant, Timestamp)>> = const { Cell::new(None) };
}

const CACHE_PERIOD: Duration = Duration::from_millis(100);
const NANOS: u64 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calendar_time_and_uptime_advance_together() {
        let clock = Clock::system();
        let (before, earlier) = (clock.now(), clock.uptime());

        for _ in 0..1_000 {
            let (now, uptime) = clock.now_and_instant();
            let since = now.since(before).abs_diff(uptime.saturating_sub(earlier));
            assert!(since < Duration::from_secs(1), "{since:?} apart");
        }
        assert!(clock.instant(clock.uptime()).elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn clones_of_a_manual_clock_move_together() {
        let clock = Clock::manual(Timestamp::from_secs(100));
        let other = clock.clone();

        clock.advance(Duration::from_secs(5));

        assert_eq!(other.now(), Timestamp::from_secs(105));
        assert_eq!(other.uptime(), Duration::from_secs(5));
    }

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Timestamp::from_secs(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.plus(Duration::from_secs(1)), Timestamp::MAX);
        assert_eq!(Timestamp::from_secs(1).since(Timestamp::from_secs(2)), Duration::ZERO);
        assert_eq!(Timestamp::from_secs(1).minus(Duration::from_secs(2)), Timestamp::from_secs(0));
    }
}
