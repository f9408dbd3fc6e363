//! A route that says so compresses responses, and only those that it may.

use std::io::{Read, Write};

use crate::support::{Answer, Gateway, Reading, Upstream, open};

/// A route that compresses.
fn compressing(service: &Upstream) -> Gateway {
    let rest = open(service).replace("auth: none }", "auth: none, compress: [br, zstd, gzip] }");
    Gateway::start("", &rest)
}

fn text() -> String {
    (0..400).map(|n| format!("line {n} of a text that repeats itself\n")).collect()
}

fn decoded(answer: &Answer) -> String {
    let (mut text, coded) = (String::new(), &*answer.body);
    let read = match answer.field("content-encoding") {
        Some("gzip") => flate2::read::GzDecoder::new(coded).read_to_string(&mut text),
        Some("br") => brotli::Decompressor::new(coded, 4096).read_to_string(&mut text),
        Some("zstd") => {
            zstd::stream::read::Decoder::new(coded).expect("one").read_to_string(&mut text)
        }
        other => panic!("{other:?}"),
    };
    read.expect("whole");
    text
}

#[test]
fn a_response_is_compressed_as_the_client_prefers() {
    let service = Upstream::start(|_| {
        let text = text();
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"v1\"\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
        .into_bytes()
    });
    let gateway = compressing(&service);
    for (accepts, coding) in [
        ("gzip", "gzip"),
        ("gzip, br, zstd", "br"),
        ("gzip;q=0.1, zstd;q=0.2", "zstd"),
        ("*", "br"),
    ] {
        let answer = gateway.get("/", &format!("Accept-Encoding: {accepts}\r\n"));
        assert_eq!(answer.field("content-encoding"), Some(coding), "{accepts}");
        assert_eq!(answer.field("vary"), Some("Accept-Encoding"));
        assert_eq!(answer.field("etag"), Some("W/\"v1\""));
        assert_eq!(answer.field("content-length"), None);
        assert!(answer.body.len() < 4000, "{}", answer.body.len());
        assert_eq!(decoded(&answer), text());
    }
    for accepts in ["", "Accept-Encoding: identity\r\n", "Accept-Encoding: gzip;q=0\r\n"] {
        let answer = gateway.get("/", accepts);
        assert_eq!((answer.field("content-encoding"), answer.text()), (None, &*text()));
        assert_eq!(answer.field("vary"), Some("Accept-Encoding"));
        assert_eq!(answer.field("etag"), Some("\"v1\""));
    }
    // What the service was asked is what the client asked.
    assert_eq!(service.seen()[0].field("accept-encoding"), Some("gzip"));
}

#[test]
fn a_head_response_has_the_fields_of_get_and_no_content() {
    let service = Upstream::start(|seen| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5000\r\n\r\n";
        let body = if seen.line().starts_with("HEAD") { "".into() } else { "x".repeat(5000) };
        format!("{head}{body}").into_bytes()
    });
    let gateway = compressing(&service);
    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n");
        let answer = client.answer_without_body();
        assert_eq!(answer.field("content-encoding"), Some("gzip"));
        assert_eq!(answer.field("content-length"), None);
    }
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n");
    assert_eq!(decoded(&client.answer()).len(), 5000);
}

#[test]
fn an_event_reaches_the_client_before_the_next_one_happens() {
    let (go, went) = std::sync::mpsc::channel::<()>();
    let went = std::sync::Mutex::new(went);
    let service = Upstream::by_hand(move |mut stream, _, _| {
        Reading::new(&stream).until(b"\r\n\r\n").expect("a head");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            .expect("a reader");
        for _ in 0..3 {
            stream.write_all(b"9\r\ndata: x\n\n\r\n").expect("a reader");
            went.lock().expect("one").recv().expect("the client has it");
        }
        stream.write_all(b"0\r\n\r\n").expect("a reader");
    });
    let gateway = compressing(&service);
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: gzip\r\n\r\n");
    let head = String::from_utf8(client.until(b"\r\n\r\n").expect("a head")).expect("text");
    assert!(head.contains("content-encoding: gzip"), "{head}");

    let mut coded = Vec::new();
    for events in 1..=3 {
        // Until what has come decodes to so many events.
        loop {
            let line = client.until(b"\r\n").expect("a chunk");
            let size = core::str::from_utf8(&line).expect("text").trim().to_owned();
            let size = usize::from_str_radix(&size, 16).expect("a size");
            coded.extend(client.exactly(size + 2).into_iter().take(size));
            let (mut text, mut byte) = (Vec::new(), [0]);
            let mut decoder = flate2::read::GzDecoder::new(&*coded);
            while let Ok(1) = decoder.read(&mut byte) {
                text.push(byte[0]);
            }
            if text == "data: x\n\n".repeat(events).as_bytes() {
                break;
            }
        }
        go.send(()).expect("the service waits");
    }
}

#[test]
fn responses_with_cookies_codings_parts_or_a_ban_are_left_alone() {
    for fields in [
        "Set-Cookie: a=b\r\n",
        "Content-Encoding: br\r\n",
        "Cache-Control: no-transform\r\n",
        "Content-Range: bytes 0-1999/5000\r\n",
    ] {
        let status = if fields.starts_with("Content-Range") { "206 Part" } else { "200 OK" };
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n{fields}Content-Length: 2000\r\n\r\n{}",
            "x".repeat(2000)
        );
        let service = Upstream::start(move |_| answer.clone().into_bytes());
        let gateway = compressing(&service);
        let answer = gateway.get("/", "Accept-Encoding: gzip, br\r\n");
        assert_eq!(answer.body, "x".repeat(2000).into_bytes(), "{fields}");
        assert_eq!(answer.field("vary"), None, "{fields}");
    }
}

#[test]
fn a_route_compresses_nothing_without_saying_so() {
    let service = Upstream::start(|_| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2000\r\n\r\n{}",
            "x".repeat(2000)
        )
        .into_bytes()
    });
    let gateway = Gateway::start("", &open(&service));
    let answer = gateway.get("/", "Accept-Encoding: gzip\r\n");
    assert_eq!((answer.field("content-encoding"), answer.field("vary")), (None, None));
}

#[test]
fn content_that_breaks_off_is_not_ended_and_trailers_follow_the_end() {
    let service = Upstream::by_hand(|mut stream, connection, _| {
        let mut reading = Reading::new(&stream);
        while let Some(request) = reading.request(connection) {
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
            let end = if request.target() == "/whole" {
                "0\r\nX-Sum: 42\r\nContent-Digest: sha-256=:eA==:\r\nRepr-Digest: x\r\n\r\n"
            } else {
                ""
            };
            let _ = stream.write_all(format!("{head}4\r\ntext\r\n{end}").as_bytes());
            if end.is_empty() {
                return;
            }
        }
    });
    let gateway = compressing(&service);
    let answer =
        gateway.get("/whole", "Accept-Encoding: zstd\r\nTE: trailers\r\nConnection: TE\r\n");
    assert_eq!(decoded(&answer), "text");
    assert_eq!(answer.trailers.to_ascii_lowercase(), "x-sum: 42\r\n");

    let mut client = gateway.connect();
    client.send("GET /half HTTP/1.1\r\nHost: a\r\nAccept-Encoding: zstd\r\n\r\n");
    let all = client.rest();
    assert!(!all.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&all));
}
