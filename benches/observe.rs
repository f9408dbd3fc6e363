//! What one request pays for being counted and recorded.

use std::hint::black_box;
use std::io;
use std::time::Duration;

use divan::Bencher;
use http::Method;
use northgate::base::clock::{Clock, Timestamp};
use northgate::observe::access_log_entry::AccessLogEntry;
use northgate::observe::log::{Log, Settings};
use northgate::observe::log_format::Format;
use northgate::observe::metrics::{AuthLabel, AuthResult, Metrics};

fn main() {
    divan::main();
}

#[divan::bench]
fn count_a_request_with_a_token(bencher: Bencher<'_, '_>) {
    let metrics = Metrics::default();
    let route = metrics.route("orders");

    bencher.bench_local(|| {
        route.began();
        route.authenticated(AuthLabel::Jwt, AuthResult::Ok);
        let took = black_box(Duration::from_micros(740));
        route.answered(&Method::GET, 200, took, took / 10, 0, 1024);
    });
}

#[divan::bench]
fn record_a_request(bencher: Bencher<'_, '_>) {
    let metrics = Metrics::default();
    let log = Log::to(
        Box::new(io::sink()),
        Format::Json,
        &Settings::default(),
        None,
        Clock::system(),
        &metrics,
    );
    let (log, _) = log.expect("a thread");
    let access = log.access();

    bencher.bench_local(|| {
        if access.wants(black_box(200)) {
            access.record(&record());
        }
    });
}

#[divan::bench]
fn scrape_1000_routes(bencher: Bencher<'_, '_>) {
    let metrics = Metrics::default();
    let routes: Vec<_> = (0..1000).map(|n| metrics.route(&format!("route-{n}"))).collect();
    for route in &routes {
        route.began();
        route.authenticated(AuthLabel::Jwt, AuthResult::Ok);
        route.answered(&Method::GET, 200, Duration::from_millis(1), Duration::ZERO, 0, 1024);
    }

    bencher.bench_local(|| metrics.render().len());
}

fn record() -> AccessLogEntry<'static> {
    AccessLogEntry {
        grpc_status: None,
        time: Timestamp::from_secs(1_700_049_600).plus(Duration::from_micros(250)),
        request_id: "018bd1b0-0000-7000-8000-000000000000",
        client: [192, 0, 2, 7].into(),
        method: "GET",
        path: "/api/orders/17",
        query: Some("page=2"),
        version: http::Version::HTTP_11,
        status: 200,
        request_bytes: 0,
        response_bytes: 1024,
        took: Duration::from_micros(740),
        overhead: Duration::from_micros(41),
        route: "orders",
        upstream: Some("orders"),
        target: Some("10.0.0.11:8080"),
        attempts: 1,
        auth: Some(AuthLabel::Jwt),
        auth_result: Some(AuthResult::Ok),
        issuer: Some("main"),
        subject: Some("alice"),
        client_id: Some("shop"),
        limit: None,
        limit_result: None,
        error: None,
        cause: None,
        fallback: None,
        user_agent: Some("curl/8.5.0"),
        tls: Some("1.3"),
    }
}
