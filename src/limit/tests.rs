//! Tests of limits through a route's [`RouteLimits`], as clients and operators see them.

mod clocks;
mod models;
mod plans;
mod response_costs;
mod restart;

use core::num::{NonZeroU32, NonZeroU64};
use core::time::Duration;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};

use super::*;
use crate::base::clock::{Clock, Timestamp};
use crate::observe::metrics::Metrics;

#[test]
fn a_second_request_within_one_interval_is_refused_with_the_wait() {
    let desk = Desk::default();
    let route = desk.route(vec![rate("spike", 30, Unit::Minute, None)]);

    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    desk.wait_millis(1_001);
    assert_eq!(desk.ask(&route, &Caller::default()), Err(429));
    assert_eq!(desk.retry_after(&route, &Caller::default()), Some(1));
    desk.wait_millis(999);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
}

#[test]
fn each_client_has_its_own_counter() {
    let desk = Desk::default();
    let route = desk.route(vec![by(quota("daily", 1, Unit::Day), [KeyPart::Client])]);

    assert_eq!(desk.ask(&route, &Caller::named("a")), Ok(()));
    assert_eq!(desk.ask(&route, &Caller::named("b")), Ok(()));
    assert_eq!(desk.ask(&route, &Caller::named("a")), Err(429));
}

#[test]
fn a_refusal_by_one_limit_charges_none() {
    let desk = Desk::default();
    let few = by(quota("few", 1, Unit::Day), [KeyPart::Client]);
    let many = by(quota("many", 10, Unit::Day), [KeyPart::Global]);
    let rate = by(rate("even", 1, Unit::Hour, Some(10)), [KeyPart::Client, KeyPart::Route]);
    let route = desk.route(vec![many, few, rate]);

    assert_eq!(desk.ask(&route, &Caller::named("a")), Ok(()));
    for _ in 0..20 {
        assert_eq!(desk.ask(&route, &Caller::named("a")), Err(429));
    }
    for client in ["b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        assert_eq!(desk.ask(&route, &Caller::named(client)), Ok(()), "{client}");
    }
    assert_eq!(desk.ask(&route, &Caller::named("k")), Err(429));
}

#[test]
fn the_first_refusal_determines_the_response_with_the_longest_wait() {
    let desk = Desk::default();
    let mut slow = quota("hourly", 1, Unit::Hour);
    slow.status = Status::ServiceUnavailable;
    let quick = by(rate("spike", 1, Unit::Minute, None), [KeyPart::Client]);

    for (limits, status, name) in
        [(vec![slow.clone(), quick.clone()], 503, "hourly"), (vec![quick, slow], 429, "spike")]
    {
        let desk = Desk { clock: desk.clock.clone(), ..Desk::default() };
        let route = desk.route(limits);
        assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
        let Err(LimitExceeded::Limited(limited)) = desk.check(&route, &Caller::default()).0 else {
            panic!("refused by a limit")
        };
        assert_eq!(limited.status.as_u16(), status);
        assert_eq!(route.name(&limited), name);
        assert_eq!(limited.retry_after, 3_600);
    }
}

#[test]
fn a_limit_named_twice_counts_once() {
    let desk = Desk::default();
    let limiter = desk.limiter(quota("daily", 2, Unit::Day));
    let route = RouteLimits::new(&[Arc::clone(&limiter), limiter], "orders", &desk.metrics);

    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    assert_eq!(desk.ask(&route, &Caller::default()), Err(429));
}

#[test]
fn only_rates_that_need_no_caller_run_before_authentication() {
    let desk = Desk::default();
    let route = desk.route(vec![rate("spike", 1, Unit::Hour, None), quota("daily", 1, Unit::Day)]);
    let mut standing = LimitState::default();

    let early = |standing: &mut LimitState| {
        Caller::default()
            .with(|subject| route.before_authentication(subject, Now::of(&desk.clock), standing))
    };
    assert_eq!(early(&mut standing), Ok(()));
    assert!(early(&mut standing).is_err(), "the spike arrest has counted");
    let late = Caller::default()
        .with(|subject| route.after_authorization(subject, Now::of(&desk.clock), &mut standing));
    assert_eq!(late, Ok(()), "the quota has not");
}

#[test]
fn a_request_without_a_key_is_refused_or_skipped_as_configured() {
    let desk = Desk::default();
    let missing = |on_missing| {
        let mut settings = by(quota("daily", 1, Unit::Day), [KeyPart::Client]);
        settings.on_missing = on_missing;
        desk.route(vec![settings])
    };

    let reject = missing(OnMissing::Reject);
    assert_eq!(desk.check(&reject, &Caller::default()).0, Err(LimitExceeded::KeyMissing));
    let skip = missing(OnMissing::Skip);
    (0..5).for_each(|_| assert_eq!(desk.ask(&skip, &Caller::default()), Ok(())));
    assert_eq!(desk.ask(&skip, &Caller::named("a")), Ok(()));
    assert_eq!(desk.ask(&skip, &Caller::named("a")), Err(429));
}

#[test]
fn only_configured_methods_are_counted() {
    let desk = Desk::default();
    let mut settings = quota("writes", 1, Unit::Day);
    settings.methods = Some(Box::new([Method::POST]));
    let route = desk.route(vec![settings]);

    let post = Caller { method: Method::POST, ..Caller::default() };
    assert_eq!(desk.ask(&route, &post), Ok(()));
    assert_eq!(desk.ask(&route, &post), Err(429));
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
}

#[test]
fn a_calendar_quota_is_renewed_at_midnight_of_its_time_zone() {
    let desk = Desk::at("2025-03-29T22:59:00Z");
    let rate = Rate::new(1, Unit::Day).unwrap();
    let berlin = Window::Calendar(Zone::named("Europe/Berlin").unwrap());
    let quota = Quota::new(rate, berlin).unwrap();
    let route = desk.route(vec![Settings::new("daily", Kind::Quota(quota))]);

    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    assert_eq!(desk.retry_after(&route, &Caller::default()), Some(60));
    desk.wait_millis(60_000);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    // Clocks are set forward that night: the day has 23 hours.
    assert_eq!(desk.retry_after(&route, &Caller::default()), Some(23 * 3_600));
}

#[test]
fn a_flexi_quota_begins_with_the_first_request() {
    let desk = Desk::at("2025-03-29T22:59:00Z");
    let quota = Quota::new(Rate::new(2, Unit::Hour).unwrap(), Window::Flexi).unwrap();
    let route = desk.route(vec![Settings::new("hourly", Kind::Quota(quota))]);

    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    desk.wait_millis(1_800_000);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    assert_eq!(desk.retry_after(&route, &Caller::default()), Some(1_800));
    desk.wait_millis(1_800_000);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
}

#[test]
fn a_rolling_quota_is_renewed_evenly() {
    let desk = Desk::default();
    let quota = Quota::new(Rate::new(60, Unit::Hour).unwrap(), Window::Rolling).unwrap();
    let route = desk.route(vec![Settings::new("hourly", Kind::Quota(quota))]);

    (0..60).for_each(|_| assert_eq!(desk.ask(&route, &Caller::default()), Ok(())));
    assert_eq!(desk.retry_after(&route, &Caller::default()), Some(60));
    desk.wait_millis(120_000);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
    assert_eq!(desk.ask(&route, &Caller::default()), Err(429));
}

#[test]
fn requests_in_flight_are_released_when_they_end() {
    let desk = Desk::default();
    let route = desk.route(vec![concurrency("slots", 2), quota("daily", 4, Unit::Day)]);

    let (first, held) = desk.check(&route, &Caller::default());
    let (second, _held) = desk.check(&route, &Caller::default());
    assert_eq!((first, second), (Ok(()), Ok(())));
    assert_eq!(desk.ask(&route, &Caller::default()), Err(429));
    assert_eq!(desk.ask(&route, &Caller { ip: "192.0.2.9", ..Caller::default() }), Ok(()));

    drop(held);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
}

#[test]
fn a_request_refused_by_another_limit_is_not_in_flight() {
    let desk = Desk::default();
    let route = desk.route(vec![concurrency("slots", 1), quota("daily", 1, Unit::Day)]);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));

    let (_, standing) = desk.check(&route, &Caller::default());
    assert_eq!(fields(&route, &standing).0, r#""slots";r=1, "daily";r=0;t=82800"#);
}

#[test]
fn a_body_of_unknown_size_is_charged_as_it_arrives() {
    let desk = Desk::default();
    let mut settings = quota("kilobytes", 10, Unit::Day);
    settings.cost = Cost::RequestSize(NonZeroU64::new(1_000).unwrap());
    let route = desk.route(vec![settings]);
    let chunked = Caller { request_size: None, ..Caller::default() };

    let (admitted, mut standing) = desk.check(&route, &chunked);
    assert_eq!(admitted, Ok(()));
    let mut content = standing.content_charge().expect("bytes are counted");
    assert!(standing.content_charge().is_none(), "once");
    for _ in 0..85 {
        assert_eq!(desk.charge(&mut content, 100), Ok(()));
    }

    let two = Caller { request_size: Some(1_001), ..Caller::default() };
    let (refusal, standing) = desk.check(&route, &two);
    assert!(refusal.is_err(), "nine of ten are used");
    assert_eq!(fields(&route, &standing).0, r#""kilobytes";r=1;t=82800"#);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
}

#[test]
fn a_body_that_turns_out_too_large_costs_no_request() {
    let desk = Desk::default();
    let mut bytes = quota("bytes", 100_000, Unit::Day);
    bytes.cost = Cost::RequestSize(NonZeroU64::MIN);
    let even = rate("even", 1, Unit::Hour, None);
    let rolling = Quota::new(Rate::new(2, Unit::Day).unwrap(), Window::Rolling).unwrap();
    let rolling = Settings::new("rolling", Kind::Quota(rolling));
    let even = Settings { methods: Some(Box::new([Method::GET])), ..even };
    let limits = vec![bytes, quota("requests", 1, Unit::Day), rolling];
    let route = desk.route(limits);
    let chunked = Caller { request_size: None, ..Caller::default() };
    for _ in 0..3 {
        let (admitted, mut standing) = desk.check(&route, &chunked);
        assert_eq!(admitted, Ok(()));
        let mut content = standing.content_charge().expect("its size is unknown");
        assert_eq!(desk.charge(&mut content, 5_000), Ok(()));

        content.refund(Now::of(&desk.clock));
    }

    let (_, standing) = desk.check(&route, &Caller::default());
    let left = fields(&route, &standing).0;
    let expected = r#""bytes";r=84999;t=82800, "requests";r=0;t=82800, "rolling";r=1;t=43200"#;
    assert_eq!(left, expected, "the upstream has received 15 000 bytes");

    let route = desk.route(vec![even]);
    let (_, mut standing) = desk.check(&route, &chunked);
    standing.content_charge().expect("its size is unknown").refund(Now::of(&desk.clock));
    assert_eq!(desk.ask(&route, &chunked), Err(429), "a rate protects the upstream");
}

#[test]
fn a_body_ends_with_the_quota_however_many_come_at_once() {
    for window in [Window::Rolling, Window::Flexi] {
        let desk = Desk::default();
        let bought = Quota::new(Rate::new(10_000, Unit::Day).unwrap(), window.clone()).unwrap();
        let mut bytes = Settings::new("bytes", Kind::Quota(bought));
        bytes.cost = Cost::RequestSize(NonZeroU64::new(1).unwrap());
        let route = desk.route(vec![bytes, quota("other", 1_000, Unit::Day)]);
        let chunked = Caller { request_size: None, ..Caller::default() };
        let mut charges: Vec<_> = (0..100)
            .map(|_| desk.check(&route, &chunked).1.content_charge().expect("bytes are counted"))
            .collect();

        let (mut passed, mut refused) = (0, 0);
        for _ in 0..10 {
            for content in &mut charges {
                match desk.charge(content, 64) {
                    Ok(()) => passed += 64,
                    Err(_) => refused += 1,
                }
            }
        }

        assert!(passed <= 10_000 && passed > 9_000, "{passed} of {window:?}");
        assert!(refused > 800);
    }
}

#[test]
fn a_heavy_request_passes_an_open_rate_and_blocks_for_its_weight() {
    let desk = Desk::default();
    let mut settings = rate("kilobytes", 30, Unit::Minute, None);
    settings.cost = Cost::RequestSize(NonZeroU64::new(1_000).unwrap());
    let route = desk.route(vec![settings]);

    let heavy = Caller { request_size: Some(3_000), ..Caller::default() };
    assert_eq!(desk.ask(&route, &heavy), Ok(()));
    assert_eq!(desk.retry_after(&route, &Caller::default()), Some(6));
    desk.wait_millis(6_000);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));
}

#[test]
fn responses_have_the_policy_and_the_remaining_allowance() {
    let desk = Desk::at("2025-06-01T12:00:00.5Z");
    let route = desk.route(vec![
        rate("spike", 100, Unit::Second, None),
        quota("daily", 10_000, Unit::Day),
        concurrency("slots", 5),
    ]);
    let (_, standing) = desk.check(&route, &Caller::default());

    let (standing, policy) = fields(&route, &standing);
    assert_eq!(standing, r#""spike";r=9;t=1, "daily";r=9999;t=43200, "slots";r=4"#);
    assert_eq!(
        policy,
        r#""spike";q=100;w=1, "daily";q=10000;w=86400, "slots";q=5;qu="concurrent-requests""#
    );
}

#[test]
fn a_refusal_has_no_remaining_allowance_and_the_wait() {
    let desk = Desk::at("2025-06-01T23:59:18.5Z");
    let route = desk.route(vec![quota("daily", 1, Unit::Day)]);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));

    let (refusal, standing) = desk.check(&route, &Caller::default());
    let Err(LimitExceeded::Limited(limited)) = refusal else { panic!("refused by a limit") };
    assert_eq!(limited.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(limited.retry_after_value().unwrap(), "42");
    assert_eq!(fields(&route, &standing).0, r#""daily";r=0;t=42"#);
}

#[test]
fn a_limit_without_headers_refuses_without_fields() {
    let desk = Desk::default();
    let mut settings = quota("daily", 1, Unit::Day);
    settings.headers = false;
    let route = desk.route(vec![settings]);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));

    let (refusal, standing) = desk.check(&route, &Caller::default());
    let Err(LimitExceeded::Limited(limited)) = refusal else { panic!("refused by a limit") };
    assert_eq!(limited.retry_after_value(), None);
    let mut headers = HeaderMap::new();
    route.write(&standing, &mut headers);
    assert!(headers.is_empty());
}

#[test]
fn the_longest_line_of_fields_fits() {
    let desk = Desk::default();
    let name = |n: usize| format!("{}{n}", "n".repeat(62));
    let limits = (0..20).map(|n| quota(&name(n), 999_999_999_999_999, Unit::Month));
    let route = desk.route(limits.collect());
    let (admitted, standing) = desk.check(&route, &Caller::default());

    assert_eq!(admitted, Ok(()));
    let (standing, policy) = fields(&route, &standing);
    assert_eq!(standing.matches("r=999999999999998").count(), 8);
    assert_eq!(policy.matches("q=").count(), 8);
}

#[test]
fn counts_survive_a_reload_that_changes_everything_else() {
    let desk = Desk::default();
    let before = desk.route(vec![quota("daily", 1, Unit::Day)]);
    assert_eq!(desk.ask(&before, &Caller::default()), Ok(()));

    let mut settings = quota("daily", 1, Unit::Day);
    settings.status = Status::ServiceUnavailable;
    settings.max_keys = 7;
    let after = desk.route(vec![settings]);
    drop(before);
    assert_eq!(desk.ask(&after, &Caller::default()), Err(503));

    let more = desk.route(vec![quota("daily", 2, Unit::Day)]);
    assert_eq!(desk.ask(&more, &Caller::default()), Ok(()), "one more was bought");
    assert_eq!(desk.ask(&more, &Caller::default()), Err(429));
    let less = desk.route(vec![quota("daily", 1, Unit::Day)]);
    assert_eq!(desk.ask(&less, &Caller::default()), Err(429), "two are used of one");
}

#[test]
fn a_limit_that_is_away_for_a_while_finds_its_counts() {
    let desk = Desk::default();
    let route = desk.route(vec![quota("daily", 1, Unit::Day)]);
    assert_eq!(desk.ask(&route, &Caller::default()), Ok(()));

    drop(route);
    let other = desk.route(vec![quota("renamed", 1, Unit::Day)]);
    assert_eq!(desk.ask(&other, &Caller::default()), Ok(()));
    (0..100).for_each(|_| desk.registry.sweep(Now::of(&desk.clock)));
    let back = desk.route(vec![quota("daily", 1, Unit::Day)]);
    assert_eq!(desk.ask(&back, &Caller::default()), Err(429));

    drop(back);
    desk.wait_millis(86_400_000);
    desk.registry.sweep(Now::of(&desk.clock));
    assert!(!desk.metrics.render().contains(r#"northgate_limit_keys{limit="daily"}"#), "forgotten");
}

#[test]
fn content_that_never_fits_is_refused_as_too_large_and_charges_none() {
    let desk = Desk::default();
    for window in [Window::Rolling, Window::Flexi, Window::Calendar(Zone::utc())] {
        let bought = Quota::new(Rate::new(10, Unit::Day).unwrap(), window.clone()).unwrap();
        let mut bytes = Settings::new("bytes", Kind::Quota(bought));
        bytes.cost = Cost::RequestSize(NonZeroU64::new(100).unwrap());
        let route = desk.route(vec![quota("other", 1, Unit::Day), bytes]);
        let sized = |size| Caller { request_size: size, ip: "192.0.2.77", ..Caller::default() };

        assert_eq!(desk.ask(&route, &sized(Some(1_001))), Err(413), "{window:?}");
        let (admitted, mut standing) = desk.check(&route, &sized(None));
        assert_eq!(admitted, Ok(()), "nothing was charged");
        let mut content = standing.content_charge().expect("bytes are counted");
        assert_eq!(desk.charge(&mut content, 900), Ok(()));
        let never = desk.charge(&mut content, 101);
        assert_eq!(never, Err(LimitExceeded::TooLarge), "{window:?}");
        desk.wait_millis(2 * 86_400_000);
    }
}

#[test]
fn a_flood_of_keys_shares_one_counter_and_is_swept() {
    let desk = Desk::default();
    let mut settings = rate("spike", 1, Unit::Minute, None);
    settings.max_keys = 3;
    let route = desk.route(vec![settings]);
    let from = |ip| desk.ask(&route, &Caller { ip, ..Caller::default() });

    for ip in ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"] {
        assert_eq!(from(ip), Ok(()), "{ip}");
    }
    assert_eq!(from("192.0.2.5"), Err(429), "shares with 192.0.2.4");
    let seen = desk.metrics.render();
    assert!(seen.contains(r#"northgate_limit_keys{limit="spike"} 3"#), "{seen}");
    assert!(seen.contains(&decisions("overflow", 1)), "{seen}");
    assert!(seen.contains(&decisions("allowed", 3)), "{seen}");
    assert!(seen.contains(&decisions("limited", 1)), "{seen}");

    desk.wait_millis(60_000);
    desk.registry.sweep(Now::of(&desk.clock));
    assert!(desk.metrics.render().contains(r#"northgate_limit_keys{limit="spike"} 0"#));
    assert_eq!(from("192.0.2.5"), Ok(()));
}

/// A test bench: a clock that stands still, and the state that outlives a reload.
struct Desk {
    clock: Clock,
    registry: LimitRegistry,
    metrics: Metrics,
}

impl Default for Desk {
    fn default() -> Self {
        Self::at("2025-06-01T01:00:00Z")
    }
}

impl Desk {
    fn at(time: &str) -> Self {
        let time: jiff::Timestamp = time.parse().unwrap();
        let clock = Clock::manual(Timestamp::from_nanos(time.as_nanosecond() as u64));
        Self { clock, registry: LimitRegistry::default(), metrics: Metrics::new(&[]) }
    }

    fn limiter(&self, settings: Settings) -> Arc<Limiter> {
        assert_eq!(settings.check(), Ok(()));
        Arc::new(Limiter::new(settings, &self.registry, &self.metrics))
    }

    fn route(&self, limits: Vec<Settings>) -> RouteLimits {
        let limiters: Vec<_> = limits.into_iter().map(|limit| self.limiter(limit)).collect();
        RouteLimits::new(&limiters, "orders", &self.metrics)
    }

    fn charge(&self, content: &mut ContentCharge, bytes: u64) -> Result<(), LimitExceeded> {
        match content.decide(bytes, Now::of(&self.clock)) {
            Decision::Made(made) => made,
            Decision::Ask(_) => unreachable!("no limit is shared"),
        }
    }

    fn wait_millis(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
    }

    fn check(
        &self,
        route: &RouteLimits,
        caller: &Caller,
    ) -> (Result<(), LimitExceeded>, LimitState) {
        let mut standing = LimitState::default();
        let moment = Now::of(&self.clock);
        let outcome = caller.with(|subject| {
            route.before_authentication(subject, moment, &mut standing)?;
            route.after_authorization(subject, moment, &mut standing)
        });
        (outcome, standing)
    }

    /// Checks a request that ends at once; a refusal is its status.
    fn ask(&self, route: &RouteLimits, caller: &Caller) -> Result<(), u16> {
        self.check(route, caller).0.map_err(|refusal| match refusal {
            LimitExceeded::Limited(limited) => limited.status.as_u16(),
            LimitExceeded::KeyMissing | LimitExceeded::KeyAmbiguous => 400,
            LimitExceeded::TooLarge => 413,
            LimitExceeded::NoPlan => 403,
        })
    }

    fn retry_after(&self, route: &RouteLimits, caller: &Caller) -> Option<u64> {
        match self.check(route, caller).0 {
            Err(LimitExceeded::Limited(limited)) => Some(limited.retry_after),
            _ => None,
        }
    }
}

/// Returns `RateLimit` and `RateLimit-Policy`.
fn fields(route: &RouteLimits, standing: &LimitState) -> (String, String) {
    let mut headers = HeaderMap::new();
    route.write(standing, &mut headers);
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    (text("ratelimit"), text("ratelimit-policy"))
}

struct Caller {
    ip: &'static str,
    client: Option<&'static str>,
    method: Method,
    request_size: Option<u64>,
    claims: Value,
}

impl Default for Caller {
    fn default() -> Self {
        Self {
            ip: "192.0.2.1",
            client: None,
            method: Method::GET,
            request_size: Some(0),
            claims: json!({}),
        }
    }
}

impl Caller {
    fn named(client: &'static str) -> Self {
        Self { client: Some(client), ..Self::default() }
    }

    fn with<R>(&self, ask: impl FnOnce(&LimitKeySource<'_>) -> R) -> R {
        ask(&LimitKeySource {
            ip: self.ip.parse().unwrap(),
            route: "orders",
            issuer: self.client.map(|_| "https://issuer.example"),
            client: self.client,
            subject: None,
            session: None,
            headers: &HeaderMap::new(),
            claim: &|path| self.claims.get(path),
            method: &self.method,
            request_size: self.request_size,
        })
    }
}

fn rate(name: &str, count: u64, unit: Unit, burst: Option<u32>) -> Settings {
    let spike = SpikeArrest::new(Rate::new(count, unit).unwrap(), burst).unwrap();
    Settings::new(name, Kind::Rate(spike))
}

fn quota(name: &str, count: u64, unit: Unit) -> Settings {
    let window = Window::Calendar(Zone::utc());
    Settings::new(name, Kind::Quota(Quota::new(Rate::new(count, unit).unwrap(), window).unwrap()))
}

fn concurrency(name: &str, slots: u32) -> Settings {
    Settings::new(name, Kind::Concurrency(NonZeroU32::new(slots).unwrap()))
}

fn by(settings: Settings, parts: impl Into<Vec<KeyPart>>) -> Settings {
    Settings { by: parts.into().into(), ..settings }
}

fn decisions(result: &str, count: u64) -> String {
    format!(
        r#"northgate_limit_decisions_total{{limit="spike",route="orders",result="{result}"}} {count}"#
    )
}
