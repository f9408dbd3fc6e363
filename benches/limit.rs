//! What a request pays for its limits: one keyed rate, one keyed quota, both, and the fields on the answer.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use northgate::base::clock::Clock;
use northgate::limit::{
    KeyPart, Kind, LimitKeySource, LimitRegistry, LimitState, Limiter, Now, Quota, Rate,
    RouteLimits, Settings, SpikeArrest, Unit, Window, Zone,
};
use northgate::observe::metrics::Metrics;

fn limits(c: &mut Criterion) {
    let clock = Clock::system();
    let (kept, metrics) = (LimitRegistry::default(), Metrics::new(&[]));
    let route = |limits: Vec<Settings>| {
        let limiter = |settings| Arc::new(Limiter::new(settings, &kept, &metrics));
        let limiters: Vec<_> = limits.into_iter().map(limiter).collect();
        RouteLimits::new(&limiters, "orders", &metrics)
    };
    let both = route(vec![spike("spike"), daily("daily")]);
    let one_rate = route(vec![spike("rate")]);
    let one_quota = route(vec![daily("quota")]);
    let refusing = route(vec![exhausted()]);
    let headers = HeaderMap::new();
    let mut callers = Callers::new(&headers);

    let mut group = c.benchmark_group("limit");
    for (name, route, callers_in_turn) in [
        ("one rate", &one_rate, 1),
        ("one quota", &one_quota, 1),
        ("rate and quota", &both, 1),
        ("rate and quota, 10 000 callers in turn", &both, 10_000),
        ("refused", &refusing, 1),
    ] {
        group.bench_function(name, |b| {
            let moment = Now::of(&clock);
            b.iter(|| {
                let mut standing = LimitState::default();
                callers.next(callers_in_turn, |subject| {
                    let early = route.before_authentication(subject, moment, &mut standing);
                    let late = route.after_authorization(subject, moment, &mut standing);
                    black_box((early.is_ok(), late.is_ok()));
                });
                black_box(&standing);
            });
        });
    }
    group.bench_function("reading both clocks", |b| b.iter(|| Now::of(black_box(&clock))));
    group.bench_function("fields on the answer", |b| {
        let mut standing = LimitState::default();
        callers.next(1, |subject| {
            _ = both.before_authentication(subject, Now::of(&clock), &mut standing);
            _ = both.after_authorization(subject, Now::of(&clock), &mut standing);
        });
        b.iter_batched_ref(
            || HeaderMap::with_capacity(16),
            |headers| both.write(&standing, headers),
            BatchSize::SmallInput,
        );
    });
    group.finish();
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

criterion_group!(benches, limits);
criterion_main!(benches);
