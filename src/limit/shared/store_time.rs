//! The store's time: one clock for all gateways, independent of their own clocks.
//!
//! Between two responses the time passes by this gateway's monotonic clock.

use core::sync::atomic::{AtomicI64, Ordering::Relaxed};

use super::store_epoch::from_epoch_nanos;
use crate::limit::counters::limit_counters::Now;

/// The store's time as far as this gateway knows, in microseconds of [`super::store_epoch`].
#[derive(Debug)]
pub(in crate::limit) struct StoreTime {
    /// The store's time at this gateway's start; [`UNKNOWN`] before the first response.
    offset: AtomicI64,
}

impl Default for StoreTime {
    fn default() -> Self {
        Self { offset: AtomicI64::new(UNKNOWN) }
    }
}

impl StoreTime {
    /// Returns the store's time; before the first response, this gateway's calendar time.
    pub(in crate::limit) fn now(&self, moment: Now) -> u64 {
        match self.offset.load(Relaxed) {
            UNKNOWN => from_epoch_nanos(moment.now.as_nanos()),
            offset => uptime(moment).saturating_add(offset).cast_unsigned(),
        }
    }

    /// Records the store's time `now` in a response that arrived at `moment`.
    pub(super) fn learn(&self, now: u64, moment: Now) {
        let heard = now.cast_signed().saturating_sub(uptime(moment));
        let known = self.offset.load(Relaxed);
        // A response that travelled longer has an earlier time: the latest is right, unless the store's clock stepped.
        if known == UNKNOWN || heard > known || heard < known - MAX_DELAY_MICROS {
            self.offset.store(heard, Relaxed);
        }
    }
}

fn uptime(moment: Now) -> i64 {
    i64::try_from(moment.uptime.as_micros()).unwrap_or(i64::MAX)
}

/// The longest way of a response by which the time is corrected.
const MAX_DELAY_MICROS: i64 = 50_000;
const UNKNOWN: i64 = i64::MIN;

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::base::clock::Timestamp;

    #[test]
    fn the_stores_time_passes_by_the_monotonic_clock_whatever_the_calendar_says() {
        let time = StoreTime::default();
        let at = |calendar, millis| Now {
            now: Timestamp::from_secs(calendar),
            uptime: Duration::from_millis(millis),
        };
        assert_eq!(time.now(at(1_800_000_000, 0)), 100_000_000_000_000);

        time.learn(7_000_000, at(1_800_000_000, 1_000));
        assert_eq!(time.now(at(1_700_000_001, 3_000)), 9_000_000);
        // A delayed response changes nothing, a step of the store's clock does.
        time.learn(8_990_000, at(0, 3_000));
        assert_eq!(time.now(at(0, 3_000)), 9_000_000);
        time.learn(1_000_000, at(0, 3_000));
        assert_eq!(time.now(at(0, 3_000)), 1_000_000);
    }
}
