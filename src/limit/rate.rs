//! How much: rates, quotas, slots, each within the range in which it means something.

use core::fmt;
use core::num::NonZeroU32;
use core::time::Duration;

use super::calendar::Zone;

/// The three kinds of limit.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kind {
    /// What a service can survive: requests come evenly, or are refused.
    Rate(SpikeArrest),
    /// What a client has bought: so many in a minute, a day, a month.
    Quota(Quota),
    /// How many requests may be in flight at once.
    Concurrency(NonZeroU32),
}

/// A smoothed rate (GCRA): `100/s` is one every 10 ms, and `burst` at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpikeArrest {
    rate: Rate,
    burst: NonZeroU32,
}

impl SpikeArrest {
    /// A rate of which `burst` requests may come at once; by default what comes in 100 ms, at least 1.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidLimit::Rate`] for more than a billion a second, and [`InvalidLimit::Burst`] if `burst` is
    /// zero or takes more than a century to come back.
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

    /// The rate over time.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// How many may come at once.
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
    /// A quota of `rate.count()` requests per `fixed_window`.
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

    /// How many per what.
    pub const fn rate(&self) -> Rate {
        self.rate
    }

    /// When a window begins and ends.
    pub const fn window(&self) -> &Window {
        &self.window
    }

    /// The whole quota, as what may come at once in a rolling window, where it is never more than fits.
    pub(super) fn burst(&self) -> NonZeroU32 {
        let count = u32::try_from(self.rate.count).unwrap_or(u32::MAX);
        NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
    }
}

/// When a quota's window begins and ends.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Window {
    /// With the clock on the wall in this zone: minutes, hours, days, ISO weeks (from Monday), months.
    Calendar(Zone),
    /// At each key's first request; a month lasts 30 days.
    Flexi,
    /// Never: what was used comes back evenly (GCRA with a burst of the whole quota).
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
    /// `count` per `unit`.
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

    /// How many.
    pub const fn count(self) -> u64 {
        self.count
    }

    /// Per what.
    pub const fn unit(self) -> Unit {
        self.unit
    }

    /// The time from one to the next, when they come evenly; zero above a billion a second.
    pub(super) const fn interval(self) -> Duration {
        Duration::from_nanos(self.unit.nanos() / self.count)
    }
}

/// As the file says it: `10000/day`.
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Second => "s",
            Unit::Minute => "min",
            Unit::Hour => "hour",
            Unit::Day => "day",
            Unit::Week => "week",
            Unit::Month => "month",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// What a rate counts in.
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

impl Unit {
    /// How long it lasts outside a calendar, in seconds.
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

    pub(super) const fn nanos(self) -> u64 {
        self.secs() * 1_000_000_000
    }
}

/// Why a limit was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidLimit {
    /// Zero, or beyond what a header can say.
    #[error("a limit counts from 1 to 999_999_999_999_999")]
    Count,
    /// Faster than nanoseconds.
    #[error("a rate is at most 1_000_000_000 a second")]
    Rate,
    /// Zero, or absurdly large for its rate.
    #[error("a burst is at least 1 and comes back within a century")]
    Burst,
    /// Too much for a rolling window.
    #[error("a rolling quota is at most 4_294_967_295, and at most 1_000_000_000 a second")]
    Rolling,
    /// Nothing could ever pass.
    #[error("a request may not cost more than the `burst` or the `quota` allows at once")]
    Cost,
    /// Nothing could be counted.
    #[error("at least one key must be counted")]
    MaxKeys,
}

/// What comes in this time may come at once, unless `burst` says otherwise.
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
