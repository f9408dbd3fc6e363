//! Calendar windows: minutes to months in a time zone.
//!
//! A day in Berlin has 23, 24 or 25 hours, and February is short. This file
//! returns the window around a moment; `fixed_window` counts, and does not
//! know time zones.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use jiff::civil::Date;
use jiff::{Timestamp, ToSpan};

use super::rate::Unit;
use super::time_zone::Zone;
use crate::base::lock::IgnorePoison as _;
use crate::limit::counters::counter::MAX_OWED_WINDOWS;

/// One unit of one zone's calendar, divided into windows without gap or overlap.
#[derive(Debug)]
pub(in crate::limit) struct Calendar {
    zone: Zone,
    unit: Unit,
    /// The window of the last call, packed: all keys share it, so that the time zone is not searched per request.
    last: AtomicU64,
    /// The ends of consecutive windows, from the one that was asked for last: keys in debt share them.
    ends: Mutex<Arc<[u64]>>,
}

impl Calendar {
    pub(in crate::limit) fn new(zone: Zone, unit: Unit) -> Self {
        Self { zone, unit, last: AtomicU64::new(0), ends: Mutex::default() }
    }

    /// Returns the window around `now`, in seconds since the Unix epoch.
    pub(in crate::limit) fn around(&self, now: u64) -> Period {
        let last = Period::unpack(self.last.load(Relaxed));
        if last.start <= now && now < last.end {
            return last;
        }
        let period = self.find_or_even(now);
        self.last.store(period.pack(), Relaxed);
        period
    }

    /// Returns `end`, the end of a window in seconds since the Unix epoch, and those of the [`MAX_OWED_WINDOWS`] after it.
    pub(in crate::limit) fn ends_from(&self, end: u64) -> Arc<[u64]> {
        let mut known = self.ends.lock().ignore_poison();
        if known.first() != Some(&end) {
            // After a window has passed, the later ends are still valid.
            let left = known.binary_search(&end).map(|at| known[at..].to_vec());
            let mut all = left.unwrap_or_else(|_| vec![end]);
            let mut last = all.last().copied().unwrap_or(end);
            while all.len() <= MAX_OWED_WINDOWS as usize {
                last = self.find_or_even(last).end;
                all.push(last);
            }
            *known = all.into();
        }
        Arc::clone(&known)
    }

    /// Returns the window around `now`, searched again.
    pub(in crate::limit) fn find_or_even(&self, now: u64) -> Period {
        self.find(now).unwrap_or_else(|| Period::even(now, self.unit))
    }

    /// Returns the window; `None` beyond the years of the calendar (-9999 to 9999).
    fn find(&self, now: u64) -> Option<Period> {
        let now = Timestamp::from_second(i64::try_from(now).ok()?).ok()?;
        match self.unit {
            Unit::Second | Unit::Minute | Unit::Hour => self.find_by_clock(now),
            Unit::Day | Unit::Week | Unit::Month => self.find_by_date(now),
        }
    }

    /// Finds windows of an hour or less, which begin by the wall clock, and at every change of its offset.
    fn find_by_clock(&self, now: Timestamp) -> Option<Period> {
        let zone = &self.zone.zone;
        let length = i64::try_from(self.unit.secs()).ok()?;
        let offset = i64::from(zone.to_offset(now).seconds());
        let start = (now.as_second() + offset).div_euclid(length) * length - offset;
        let end = start + length;
        // `preceding` is strict, but a change at this very moment counts.
        let before = zone.preceding(now.checked_add(1.second()).ok()?).next();
        let after = zone.following(now).next();
        Period::new(
            before.map_or(start, |change| start.max(change.timestamp().as_second())),
            after.map_or(end, |change| end.min(change.timestamp().as_second())),
        )
    }

    /// Finds windows of a day or more, which begin with the first moment of their first date.
    fn find_by_date(&self, now: Timestamp) -> Option<Period> {
        let mut first = self.first_date(now.to_zoned_datetime(self.zone.zone.clone()).date())?;
        let mut start = self.midnight(first)?;
        loop {
            let next = self.next_date(first)?;
            let end = self.midnight(next)?;
            if now < end {
                return Period::new(start.as_second(), end.as_second());
            }
            // If the clock is set back across midnight, the finished day does not return.
            (first, start) = (next, end);
        }
    }

    fn first_date(&self, date: Date) -> Option<Date> {
        match self.unit {
            Unit::Week => {
                let since_monday = i64::from(date.weekday().to_monday_zero_offset());
                date.checked_sub(since_monday.days()).ok()
            }
            Unit::Month => Some(date.first_of_month()),
            _ => Some(date),
        }
    }

    fn next_date(&self, first: Date) -> Option<Date> {
        let span = match self.unit {
            Unit::Week => 1.week(),
            Unit::Month => 1.month(),
            _ => 1.day(),
        };
        first.checked_add(span).ok()
    }

    /// Returns the first moment of `date`, which is not midnight where clocks are set forward at midnight.
    fn midnight(&self, date: Date) -> Option<Timestamp> {
        Some(date.to_zoned_datetime(self.zone.zone.clone()).ok()?.start_of_day().ok()?.timestamp())
    }
}

/// A window of time, in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) struct Period {
    /// The first second.
    pub(in crate::limit) start: u64,
    /// The first second after the window.
    pub(in crate::limit) end: u64,
}

impl Period {
    fn new(start: i64, end: i64) -> Option<Self> {
        // A window that began before 1970 is cut there.
        Some(Self { start: u64::try_from(start.max(0)).ok()?, end: u64::try_from(end).ok()? })
    }

    /// Returns a window aligned to the epoch, for years outside the calendar.
    fn even(now: u64, unit: Unit) -> Self {
        let start = now - now % unit.secs();
        Self { start, end: start.saturating_add(unit.secs()) }
    }

    /// Packs the window into one word, so that reads are atomic: the end in 40 bits (34 000 years), the length in 24 (194 days).
    fn pack(self) -> u64 {
        (self.end << LENGTH_BITS) | ((self.end - self.start) & LENGTH_MASK)
    }

    fn unpack(word: u64) -> Self {
        let end = word >> LENGTH_BITS;
        Self { start: end - (word & LENGTH_MASK), end }
    }
}

const LENGTH_BITS: u32 = 24;
const LENGTH_MASK: u64 = (1 << LENGTH_BITS) - 1;

#[cfg(test)]
mod tests {
    use jiff::tz;
    use jiff::{ToSpan, Unit as Round, ZonedDateTime, ZonedDateTimeRound};
    use proptest::prelude::*;

    use super::*;
    use crate::limit::UnknownZone;

    #[test]
    fn a_day_ends_at_midnight_however_long_it_was() {
        let days = calendar("Europe/Berlin", Unit::Day);

        assert_eq!(hours(&days, "2025-03-29T12:00+01"), 24);
        assert_eq!(hours(&days, "2025-03-30T12:00+02"), 23);
        assert_eq!(hours(&days, "2025-10-26T12:00+01"), 25);
        assert_eq!(around(&days, "2025-07-01T12:00+02").start, second("2025-07-01T00:00+02"));
    }

    #[test]
    fn a_month_ends_with_its_last_day() {
        let months = calendar("UTC", Unit::Month);

        assert_eq!(hours(&months, "2025-02-14T00:00Z"), 28 * 24);
        assert_eq!(hours(&months, "2024-02-29T23:59Z"), 29 * 24);
        assert_eq!(hours(&months, "2025-12-31T23:59Z"), 31 * 24);
        assert_eq!(around(&months, "2025-12-31T23:59Z").start, second("2025-12-01T00:00Z"));
    }

    #[test]
    fn a_week_begins_on_monday() {
        let weeks = calendar("America/New_York", Unit::Week);
        let week = around(&weeks, "2025-01-05T23:59-05");

        assert_eq!(week.start, second("2024-12-30T00:00-05"));
        assert_eq!(week.end, second("2025-01-06T00:00-05"));
    }

    #[test]
    fn an_hour_begins_by_the_wall_clock() {
        let hours = calendar("Asia/Kathmandu", Unit::Hour);
        assert_eq!(
            around(&hours, "2025-01-01T10:20+05:45").start,
            second("2025-01-01T10:00+05:45")
        );

        // Set back by an hour: two hours have one name, and each counts.
        let hours = calendar("Europe/Berlin", Unit::Hour);
        assert_eq!(around(&hours, "2025-10-26T02:30+02").end, second("2025-10-26T02:00+01"));
        assert_eq!(around(&hours, "2025-10-26T02:30+01").end, second("2025-10-26T03:00+01"));

        // Set back by half an hour: the second half of the hour is a window of its own.
        let hours = calendar("Australia/Lord_Howe", Unit::Hour);
        let again = around(&hours, "2025-04-06T01:45+10:30");
        assert_eq!(again.start, second("2025-04-06T02:00+11"));
        assert_eq!(again.end, second("2025-04-06T02:00+10:30"));
    }

    #[test]
    fn a_skipped_day_is_no_window() {
        let days = calendar("Pacific/Apia", Unit::Day);
        let before = around(&days, "2011-12-29T12:00-10");

        assert_eq!(before.end, second("2011-12-31T00:00+14"));
    }

    #[test]
    fn a_finished_day_does_not_return() {
        // At a minute past midnight the clocks were set back to the evening before.
        let days = calendar("America/St_Johns", Unit::Day);
        let night = around(&days, "2010-11-06T23:30-03:30");

        assert_eq!(night.start, second("2010-11-07T00:00-02:30"));
        assert_eq!(night.end, second("2010-11-08T00:00-03:30"));
    }

    #[test]
    fn an_unknown_zone_is_refused() {
        assert_eq!(Zone::named("Europe/Bielefeld"), Err(UnknownZone));
        assert_eq!(Zone::named("europe/berlin").unwrap().name(), "Europe/Berlin");
    }

    #[test]
    fn beyond_the_calendar_windows_are_even() {
        let months = calendar("Europe/Berlin", Unit::Month);
        let now = 400_000_000_000;
        let period = months.around(now);

        assert!(period.start <= now && now < period.end);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn windows_follow_each_other_without_gap_or_overlap(
            zone in any_zone(),
            unit in any_unit(),
            now in 0_u64..4_102_444_800,
        ) {
            let calendar = Calendar::new(zone.clone(), unit);
            let period = calendar.around(now);

            prop_assert!(period.start <= now && now < period.end, "{period:?}");
            let fresh = || Calendar::new(zone.clone(), unit);
            prop_assert_eq!(fresh().around(period.start), period);
            prop_assert_eq!(fresh().around(period.end - 1), period);
            prop_assert_eq!(fresh().around(period.end).start, period.end);
            prop_assert_eq!(Period::unpack(period.pack()), period);
            // Distinguishes a clock that stepped back from one that was years ahead.
            let next = fresh().around(period.end);
            let latest = period.end + 2 * (period.end - period.start);
            prop_assert!(next.end <= latest || may_be_cut(unit), "{period:?}, then {next:?}");
        }

        #[test]
        fn windows_begin_where_jiff_computes_them(
            zone in any_zone(),
            unit in any_unit(),
            now in 86_400 * 32..4_102_444_800_i64,
        ) {
            let period = Calendar::new(zone.clone(), unit).around(now.cast_unsigned());
            let now = Timestamp::from_second(now).unwrap();
            let at = now.to_zoned_datetime(zone.zone.clone());
            let start = begin(&at, unit);
            // Windows with a change of the clock inside are covered by the examples above.
            let earlier = start.timestamp().checked_sub(90_000.seconds()).unwrap();
            let later = period.end.cast_signed() + 90_000;
            let change = zone.zone.following(earlier).next();
            prop_assume!(change.is_none_or(|change| change.timestamp().as_second() > later));

            prop_assert_eq!(period.start.cast_signed(), start.timestamp().as_second());
        }
    }

    /// Computes the begin by other means than the code under test.
    fn begin(at: &ZonedDateTime, unit: Unit) -> ZonedDateTime {
        let floor = |unit| {
            at.round(ZonedDateTimeRound::new().smallest(unit).mode(jiff::RoundMode::Floor)).unwrap()
        };
        match unit {
            Unit::Second => floor(Round::Second),
            Unit::Minute => floor(Round::Minute),
            Unit::Hour => floor(Round::Hour),
            Unit::Day => at.start_of_day().unwrap(),
            Unit::Week => {
                let day = at.start_of_day().unwrap();
                day.checked_sub(i64::from(day.weekday().to_monday_zero_offset()).days()).unwrap()
            }
            Unit::Month => at.first_of_month().unwrap().start_of_day().unwrap(),
        }
    }

    /// Whether a change of the clock can cut windows of this unit to minutes; the next one is then much longer.
    fn may_be_cut(unit: Unit) -> bool {
        matches!(unit, Unit::Second | Unit::Minute | Unit::Hour)
    }

    fn any_zone() -> impl Strategy<Value = Zone> {
        let names: Vec<String> =
            tz::db().available().map(|name| name.as_str().to_owned()).collect();
        assert!(names.len() > 400, "the database is compiled in");
        prop::sample::select(names).prop_map(|name| Zone::named(&name).unwrap())
    }

    fn any_unit() -> impl Strategy<Value = Unit> {
        prop::sample::select(vec![
            Unit::Second,
            Unit::Minute,
            Unit::Hour,
            Unit::Day,
            Unit::Week,
            Unit::Month,
        ])
    }

    fn calendar(zone: &str, unit: Unit) -> Calendar {
        Calendar::new(Zone::named(zone).unwrap(), unit)
    }

    fn around(calendar: &Calendar, time: &str) -> Period {
        calendar.around(second(time))
    }

    fn hours(calendar: &Calendar, time: &str) -> u64 {
        let period = around(calendar, time);
        (period.end - period.start) / 3_600
    }

    fn second(time: &str) -> u64 {
        time.parse::<Timestamp>().unwrap().as_second() as u64
    }
}
