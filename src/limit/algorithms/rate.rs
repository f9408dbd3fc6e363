//! Rates, quotas and concurrency limits, each within its valid range.

use core::fmt;
use core::num::NonZeroU32;
use core::time::Duration;

use super::time_zone::Zone;

/// The three kinds of limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Spike arrest: requests are admitted at an even rate, to protect an upstream.
    Rate(SpikeArrest),
    /// An allowance of a client per minute, day or month.
    Quota(Quota),
    /// The maximum number of requests in flight.
    Concurrency(NonZeroU32),
}

impl Kind {
    /// Returns the most that can be used at once: the burst, the quota, or the requests in flight.
    pub fn whole(&self) -> u64 {
        match self {
            Self::Rate(spike) => spike.burst().get().into(),
            Self::Quota(quota) => quota.rate().count(),
            Self::Concurrency(slots) => slots.get().into(),
        }
    }
}

/// A smoothed rate (GCRA): `100/s` is one every 10 ms, with a burst.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpikeArrest {
    rate: Rate,
    burst: NonZeroU32,
}

impl SpikeArrest {
    /// Creates a rate with this `burst`; default is the rate's share of 100 ms, at least 1.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Rate`] for more than a billion a second, and [`InvalidLimit::Burst`] if `burst` is
    /// zero or takes more than 100 years to refill.
    pub fn new(rate: Rate, burst: Option<u32>) -> Result<Self, InvalidLimit> {
        let interval = rate.interval();
        if interval.is_zero() {
            return Err(InvalidLimit::Rate);
        }
        let share = DEFAULT_BURST.as_nanos() / interval.as_nanos();
        let burst = burst.unwrap_or_else(|| u32::try_from(share).unwrap_or(u32::MAX).max(1));
        let burst = NonZeroU32::new(burst).ok_or(InvalidLimit::Burst)?;
        match interval.checked_mul(burst.get()) {
            Some(whole) if whole <= MAX_REFILL => Ok(Self { rate, burst }),
            _ => Err(InvalidLimit::Burst),
        }
    }

    /// Returns the even rate.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Returns the number of requests that may come at once.
    pub const fn burst(&self) -> NonZeroU32 {
        self.burst
    }
}

/// A number of requests per window.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Quota {
    rate: Rate,
    window: Window,
}

impl Quota {
    /// Creates a quota of `rate.count()` requests per `window`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Rolling`] for a rolling window of more than `u32::MAX` requests, or more than a billion
    /// a second.
    pub fn new(rate: Rate, window: Window) -> Result<Self, InvalidLimit> {
        let rolls = u32::try_from(rate.count()).is_ok() && !rate.interval().is_zero();
        match window {
            Window::Rolling if !rolls => Err(InvalidLimit::Rolling),
            window => Ok(Self { rate, window }),
        }
    }

    /// Returns the count and the unit.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// Returns the kind of window.
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// Returns the whole quota as the burst of a rolling window, where it always fits.
    pub(in crate::limit) fn burst(&self) -> NonZeroU32 {
        let count = u32::try_from(self.rate.count).unwrap_or(u32::MAX);
        NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
    }
}

/// The kinds of quota windows.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Window {
    /// Aligned to the calendar in this zone: minutes, hours, days, ISO weeks (from Monday), months.
    Calendar(Zone),
    /// From each key's first request; a month has 30 days.
    Flexi,
    /// Rolling: used requests are renewed evenly (GCRA with a burst of the whole quota).
    Rolling,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calendar(zone) => write!(f, "calendar {}", zone.name()),
            Self::Flexi => f.write_str("flexi"),
            Self::Rolling => f.write_str("rolling"),
        }
    }
}

/// A count per unit of time.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Rate {
    count: u64,
    unit: Unit,
}

impl Rate {
    /// Creates a rate of `count` per `unit`.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Count`] if `count` is zero or has more than the 15 digits that a structured field
    /// can say (RFC 9651 §3.3.1).
    pub const fn new(count: u64, unit: Unit) -> Result<Self, InvalidLimit> {
        match count {
            1..=MAX_COUNT => Ok(Self { count, unit }),
            _ => Err(InvalidLimit::Count),
        }
    }

    /// Returns the count.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Returns the unit.
    pub const fn unit(self) -> Unit {
        self.unit
    }

    /// Returns the time between two requests at the even rate; zero above a billion a second.
    pub(in crate::limit) const fn interval(self) -> Duration {
        Duration::from_nanos(self.unit.nanos() / self.count)
    }
}

/// Formats a rate as the file does: `10000/day`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.unit)
    }
}

/// The time unit of a rate.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Unit {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 3 600 s.
    Hour,
    /// 24 hours; in a calendar, from midnight to midnight.
    Day,
    /// 7 days; in a calendar, from Monday.
    Week,
    /// 30 days; in a calendar, from the first to the last.
    Month,
}

/// Formats a unit as the file does: `day`.
impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Second => "s",
            Self::Minute => "min",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        })
    }
}

impl Unit {
    /// Every unit, the shortest first.
    pub(in crate::limit) const ALL: [Self; 6] =
        [Self::Second, Self::Minute, Self::Hour, Self::Day, Self::Week, Self::Month];

    /// Returns the length outside a calendar, in seconds.
    pub const fn secs(self) -> u64 {
        match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3_600,
            Self::Day => 86_400,
            Self::Week => 7 * 86_400,
            Self::Month => 30 * 86_400,
        }
    }

    pub(in crate::limit) const fn nanos(self) -> u64 {
        self.secs() * 1_000_000_000
    }
}

/// The reason why a limit was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidLimit {
    /// The count is zero, or too large for a structured field.
    #[error("a limit must be 1 to 999,999,999,999,999")]
    Count,
    /// The rate is above one per nanosecond.
    #[error("a rate must be at most 1,000,000,000 a second")]
    Rate,
    /// The burst is zero, or too large for its rate.
    #[error("a burst must be at least 1, and must refill within 100 years")]
    Burst,
    /// The count is too large for a rolling window.
    #[error("a rolling quota must be at most 4,294,967,295, and at most 1,000,000,000 a second")]
    Rolling,
    /// The cost of a request is above the limit.
    #[error("a request may not cost more than the `burst` or the `quota` allows at once")]
    Cost,
    /// `max_keys` is zero.
    #[error("at least one key must be counted")]
    MaxKeys,
}

/// The share of a rate that makes the default burst.
const DEFAULT_BURST: Duration = Duration::from_millis(100);
const MAX_REFILL: Duration = Duration::from_secs(100 * 365 * 86_400);
/// The largest Integer of a structured field (RFC 9651 §3.3.1).
const MAX_COUNT: u64 = 999_999_999_999_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_tenth_of_a_seconds_requests_come_at_once_by_default() {
        assert_eq!(burst(100, Unit::Second), 10);
        assert_eq!(burst(19, Unit::Second), 1);
        assert_eq!(burst(30, Unit::Minute), 1);
        assert_eq!(burst(6_000, Unit::Minute), 10);
    }

    #[test]
    fn refuses_numbers_that_mean_nothing() {
        assert_eq!(Rate::new(0, Unit::Day), Err(InvalidLimit::Count));
        assert_eq!(Rate::new(MAX_COUNT + 1, Unit::Day), Err(InvalidLimit::Count));
        assert_eq!(
            SpikeArrest::new(rate(1_000_000_001, Unit::Second), None),
            Err(InvalidLimit::Rate)
        );
        assert_eq!(SpikeArrest::new(rate(1, Unit::Second), Some(0)), Err(InvalidLimit::Burst));
        assert_eq!(SpikeArrest::new(rate(1, Unit::Month), Some(1_300)), Err(InvalidLimit::Burst));
        assert_eq!(
            Quota::new(rate(1 << 32, Unit::Month), Window::Rolling),
            Err(InvalidLimit::Rolling)
        );
    }

    fn burst(count: u64, unit: Unit) -> u32 {
        SpikeArrest::new(rate(count, unit), None).unwrap().burst().get()
    }

    fn rate(count: u64, unit: Unit) -> Rate {
        Rate::new(count, unit).unwrap()
    }
}
