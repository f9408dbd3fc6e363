//! Bytes that were not announced are charged as they come, and end with what was bought.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

use crate::support::{Gateway, Http2, Outcome, Reading, Upstream, eventually, open};

#[test]
fn a_body_in_chunks_ends_with_the_quota() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &limited(&service));
    let half = "x".repeat(5_000);
    let said = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n{half}");
    let mut client = gateway.connect();
    client.send(said);
    assert_eq!(client.answer().status, 200);
    service.forget();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..8 {
        // It is told while it still sends.
        let _ = client.try_send(format!("3e8\r\n{}\r\n", "x".repeat(1_000)));
        thread::sleep(core::time::Duration::from_millis(5));
    }

    let answer = client.answer();

    assert_eq!((answer.status, answer.problem().as_deref()), (429, Some("limited")));
    assert!(answer.field("retry-after").is_some());
    // What is left depends on how many chunks came at once.
    assert!(answer.field("ratelimit").is_some(), "{}", answer.head);
    assert!(service.seen().is_empty(), "no whole request arrived");
    assert!(gateway.log().contains("\"bytes\""), "{}", gateway.log());
}

#[test]
fn content_larger_than_the_whole_quota_is_too_large_and_not_told_to_come_back() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &limited(&service));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10001\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.problem().as_deref()), (413, Some("body-too-large")));
    assert_eq!(answer.field("retry-after"), None);

    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let _ = client.try_send(format!("2ee0\r\n{}\r\n", "x".repeat(12_000)));
    assert_eq!(client.answer().status, 413);
    assert!(service.seen().is_empty(), "no whole request arrived");
}

#[test]
fn a_body_above_its_maximum_costs_no_request() {
    let service = Upstream::polite();
    let rest = format!(
        "limits:\n  daily: {{ quota: 1/day, by: global }}\n{}",
        open(&service)
            .replace("auth: none }", "auth: none, limits: [daily], max_body_size: 1KiB }")
    );
    let gateway = Gateway::start("", &rest);
    let large = "x".repeat(2_000);
    for request in [
        format!("Content-Length: 2000\r\n\r\n{large}"),
        format!("Transfer-Encoding: chunked\r\n\r\n7d0\r\n{large}\r\n0\r\n\r\n"),
    ] {
        let mut client = gateway.connect();
        let _ = client.try_send(format!("POST / HTTP/1.1\r\nHost: a\r\n{request}"));
        assert_eq!(client.answer().status, 413);
    }

    assert_eq!(gateway.get("/", "").status, 200);
    assert_eq!(gateway.get("/", "").status, 429);
}

#[test]
fn a_hundred_bodies_at_once_bring_no_more_than_was_bought() {
    let total = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&total);
    let service = Upstream::by_hand(move |mut stream, connection, _| {
        let mut reading = Reading::new(&stream);
        let Some(_) = reading.head(connection) else { return };
        let mut some = [0; 10_000];
        while let Ok(read @ 1..) = stream.read(&mut some) {
            count.fetch_add(some[..read].iter().filter(|byte| **byte == b'x').count(), SeqCst);
        }
    });
    let gateway = Gateway::start("", &limited(&service));
    thread::scope(|scope| {
        for _ in 0..100 {
            scope.spawn(|| {
                let mut client = gateway.connect();
                client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                for _ in 0..10 {
                    let _ = client.try_send(format!("c8\r\n{}\r\n", "x".repeat(200)));
                }
                client.finish();
                let status = client.try_answer().map(|answer| answer.status);
                assert!(matches!(status, Some(429 | 400 | 502) | None), "{status:?}");
            });
        }
    });
    let total = total.load(SeqCst);
    assert!(total <= 10_000, "{total} bytes passed");
}

#[test]
fn an_upload_whose_answer_came_early_is_cut_where_the_quota_ends() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let Some(mut request) = reading.head(connection) else { return };
        stream.write_all(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n").expect("a reader");
        if reading.body(&mut request).is_some() {
            seen(request);
        }
    });
    let gateway = Gateway::start("", &limited(&service));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.answer().status, 202);

    let _ = client.try_send(format!("4e20\r\n{}\r\n0\r\n\r\n", "x".repeat(20_000)));

    let active = "northgate_upstream_connections{upstream=\"service\",state=\"active\"}";
    eventually("the end of the upload", || gateway.metric(active) == 0.0);
    assert!(service.seen().is_empty());
    assert_eq!(gateway.get("/", "").status, 202, "what was left is still there");
}

#[test]
fn a_body_of_unknown_size_over_http_2_ends_with_the_quota() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &limited(&service));
    let mut http2 = Http2::connect(&gateway);
    let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    http2.head(1, &head, false);
    http2.data(1, &"x".repeat(12_000), false);

    assert_eq!(http2.outcome(1), Outcome::Answered(413));
    assert!(service.seen().is_empty());
}

#[test]
fn tiny_pieces_arrive_whole_and_are_not_held_back() {
    let service = Upstream::start(|seen| {
        let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for byte in &seen.body {
            answer.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
        }
        answer.extend_from_slice(b"0\r\n\r\n");
        answer
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let content: Vec<u8> = (0..100_000_u32).map(|n| b'a' + (n % 26) as u8).collect();
    for part in content.chunks(1_000) {
        let coded: Vec<u8> =
            part.iter().flat_map(|byte| [b'1', b'\r', b'\n', *byte, b'\r', b'\n']).collect();
        client.send(coded);
    }
    client.send("0\r\n\r\n");
    assert!(client.answer().body == content);
}

/// Ten thousand bytes a day for all together.
fn limited(service: &Upstream) -> String {
    format!(
        "limits:\n  bytes: {{ quota: 10000/day, by: global, cost: request_size/1 }}\n{}",
        open(service).replace("auth: none }", "auth: none, limits: [bytes] }")
    )
}
