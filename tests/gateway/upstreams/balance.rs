//! Requests are spread as the operator says: by a value, by shares, and as copies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, mpsc};

use super::health::error;
use super::service::Service;
use crate::support::{Gateway, eventually, ok};
use northgate::base::clock::Clock;

fn file(services: &[Service], upstream: &str, route: &str) -> String {
    let urls: Vec<_> = services.iter().map(Service::url).collect();
    format!(
        "upstreams:\n  a: {{ targets: [{}], {upstream} }}\n  b: {{ targets: [{}] }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none, {route} }}]\n",
        urls.join(", "),
        services[0].url(),
    )
}

fn named(name: &'static str) -> Service {
    Service::start(move |_| ok(name))
}

#[test]
fn the_same_value_reaches_the_same_target_until_that_is_gone() {
    let services = ["one", "two", "three"].map(named);
    let text = file(&services, "balance: hash, hash_by: \"header:X-Tenant\"", "");
    let gateway = Gateway::at(Clock::system(), "", &text);
    let ask = |tenant: usize| {
        let answer = gateway.get("/", &format!("X-Tenant: t{tenant}\r\n"));
        assert_eq!(answer.status, 200);
        answer.text().to_owned()
    };
    let before: HashMap<_, _> = (0..60).map(|tenant| (tenant, ask(tenant))).collect();
    assert!((0..60).all(|tenant| ask(tenant) == before[&tenant]));
    for name in ["one", "two", "three"] {
        let count = before.values().filter(|served| *served == name).count();
        assert!((5..40).contains(&count), "{name} has {count}");
    }

    services[0].kill();

    eventually("it is out", || (0..60).all(|tenant| ask(tenant) != "one"));
    let stay = before.iter().filter(|(_, served)| *served != "one");
    assert!(stay.clone().all(|(tenant, served)| ask(*tenant) == *served), "no other one moved");
}

#[test]
fn a_target_without_a_free_place_is_passed_by_while_another_has_one() {
    let (_answered, until) = mpsc::channel::<()>();
    let until = Arc::new(Mutex::new(until));
    let services = ["one", "two"].map(|name| {
        let until = Arc::clone(&until);
        Service::start(move |seen| {
            if seen.target() == "/held" {
                let _ = until.lock().expect("no panic").recv();
            }
            ok(name)
        })
    });
    for balance in ["round_robin", "hash, hash_by: ip"] {
        let more = format!("max_connections: 1, connect_timeout: 60s, balance: {balance}");
        let gateway = Gateway::at(Clock::system(), "", &file(&services, &more, ""));
        let before = services.each_ref().map(|service| service.count("/held"));
        let mut held = gateway.connect();
        held.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
        let is_held = |i: usize| services[i].count("/held") > before[i];
        eventually("a full target", || is_held(0) || is_held(1));
        let other = if is_held(0) { "two" } else { "one" };

        for _ in 0..4 {
            assert_eq!(gateway.get("/", "").text(), other, "{balance}");
        }
    }
}

#[test]
fn a_canary_receives_its_share_and_keeps_its_clients() {
    let services = [named("canary"), named("stable")];
    let text = format!(
        "upstreams:\n  a: {{ targets: [{}] }}\n  b: {{ targets: [{}] }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none, split: {{ b: 30% }}, split_by: \"cookie:release\" }}]\n",
        services[1].url(),
        services[0].url()
    );
    let gateway = Gateway::at(Clock::system(), "", &text);
    let mut canaries = 0;
    for _ in 0..200 {
        let first = gateway.get("/", "");
        let cookie = first.field("set-cookie").expect("a cookie").split(';').next();
        let field = format!("Cookie: {}\r\n", cookie.expect("a value"));
        let again = gateway.get("/", &field);
        assert_eq!(again.text(), first.text());
        assert_eq!(again.field("set-cookie"), None);
        canaries += usize::from(first.text() == "canary");
    }
    assert!((30..95).contains(&canaries), "{canaries} of 200");
    assert!(gateway.log().contains("\"upstream\":\"b\""));
}

#[test]
fn a_stream_of_a_canary_ends_by_the_timeout_of_the_canary() {
    let endless = Service::start(|_| EVENTS.to_vec());
    let text = format!(
        "upstreams:\n  a: {{ targets: [{url}] }}\n  b: {{ targets: [{url}], stream_timeout: 300ms }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none, split: {{ b: 100% }} }}]\n",
        url = endless.url(),
    );
    let gateway = Gateway::at(Clock::system(), "", &text);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let received = String::from_utf8(client.rest()).expect("text");

    assert!(
        received.starts_with("HTTP/1.1 200 ") && received.ends_with("2\r\nhi\r\n"),
        "{received}"
    );
}

#[test]
fn a_canary_that_is_sick_falls_back_on_the_routes_own_upstream_and_never_on_itself() {
    let (own, canary) = (named("own"), Service::start(|_| error(500)));
    for (other, status, attempts) in [("a", 200, 1), ("b", 500, 2)] {
        let text = format!(
            "upstreams:\n  a: {{ targets: [{}] }}\n  b: {{ targets: [{}] }}\n\
             routes: [{{ id: open, path: /**, upstream: a, auth: none, split: {{ b: 100% }}, fallback: {{ upstream: {other} }} }}]\n",
            own.url(),
            canary.url()
        );
        let gateway = Gateway::at(Clock::system(), "", &text);

        let put = gateway.ask("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");

        assert_eq!((put.status, canary.count("/")), (status, attempts), "{other}");
    }
}

#[test]
fn a_copy_whose_response_does_not_end_leaves_its_place_to_others() {
    let endless = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi".to_vec();
    for (response, timeout) in [(EVENTS.to_vec(), "60s"), (endless, "200ms")] {
        let (shadow, own) = (Service::start(move |_| response.clone()), named("own"));
        let text = format!(
            "upstreams:\n  a: {{ targets: [{}] }}\n  b: {{ targets: [{}], timeout: {timeout} }}\n\
             routes: [{{ id: open, path: /**, upstream: a, auth: none, mirror: {{ upstream: b, max_in_flight: 1 }} }}]\n",
            own.url(),
            shadow.url()
        );
        let gateway = Gateway::at(Clock::system(), "", &text);

        for copies in 1..=3 {
            eventually("a further copy", || {
                assert_eq!(gateway.get("/", "").text(), "own");
                shadow.count("/") >= copies
            });
        }
    }
}

#[test]
fn copies_go_to_the_mirror_without_delay_and_only_of_safe_requests() {
    // The mirror answers once the test ends.
    let (_answered, until) = mpsc::channel::<()>();
    let until = Mutex::new(until);
    let shadow = Service::start(move |_| {
        let _ = until.lock().expect("no panic").recv();
        ok("shadow")
    });
    let services = [shadow, named("own")];
    let text = format!(
        "upstreams:\n  a: {{ targets: [{}] }}\n  b: {{ targets: [{}] }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none, mirror: {{ upstream: b }}, headers: {{ request: {{ remove: [Authorization] }} }} }}]\n",
        services[1].url(),
        services[0].url()
    );
    let gateway = Gateway::at(Clock::system(), "", &text);

    assert_eq!(gateway.get("/copied", "Authorization: Basic eDp5\r\n").text(), "own");
    let post = gateway.ask("POST /once HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");

    assert_eq!(post.text(), "own");
    eventually("the copy arrives", || services[0].count("/copied") == 1);
    assert_eq!(services[0].count("/once"), 0);
}

/// The beginning of an event stream that never ends.
pub(super) const EVENTS: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n";
