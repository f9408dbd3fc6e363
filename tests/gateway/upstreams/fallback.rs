//! A route whose upstream fails answers in another way.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::sync::Arc;
use std::thread;

use super::balance::EVENTS;
use super::health::error;
use super::service::Service;
use crate::support::{Client, Gateway, Http2, Outcome, Seen, eventually, ok};
use northgate::base::clock::Clock;

fn file(primary: &Service, spare: &Service, more: &str, route: &str) -> String {
    format!(
        "upstreams:\n  a: {{ targets: [{}], {more} }}\n  b: {{ targets: [{}] }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none, {route} }}]\n",
        primary.url(),
        spare.url()
    )
}

/// A service that answers `status` while its switch is set, and otherwise `well`.
fn service_that_fails(
    fails: bool,
    status: u16,
    well: impl Fn(&Seen) -> Vec<u8> + Send + Sync + 'static,
) -> (Service, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(fails));
    let switch = Arc::clone(&fails);
    let answer = move |seen: &Seen| if fails.load(SeqCst) { error(status) } else { well(seen) };
    (Service::start(answer), switch)
}

#[test]
fn a_primary_that_flaps_costs_no_request_with_a_fallback() {
    let primary = Arc::new(Service::start(|_| ok("primary")));
    let spare = Service::start(|_| ok("spare"));
    let text = file(&primary, &spare, "", "fallback: { upstream: b }");
    let gateway = Gateway::at(Clock::system(), "", &text);
    let over = Arc::new(AtomicBool::new(false));
    let flapping = {
        let (primary, over) = (Arc::clone(&primary), Arc::clone(&over));
        thread::spawn(move || {
            for _ in 0..12 {
                primary.kill();
                thread::sleep(Duration::from_millis(80));
                primary.restart();
                thread::sleep(Duration::from_millis(80));
            }
            over.store(true, SeqCst);
        })
    };
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (address, over) = (gateway.address(), Arc::clone(&over));
            thread::spawn(move || {
                let mut client = Client::connect(address);
                while !over.load(SeqCst) {
                    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
                    assert_eq!(client.answer().status, 200);
                    thread::sleep(Duration::from_millis(2));
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("no error");
    }
    flapping.join().expect("no error");
    assert!(primary.count("/x") > 0 && spare.count("/x") > 0);
    assert!(gateway.log().contains("\"fallback\":\"upstream\""));
}

#[test]
fn a_response_that_breaks_off_is_replaced_by_another_upstreams() {
    let primary = Service::start(|_| b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ntor".to_vec());
    let spare = Service::start(|_| ok("whole"));
    let gateway = Gateway::at(
        Clock::system(),
        "",
        &file(&primary, &spare, "retries: { attempts: 0 }", "fallback: { upstream: b }"),
    );
    let killer = thread::spawn({
        let address = gateway.address();
        move || {
            let mut client = Client::connect(address);
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            client.answer().text().to_owned()
        }
    });
    eventually("the response has begun", || primary.count("/") == 1);
    // The service hangs for a while before it dies.
    thread::sleep(Duration::from_millis(300));
    primary.kill();

    assert_eq!(killer.join().expect("an answer"), "whole");
}

#[test]
fn a_request_that_may_have_been_processed_goes_to_no_other_upstream() {
    let primary = Service::start(|_| Vec::new());
    let spare = Service::start(|_| ok("spare"));
    let route = "fallback: { upstream: b, respond: { status: 503, body: later } }";
    let gateway = Gateway::at(Clock::system(), "", &file(&primary, &spare, "", route));

    let answer = gateway.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");

    assert_eq!((answer.status, answer.text()), (503, "later"));
    assert_eq!((primary.count("/"), spare.count("/")), (1, 0));
    primary.kill();
    let answer = gateway.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(answer.text(), "spare", "nothing of it was sent");
}

#[test]
fn an_error_of_the_other_upstream_does_not_hide_what_comes_behind_it() {
    let (primary, spare) = (Service::start(|_| error(503)), Service::start(|_| error(500)));
    for (more, expected) in
        [("", (500, "")), (", respond: { status: 200, body: later }", (200, "later"))]
    {
        let route = format!("fallback: {{ upstream: b{more} }}");
        let gateway = Gateway::at(Clock::system(), "", &file(&primary, &spare, "", &route));

        let answer = gateway.get("/", "");

        assert_eq!((answer.status, answer.text()), expected);
    }
    assert_eq!(spare.count("/"), 2);
}

#[test]
fn the_settings_of_the_upstream_that_answers_hold() {
    let dead = Service::start(|_| ok("dead"));
    dead.kill();
    let spares = ["one", "two"].map(|name| {
        Service::start(
            move |seen| {
                if seen.target() == "/events" { EVENTS.to_vec() } else { ok(name) }
            },
        )
    });
    let text = format!(
        "upstreams:\n  a: {{ targets: [{}] }}\n  b: {{ targets: [{}, {}], stream_timeout: 300ms, balance: hash, hash_by: \"header:X-Tenant\" }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none, fallback: {{ upstream: b }} }}]\n",
        dead.url(),
        spares[0].url(),
        spares[1].url()
    );
    let gateway = Gateway::at(Clock::system(), "", &text);
    let ask =
        |tenant: usize| gateway.get("/", &format!("X-Tenant: t{tenant}\r\n")).text().to_owned();

    for tenant in 0..10 {
        assert_eq!(ask(tenant), ask(tenant), "{tenant}");
    }
    let mut client = gateway.connect();
    client.send("GET /events HTTP/1.1\r\nHost: a\r\n\r\n");
    let received = String::from_utf8(client.rest()).expect("text");
    assert!(received.ends_with("2\r\nhi\r\n"), "{received}");
}

#[test]
fn the_last_good_response_is_used_for_the_same_public_request_only() {
    let (service, sick) = service_that_fails(false, 503, |seen| ok(seen.target()));
    let spare = Service::start(|_| ok("spare"));
    let route = "fallback: { stale: 1m }";
    let gateway = Gateway::at(Clock::system(), "", &file(&service, &spare, "", route));
    assert_eq!(gateway.get("/a", "").text(), "/a");
    assert_eq!(gateway.get("/private", "Cookie: a=b\r\n").text(), "/private");
    assert_eq!(gateway.get("/secret", "Authorization: Basic eDp5\r\n").text(), "/secret");
    let with_content = |path: &str| {
        gateway.ask(&format!("GET {path} HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\nx"))
    };
    assert_eq!(with_content("/search").text(), "/search");

    sick.store(true, SeqCst);

    let stale = gateway.get("/a", "");
    assert_eq!((stale.status, stale.text()), (200, "/a"));
    assert!(stale.field("age").is_some());
    for (path, fields) in [
        ("/b", ""),
        ("/private", ""),
        ("/secret", ""),
        ("/search", ""),
        ("/a", "Cookie: a=b\r\n"),
        ("/a", "Authorization: Basic eDp5\r\n"),
        ("/a?x", ""),
    ] {
        assert_eq!(gateway.get(path, fields).status, 503, "{path} {fields}");
    }
    assert_eq!(with_content("/a").status, 503);
    let other_host = gateway.ask("GET /a HTTP/1.1\r\nHost: other\r\n\r\n");
    assert_eq!(other_host.status, 503);
    let post = gateway.ask("POST /a HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(post.status, 503);
}

#[test]
fn a_good_response_without_a_length_is_used_again_unless_it_is_large() {
    let chunked = |length: usize| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{length:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(length)).into_bytes()
    };
    let (service, sick) = service_that_fails(false, 503, move |seen| {
        chunked(seen.target()[1..].parse().expect("a length"))
    });
    let spare = Service::start(|_| ok("spare"));
    let text = file(&service, &spare, "", "fallback: { stale: 1m }");
    let gateway = Gateway::at(Clock::system(), "", &text);
    for length in [2, 200_000, 300_000] {
        assert_eq!(gateway.get(&format!("/{length}"), "").body.len(), length);
    }

    sick.store(true, SeqCst);

    for (length, status) in [(2, 200), (200_000, 200), (300_000, 503)] {
        let answer = gateway.get(&format!("/{length}"), "");
        assert_eq!((answer.status, answer.body.len() == length), (status, status == 200));
    }
}

#[test]
fn a_deleted_resource_has_no_last_good_response() {
    let (service, sick) = service_that_fails(false, 503, |seen| ok(seen.target()));
    let spare = Service::start(|_| ok("spare"));
    let route = "fallback: { stale: 1m }";
    let gateway = Gateway::at(Clock::system(), "", &file(&service, &spare, "", route));
    for path in ["/a", "/b"] {
        assert_eq!(gateway.get(path, "").text(), path);
    }
    let delete = "DELETE /a HTTP/1.1\r\nHost: api.test\r\nCookie: a=b\r\n\r\n";
    assert_eq!(gateway.ask(delete).status, 200);

    sick.store(true, SeqCst);

    assert_eq!(gateway.get("/a", "").status, 503);
    assert_eq!(gateway.get("/b", "").text(), "/b");
}

#[test]
fn the_last_good_response_of_an_upstream_ends_where_a_reload_replaces_it() {
    let (old, new) = (Service::start(|seen| ok(seen.target())), Service::start(|_| error(503)));
    let text = file(&old, &new, "", "fallback: { stale: 1m }");
    let gateway = Gateway::at(Clock::system(), "", &text);
    assert_eq!(gateway.get("/a", "").text(), "/a");

    for replaced in [
        text.replace("upstream: a", "upstream: b"),
        text.replace("auth: none", "auth: none, rewrite: { add_prefix: /v2 }"),
    ] {
        gateway.reload("", &replaced).expect("a valid file");
        old.kill();
        assert_eq!(gateway.get("/a", "").status / 100, 5, "{replaced}");
    }
}

#[test]
fn head_has_no_content_where_a_fixed_response_replaces_the_upstreams() {
    let service = Service::start(|_| error(503));
    let spare = Service::start(|_| ok("spare"));
    let route = "fallback: { respond: { status: 200, body: closed for today } }";
    let gateway = Gateway::at(Clock::system(), "", &file(&service, &spare, "", route));
    let mut http2 = Http2::connect(&gateway);

    for (stream, path, status) in [(1, "/a", 200), (3, "/a#b", 400)] {
        let head = [(":method", "HEAD"), (":scheme", "http"), (":authority", "h"), (":path", path)];
        http2.head(stream, &head, true);
        assert_eq!(http2.outcome_and_end(stream), (Outcome::Answered(status), true), "{path}");
    }
}

#[test]
fn the_last_good_response_to_an_anonymous_caller_is_used_for_anonymous_callers() {
    let (service, sick) = service_that_fails(false, 503, |_| ok("fine"));
    let spare = Service::start(|_| ok("spare"));
    let auth = "auth: { jwt: main, token_from: { header: X-Token }, optional: true }";
    let rest = file(&service, &spare, "", "fallback: { stale: 1m }").replace("auth: none", auth)
        + "issuers: { main: { issuer: \"https://i.test\", audience: a, discovery: off, jwks_uri: \"https://i.test/jwks\" } }\n";
    let gateway = Gateway::at(Clock::system(), "", &rest);
    assert_eq!(gateway.get("/a", "").text(), "fine");
    assert_eq!(gateway.get("/b", "Authorization: Basic eDp5\r\n").text(), "fine");

    sick.store(true, SeqCst);

    assert_eq!(gateway.get("/a", "").text(), "fine");
    assert_eq!(gateway.get("/a", "X-Token: bad\r\n").status, 401);
    assert_eq!(gateway.get("/b", "").status, 503, "may be of one caller");
}

#[test]
fn an_open_circuit_sends_nothing_until_the_gateways_own_probe_succeeds() {
    let (service, sick) = service_that_fails(true, 500, |_| ok("fine"));
    let spare = Service::start(|_| ok("spare"));
    let more = "health_check: { path: /health, interval: 1h, timeout: 1s, status: 200-599 }, \
                outlier: { errors: 1000, error_rate: 0% }, \
                circuit_breaker: { errors: 3, open_for: 200ms, close_after: 1 }";
    let gateway = Gateway::at(Clock::system(), "", &file(&service, &spare, more, ""));
    for _ in 0..3 {
        assert_eq!(gateway.get("/work", "").status, 500);
    }

    let refused = gateway.get("/work", "");

    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("1")));
    assert_eq!(service.count("/work"), 3);
    assert_eq!(gateway.metric("northgate_upstream_circuit_state{upstream=\"a\"}"), 2.0);
    sick.store(false, SeqCst);
    eventually("the circuit closes", || gateway.get("/work", "").status == 200);
    assert!(service.count("/health") >= 2, "it was probed");
    assert_eq!(gateway.metric("northgate_upstream_circuit_state{upstream=\"a\"}"), 0.0);
}

#[test]
fn buffered_content_is_sent_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let flaky = Service::start({
        let count = Arc::clone(&count);
        move |seen| {
            assert_eq!(seen.body.len(), 3);
            if count.fetch_add(1, SeqCst) == 0 { Vec::new() } else { ok("done") }
        }
    });
    let other = Service::start(|seen| ok(core::str::from_utf8(&seen.body).expect("text")));
    let text = |more: &str| {
        format!(
            "upstreams: {{ a: {{ targets: [{}, {}] }} }}\n\
             routes: [{{ id: open, path: /**, upstream: a, auth: none, {more} }}]\n",
            flaky.url(),
            other.url()
        )
    };
    let gateway = Gateway::at(Clock::system(), "", &text("buffer_request: true"));
    let put = |gateway: &Gateway| {
        gateway.ask(
            "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        )
    };

    let answers = [put(&gateway), put(&gateway)].map(|answer| answer.status);

    assert_eq!(answers, [200, 200]);
    assert!(other.count("/") >= 1, "one of them went to the other target");
}

#[test]
fn reloads_keep_no_circuit_open() {
    let (service, sick) = service_that_fails(true, 500, |_| ok("fine"));
    let spare = Service::start(|_| ok("spare"));
    let breaker = "circuit_breaker: { errors: 1, open_for: 1s, close_after: 2 }";
    let text = file(&service, &spare, breaker, "");
    let gateway = Gateway::at(Clock::system(), "", &text);
    assert_eq!(gateway.get("/", "").status, 500);
    assert_eq!(gateway.get("/", "").status, 503);

    sick.store(false, SeqCst);

    // Each reload begins the tasks of all upstreams anew.
    eventually("the circuit closes", || {
        gateway.reload("", &text).expect("a valid file");
        gateway.get("/", "").status == 200
    });
}

#[test]
fn a_circuit_is_closed_where_a_reload_brings_other_targets() {
    let (sick, well) = (Service::start(|_| error(500)), Service::start(|_| ok("fine")));
    let breaker = "circuit_breaker: { errors: 1, open_for: 1h }";
    let gateway = Gateway::at(Clock::system(), "", &file(&sick, &well, breaker, ""));
    assert_eq!(gateway.get("/", "").status, 500);
    assert_eq!(gateway.get("/", "").status, 503);

    gateway.reload("", &file(&well, &sick, breaker, "")).expect("a valid file");

    assert_eq!(gateway.get("/", "").status, 200);
}

#[test]
fn an_open_circuit_says_how_long_requests_are_refused() {
    let (sick, spare) = (Service::start(|_| error(500)), Service::start(|_| ok("spare")));
    let breaker = "circuit_breaker: { errors: 1, open_for: 40s }";
    let gateway = Gateway::start("", &file(&sick, &spare, breaker, ""));
    assert_eq!(gateway.get("/", "").status, 500);

    let refused = gateway.get("/", "");

    assert_eq!((refused.status, refused.field("retry-after")), (503, Some("40")));
}

#[test]
fn a_target_that_dies_with_many_requests_in_flight_opens_no_circuit() {
    const REQUESTS: usize = 20;
    let over = Arc::new(AtomicBool::new(false));
    let service = Service::start({
        let over = Arc::clone(&over);
        move |seen| {
            while seen.target() == "/slow" && !over.load(SeqCst) {
                thread::sleep(Duration::from_millis(5));
            }
            ok("fine")
        }
    });
    let spare = Service::start(|_| ok("spare"));
    let more = "retries: { attempts: 0 }, circuit_breaker: { errors: 3 }";
    let gateway = Gateway::at(Clock::system(), "", &file(&service, &spare, more, ""));
    let clients: Vec<_> = (0..REQUESTS)
        .map(|_| {
            let address = gateway.address();
            thread::spawn(move || {
                let mut client = Client::connect(address);
                client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
                client.answer().status
            })
        })
        .collect();
    eventually("all are in flight", || service.count("/slow") == REQUESTS);

    service.kill();

    for client in clients {
        assert_eq!(client.join().expect("an answer"), 502);
    }
    over.store(true, SeqCst);
    assert_eq!(gateway.metric("northgate_upstream_circuit_state{upstream=\"a\"}"), 0.0);
}
