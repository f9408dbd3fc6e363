//! What a request pays for its limits: one keyed rate, one keyed quota, both, and the fields on the answer.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use divan::Bencher;
use http::{HeaderMap, Method};
use northgate::base::clock::Clock;
use northgate::limit::{
    KeyPart, Kind, LimitKeySource, LimitRegistry, LimitState, Limiter, Now, Quota, Rate,
    RouteLimits, Settings, SpikeArrest, Unit, Window, Zone,
};
use northgate::observe::metrics::Metrics;

fn main() {
    divan::main();
}

/// What a route may ask of its callers.
const ROUTES: [&str; 5] = [
    "one rate",
    "one quota",
    "rate and quota",
    "rate and quota, 10 000 callers in turn",
    "refused",
];

#[divan::bench(args = ROUTES)]
fn ask(bencher: Bencher<'_, '_>, name: &str) {
    let clock = Clock::system();
    let (limits, callers_in_turn) = match name {
        "one rate" => (vec![spike("rate")], 1),
        "one quota" => (vec![daily("quota")], 1),
        "rate and quota" => (vec![spike("spike"), daily("daily")], 1),
        "refused" => (vec![exhausted()], 1),
        _ => (vec![spike("spike"), daily("daily")], 10_000),
    };
    let route = route(limits);
    let headers = HeaderMap::new();
    let mut callers = Callers::new(&headers);
    let moment = Now::of(&clock);
    bencher.bench_local(|| {
        let mut standing = LimitState::default();
        callers.next(callers_in_turn, |subject| {
            let early = route.before_authentication(subject, moment, &mut standing);
            let late = route.after_authorization(subject, moment, &mut standing);
            black_box((early.is_ok(), late.is_ok()));
        });
        black_box(&standing);
    });
}

#[divan::bench]
fn reading_both_clocks(bencher: Bencher<'_, '_>) {
    let clock = Clock::system();
    bencher.bench_local(|| Now::of(black_box(&clock)));
}

#[divan::bench]
fn fields_on_the_answer(bencher: Bencher<'_, '_>) {
    let clock = Clock::system();
    let route = route(vec![spike("spike"), daily("daily")]);
    let mut standing = LimitState::default();
    Callers::new(&HeaderMap::new()).next(1, |subject| {
        _ = route.before_authentication(subject, Now::of(&clock), &mut standing);
        _ = route.after_authorization(subject, Now::of(&clock), &mut standing);
    });
    bencher
        .with_inputs(|| HeaderMap::with_capacity(16))
        .bench_local_refs(|headers| route.write(&standing, headers));
}

fn route(limits: Vec<Settings>) -> RouteLimits {
    let (kept, metrics) = (LimitRegistry::default(), Metrics::new(&[]));
    let limiter = |settings| Arc::new(Limiter::new(settings, &kept, &metrics));
    let limiters: Vec<_> = limits.into_iter().map(limiter).collect();
    RouteLimits::new(&limiters, "orders", &metrics)
}

/// Clients with names and addresses, one after the other.
struct Callers<'a> {
    names: Vec<String>,
    headers: &'a HeaderMap,
    last: usize,
}

impl<'a> Callers<'a> {
    fn new(headers: &'a HeaderMap) -> Self {
        Self { names: (0..10_000).map(|n| format!("client-{n}")).collect(), headers, last: 0 }
    }

    fn next<R>(&mut self, among: usize, ask: impl FnOnce(&LimitKeySource<'_>) -> R) -> R {
        self.last = (self.last + 1) % among;
        ask(&LimitKeySource {
            ip: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + self.last as u32)),
            route: "orders",
            issuer: Some("https://auth.example.com"),
            client: Some(&self.names[self.last]),
            subject: None,
            session: None,
            headers: self.headers,
            claim: &|_| None,
            method: &Method::GET,
            request_size: Some(0),
        })
    }
}

fn spike(name: &str) -> Settings {
    let rate = Rate::new(1_000_000_000, Unit::Second).expect("a rate");
    Settings::new(name, Kind::Rate(SpikeArrest::new(rate, Some(u32::MAX)).expect("a spike arrest")))
}

fn daily(name: &str) -> Settings {
    let rate = Rate::new(999_999_999_999_999, Unit::Day).expect("a rate");
    let quota = Quota::new(rate, Window::Calendar(Zone::utc())).expect("a quota");
    Settings { by: Box::new([KeyPart::Client]), ..Settings::new(name, Kind::Quota(quota)) }
}

fn exhausted() -> Settings {
    let rate = Rate::new(1, Unit::Month).expect("a rate");
    Settings::new("exhausted", Kind::Rate(SpikeArrest::new(rate, None).expect("a spike arrest")))
}
