//! Quotas against a model in plain arithmetic, while clocks step, days are shorter or longer, and the file changes.

use std::collections::HashMap;

use jiff::ToSpan;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The model is a number of used requests for each kind of window and client, and the end of that window.
    #[test]
    fn quotas_agree_with_a_model_whatever_clocks_and_the_file_do(
        begin in prop::sample::select(vec![SPRING, AUTUMN]),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let desk = Desk::default();
        let (mut calendar, mut uptime) = (begin, 1_000);
        let mut file = File { form: 0, count: 2, trial: 1 };
        let mut route = file.route(&desk);
        let mut used: HashMap<(usize, usize), Used> = HashMap::new();
        let mut tried = Used::default();
        for step in steps {
            let (client, gap) = match step {
                Step::Request(client, gap) => (client, gap),
                Step::SetCalendar(by) => {
                    calendar = calendar.saturating_add_signed(by);
                    continue;
                }
                Step::Reload(next) => {
                    file = next;
                    route = file.route(&desk);
                    continue;
                }
            };
            (calendar, uptime) = (calendar + gap, uptime + gap);
            let time = if file.form == FLEXI { uptime } else { calendar };
            let counter = used.entry((file.form, client)).or_default();
            counter.pass(time, file.form);
            tried.pass(calendar, 0);
            let admitted = counter.used < file.count;
            let fails_trial = tried.used >= file.trial;
            counter.used += u64::from(admitted);
            tried.used += u64::from(admitted && !fails_trial);
            let left = file.count.saturating_sub(counter.used);

            let caller = Caller::named(["a", "b", "c"][client]);
            let moment =
                Now { now: Timestamp::from_secs(calendar), uptime: Duration::from_secs(uptime) };
            let mut state = LimitState::default();
            let outcome =
                caller.with(|subject| route.after_authorization(subject, moment, &mut state));
            match outcome {
                Ok(()) => prop_assert!(admitted, "{file:?}: {counter:?} at {time}"),
                Err(LimitExceeded::Limited(limited)) => {
                    prop_assert!(!admitted, "{file:?}: {counter:?} at {time}");
                    prop_assert_eq!(limited.retry_after, counter.end - time);
                }
                Err(other) => prop_assert!(false, "{other:?}"),
            }
            let expected = format!(r#""quota";r={left};t={}"#, counter.end - time);
            prop_assert_eq!(fields(&route, &state).0, expected);
            prop_assert_eq!(route.take_dry_run(&mut state).is_some(), fails_trial);
        }
    }

    /// A used-up limit stays used up, whatever keys come.
    #[test]
    fn no_flood_renews_what_is_used_up(
        limit in 1_u64..4,
        requests in prop::collection::vec(0_u8..40, 1..300),
    ) {
        let desk = Desk::default();
        let mut settings = by(quota("daily", limit, Unit::Day), [KeyPart::Claim("key".into())]);
        settings.max_keys = 8;
        let route = desk.route(vec![settings]);
        let from = |key: u8| {
            let caller = Caller { claims: json!({ "key": key }), ..Caller::default() };
            desk.ask(&route, &caller).is_ok()
        };
        for key in 100..104 {
            for _ in 0..limit {
                prop_assert!(from(key));
            }
        }

        for key in requests {
            from(key);
        }

        for key in 100..104 {
            prop_assert!(!from(key), "{key}");
        }
    }
}

/// The settings in the file.
#[derive(Clone, Copy, Debug)]
struct File {
    /// The kind of window, an index.
    form: usize,
    count: u64,
    /// The number of a dry run beside it.
    trial: u64,
}

impl File {
    fn route(self, desk: &Desk) -> RouteLimits {
        let (unit, window) = match self.form {
            FLEXI => (Unit::Hour, Window::Flexi),
            form => (UNITS[form], Window::Calendar(Zone::named(ZONES[form]).unwrap())),
        };
        let kind = Kind::Quota(Quota::new(Rate::new(self.count, unit).unwrap(), window).unwrap());
        let limit = by(Settings::new("quota", kind), [KeyPart::Client]);
        let berlin = Window::Calendar(Zone::named(ZONES[0]).unwrap());
        let kind = Quota::new(Rate::new(self.trial, Unit::Day).unwrap(), berlin).unwrap();
        let trial = by(Settings::new("trial", Kind::Quota(kind)), [KeyPart::Global]);
        desk.route(vec![Settings { dry_run: true, ..trial }, limit])
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A request of a client after this many seconds.
    Request(usize, u64),
    /// The calendar steps by this many seconds, and the monotonic clock does not.
    SetCalendar(i64),
    Reload(File),
}

fn step() -> impl Strategy<Value = Step> {
    let reload = (0..=FLEXI, 1_u64..5, 1_u64..5);
    prop_oneof![
        8 => (0..3_usize, 0_u64..4_000).prop_map(|(client, gap)| Step::Request(client, gap)),
        3 => (0..3_usize, 0_u64..200_000).prop_map(|(client, gap)| Step::Request(client, gap)),
        1 => (-400_000_i64..40_000).prop_map(Step::SetCalendar),
        2 => reload.prop_map(|(form, count, trial)| Step::Reload(File { form, count, trial })),
    ]
}

/// The model of one counter.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    end: u64,
    used: u64,
}

impl Used {
    /// Begins a window if the last one is over, and shortens one that a clock has begun which was far ahead.
    fn pass(&mut self, now: u64, form: usize) {
        let (start, end) = window(now, form);
        if self.end <= now || self.used == 0 {
            *self = Self { end, used: 0 };
        } else if form != FLEXI && self.end > end + 2 * (end - start) {
            self.end = end;
        }
    }
}

/// Returns the window around `now`: of the days that begin in the zone, the last before and the first after.
fn window(now: u64, form: usize) -> (u64, u64) {
    if form == FLEXI {
        return (now, now + 3_600);
    }
    let zone = TimeZone::get(ZONES[form]).unwrap();
    let at = jiff::Timestamp::from_second(now.cast_signed()).unwrap();
    let two_periods = match UNITS[form] {
        Unit::Week => 15.days(),
        Unit::Month => 63.days(),
        _ => 3.days(),
    };
    let mut date = at.to_zoned_datetime(zone.clone()).date().checked_sub(two_periods).unwrap();
    let begins = |date: Date| match UNITS[form] {
        Unit::Week => date.weekday() == jiff::civil::Weekday::Monday,
        Unit::Month => date.day() == 1,
        _ => true,
    };
    let mut start = 0;
    loop {
        date = date.tomorrow().unwrap();
        if !begins(date) {
            continue;
        }
        let first = date.to_zoned_datetime(zone.clone()).unwrap().start_of_day().unwrap();
        let first = first.timestamp().as_second().cast_unsigned();
        if first > now {
            return (start, first);
        }
        start = first;
    }
}

const UNITS: [Unit; 4] = [Unit::Day, Unit::Day, Unit::Week, Unit::Month];
/// The second has its change of the clock at midnight, the third by half an hour.
const ZONES: [&str; 4] =
    ["Europe/Berlin", "America/Santiago", "Australia/Lord_Howe", "Asia/Beirut"];
/// Windows of an hour that begin with a key's first request.
const FLEXI: usize = 4;
/// Some days before clocks are set forward, and back, in most of these zones.
const SPRING: u64 = 1_743_000_000;
const AUTUMN: u64 = 1_761_200_000;
