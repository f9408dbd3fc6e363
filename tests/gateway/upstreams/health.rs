//! Targets are noticed to be dead, or back, without a client's failure where another way exists.

use core::time::Duration;

use super::service::Service;
use crate::support::{Gateway, eventually, ok};
use northgate::base::clock::Clock;

/// An upstream with these targets and further keys, and a public route to it.
pub(super) fn file(targets: &[&Service], more: &str) -> String {
    let urls: Vec<_> = targets.iter().map(|service| service.url()).collect();
    format!(
        "upstreams: {{ a: {{ targets: [{}], {more} }} }}\nroutes: [{{ id: open, path: /**, upstream: a, auth: none }}]\n",
        urls.join(", ")
    )
}

pub(super) fn error(status: u16) -> Vec<u8> {
    format!("HTTP/1.1 {status} Oops\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

const CHECK: &str =
    "health_check: { path: /health, interval: 250ms, healthy_after: 1, unhealthy_after: 1 }";

fn healthy(gateway: &Gateway, service: &Service) -> bool {
    let state = gateway.operator("GET /-/upstreams HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let all: serde_json::Value = serde_json::from_slice(&state.body).expect("JSON");
    let endpoints = all[0]["endpoints"].as_array().expect("a list");
    let own = endpoints.iter().find(|endpoint| endpoint["url"] == service.url());
    own.expect("the target")["healthy"] == true
}

#[test]
fn a_dead_target_is_noticed_before_a_request_fails_on_it() {
    let (dead, alive) = (Service::start(|_| ok("dead")), Service::start(|_| ok("alive")));
    dead.kill();
    let gateway = Gateway::at(
        Clock::system(),
        "",
        &file(&[&dead, &alive], &format!("{CHECK}, retries: {{ attempts: 0 }}")),
    );
    eventually("the dead target is out", || !healthy(&gateway, &dead));

    for _ in 0..20 {
        assert_eq!(gateway.get("/", "").text(), "alive");
    }

    dead.restart();
    eventually("the target is back", || healthy(&gateway, &dead));
    eventually("it receives requests", || gateway.get("/", "").text() == "dead");
}

#[test]
fn an_upstream_with_every_target_out_fails_fast_and_receives_nothing() {
    let sick = |seen: &crate::support::Seen| {
        if seen.target() == "/health" { error(500) } else { ok("served") }
    };
    let (one, other) = (Service::start(sick), Service::start(sick));
    let gateway = Gateway::at(Clock::system(), "", &file(&[&one, &other], CHECK));
    eventually("both are out", || !healthy(&gateway, &one) && !healthy(&gateway, &other));

    let answer = gateway.get("/work", "");

    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    assert_eq!(answer.problem().as_deref(), Some("upstream-unavailable"));
    assert_eq!(one.count("/work") + other.count("/work"), 0);
    eventually("the log names each and its cause", || {
        let log = gateway.log();
        log.contains(&format!("{} is down: health check: status 500", one.url()))
    });
}

#[test]
fn below_the_panic_threshold_health_is_ignored() {
    let service =
        Service::start(|seen| if seen.target() == "/health" { error(500) } else { ok("served") });
    let more = format!("{CHECK}, panic_threshold: 50%");
    let gateway = Gateway::at(Clock::system(), "", &file(&[&service], &more));
    eventually("it is out", || !healthy(&gateway, &service));

    assert_eq!(gateway.get("/", "").text(), "served");
}

#[test]
fn an_unreachable_target_is_used_again_as_soon_as_it_is_back() {
    let service = Service::start(|_| ok("fine"));
    let gateway = Gateway::at(Clock::system(), "", &file(&[&service], ""));
    for _ in 0..3 {
        service.kill();
        assert_eq!(gateway.get("/", "").status, 502, "the first to find out");
        eventually("the target is out", || !healthy(&gateway, &service));
        assert_eq!(gateway.get("/", "").status, 503);

        service.restart();

        assert_eq!(gateway.get("/", "").status, 200);
    }
}

#[test]
fn a_target_that_fails_half_of_its_requests_is_ejected() {
    let flaky = Service::start({
        let count = core::sync::atomic::AtomicUsize::new(0);
        move |_| {
            let n = count.fetch_add(1, core::sync::atomic::Ordering::SeqCst);
            if n.is_multiple_of(2) { ok("fine") } else { error(500) }
        }
    });
    let other = Service::start(|_| ok("fine"));
    let gateway = Gateway::start("", &file(&[&flaky, &other], ""));
    for _ in 0..100 {
        gateway.get("/", "");
    }

    assert!(flaky.count("/") < 30, "{}", flaky.count("/"));
    let healthy =
        format!("northgate_upstream_target_healthy{{upstream=\"a\",target=\"{}\"}}", flaky.url());
    assert_eq!(gateway.metric(&healthy), 0.0);

    gateway.clock.advance(Duration::from_secs(31));
    let before = flaky.count("/");
    for _ in 0..10 {
        gateway.get("/", "");
    }
    assert!(flaky.count("/") > before, "its ejection is over");
}

#[test]
fn a_target_that_has_recovered_starts_slowly() {
    let (one, other) = (Service::start(|_| ok("fine")), Service::start(|_| ok("fine")));
    one.kill();
    let more = format!("{CHECK}, slow_start: 1h, retries: {{ attempts: 0 }}");
    let gateway = Gateway::at(Clock::system(), "", &file(&[&one, &other], &more));
    eventually("it is out", || !healthy(&gateway, &one));
    one.restart();
    eventually("it is back", || healthy(&gateway, &one));

    for _ in 0..100 {
        assert_eq!(gateway.get("/work", "").status, 200);
    }

    let count = one.count("/work");
    assert!((1..35).contains(&count), "{count} of 100");
}

#[test]
fn health_survives_a_reload() {
    let (dead, alive) = (Service::start(|_| ok("dead")), Service::start(|_| ok("alive")));
    dead.kill();
    let text = file(&[&dead, &alive], &format!("{CHECK}, retries: {{ attempts: 0 }}"));
    let gateway = Gateway::at(Clock::system(), "", &text);
    eventually("the dead target is out", || !healthy(&gateway, &dead));

    gateway.reload("", &text.replace("open", "other")).expect("a valid file");

    for _ in 0..20 {
        assert_eq!(gateway.get("/", "").text(), "alive");
    }
    gateway.reload("", &file(&[&dead, &alive], "")).expect("a valid file");
    dead.restart();
    eventually("checks no longer decide", || gateway.get("/", "").text() == "dead");
}
