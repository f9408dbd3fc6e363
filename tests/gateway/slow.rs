//! Who is slow is let go of, and who is too big is refused (security.md rules 31, 36, 37).

use core::time::Duration;
use std::io::Read;
use std::thread;

use crate::support::{Client, Gateway, Upstream, eventually, ok, open};

#[test]
fn a_head_that_does_not_come_to_its_end_closes_the_connection() {
    let service = Upstream::polite();
    let gateway = Gateway::start("header_timeout: 500ms", &open(&service));

    let mut silent = gateway.connect();
    let mut half = gateway.connect();
    half.send("GET / HTTP/1.1\r\nHost: a\r\nX-A:");
    // A byte now and then does not buy time.
    let mut dripping = gateway.connect();
    let mut writer = dripping.stream.try_clone().expect("a socket");
    thread::spawn(move || {
        use std::io::Write;
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX-A: bcdefghijklmnopqrstuvwxyz".iter().cycle() {
            thread::sleep(Duration::from_millis(50));
            if writer.write_all(&[*byte]).is_err() {
                break;
            }
        }
    });

    for client in [&mut silent, &mut half, &mut dripping] {
        let answer = client.try_answer();
        assert!(answer.as_ref().is_none_or(|answer| answer.status == 408), "{answer:?}");
    }
    assert!(service.seen().is_empty());
}

#[test]
fn a_second_head_has_no_more_time_than_the_first() {
    let service = Upstream::polite();
    let gateway = Gateway::start("header_timeout: 500ms", &open(&service));
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status, 200);

    client.send("GET / HT");

    assert!(client.try_answer().is_none_or(|answer| answer.status == 408));
}

#[test]
fn an_idle_connection_is_closed() {
    let service = Upstream::polite();
    let gateway = Gateway::start("idle_timeout: 500ms", &open(&service));
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer().status, 200);

    assert!(client.is_closed());
}

#[test]
fn a_body_that_stops_is_answered_408() {
    let service = Upstream::polite();
    let gateway = Gateway::start("body_timeout: 500ms", &open(&service));
    let mut client = gateway.connect();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");

    assert_eq!(client.answer().status, 408);
    assert!(client.is_closed());
    assert!(service.seen().is_empty());
}

#[test]
fn a_content_type_does_not_switch_the_timeout_of_a_body_off() {
    let service = Upstream::polite();
    let gateway = Gateway::start("body_timeout: 500ms", &open(&service));
    for kind in ["application/grpc", "application/grpc-web"] {
        let mut client = gateway.connect();

        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: {kind}\r\nContent-Length: 10\r\n\r\nabc"
        ));

        let answer = client.answer();
        assert_eq!((answer.status, answer.field("grpc-status").is_some()), (200, true), "{kind}");
        assert!(client.is_closed());
    }
    assert!(service.seen().is_empty());
}

#[test]
fn a_client_that_does_not_read_is_let_go_of() {
    let body = "x".repeat(16 << 20);
    let service = Upstream::start(move |_| ok(&body));
    let gateway = Gateway::start("body_timeout: 500ms", &open(&service));
    let mut client = gateway.connect();

    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let open = "northgate_connections{listener=\"127.0.0.1:0\",protocol=\"http1\"}";
    eventually("the connection's opening", || gateway.metric(open) > 0.0 || closed(&gateway));
    eventually("the connection's end", || gateway.metric(open) == 0.0);
    let mut got = Vec::new();
    let _ = client.stream.read_to_end(&mut got);
    assert!(got.len() < 16 << 20, "everything was sent");
}

#[test]
fn a_service_that_does_not_answer_is_a_504() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let _ = stream.read(&mut [0; 100_000]);
        let _ = stream.read(&mut [0]);
    });
    let gateway = Gateway::start("", &open(&service).replace("targets", "timeout: 300ms, targets"));

    let answer = gateway.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na");

    assert_eq!((answer.status, answer.problem().as_deref()), (504, Some("upstream-timeout")));
}

#[test]
fn a_service_that_stops_in_mid_answer_does_not_hold_the_client() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        use std::io::Write;
        let _ = stream.read(&mut [0; 100_000]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
        let _ = stream.read(&mut [0]);
    });
    let rest = open(&service).replace("targets", "idle_timeout: 300ms, targets");
    let gateway = Gateway::start("", &rest);
    let mut client = gateway.connect();

    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    assert!(client.rest().ends_with(b"half"));
}

#[test]
fn a_head_that_is_too_large_is_answered_431() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_header_size: 8KiB, max_headers: 20", &open(&service));

    let large = format!("X-A: {}\r\n", "a".repeat(9000));
    assert_eq!(gateway.get("/", &large).status, 431);
    let many: String = (0..30).map(|number| format!("X-{number}: a\r\n")).collect();
    assert_eq!(gateway.get("/", &many).status, 431);
    let target = format!("/{}", "a".repeat(9000));
    assert!(matches!(gateway.get(&target, "").status, 414 | 431));
    assert!(service.seen().is_empty());

    let enough: String = (0..15).map(|number| format!("X-{number}: a\r\n")).collect();
    assert_eq!(gateway.get("/", &enough).status, 200);
}

#[test]
fn a_body_that_is_too_large_is_answered_413_however_it_is_framed() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_body_size: 1KiB", &open(&service));

    let answer = gateway.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1025\r\n\r\n");
    assert_eq!((answer.status, answer.problem().as_deref()), (413, Some("body-too-large")));

    let mut client = gateway.connect();
    let chunk = format!("200\r\n{}\r\n", "a".repeat(512));
    client.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}"
    ));
    assert_eq!(client.answer().status, 413);
    assert!(service.seen().is_empty());

    let body = "a".repeat(1024);
    let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n{body}");
    assert_eq!(gateway.ask(&request).status, 200);
}

#[test]
fn one_address_gets_no_more_connections_than_it_may() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_connections_per_ip: 2", &open(&service));
    let ask = |client: &mut Client| {
        let _ = client.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.try_answer().map(|answer| answer.status)
    };

    let (mut first, mut second, mut third) =
        (gateway.connect(), gateway.connect(), gateway.connect());
    assert_eq!((ask(&mut first), ask(&mut second), ask(&mut third)), (Some(200), Some(200), None));
    let refused = "northgate_connection_refusals_total{listener=\"127.0.0.1:0\"}";
    assert!(gateway.metric(refused) >= 1.0);

    drop(first);
    eventually("another place", || ask(&mut gateway.connect()) == Some(200));
}

#[test]
fn more_requests_than_may_be_in_flight_are_answered_503() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = crate::support::Reading::new(&stream);
        let Some(head) = reading.until(b"\r\n\r\n") else { return };
        seen(crate::support::Seen::head(connection, &head));
        let _ = stream.read(&mut [0]);
    });
    let gateway = Gateway::start("max_requests_in_flight: 1", &open(&service));
    let mut first = gateway.connect();
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    service.reached(1);

    let answer = gateway.get("/", "");

    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
    assert_eq!(answer.problem().as_deref(), Some("overloaded"));
}

fn closed(gateway: &Gateway) -> bool {
    gateway.metrics.render().contains("499")
}
