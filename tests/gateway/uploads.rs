//! What a client sends arrives, also behind an answer that came early; and what a client does is not held against a service.

use core::time::Duration;
use std::io::{Read, Write};
use std::sync::mpsc::channel;
use std::thread;

use crate::support::{
    Client, Gateway, Http2, Outcome, PATIENCE, Reading, Upstream, eventually, ok, open,
};

/// The answers that a service may give as soon as it has seen the head.
const EARLY: [(u16, &str, &str); 6] = [
    (202, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", ""),
    (204, "HTTP/1.1 204 No Content\r\n\r\n", ""),
    (303, "HTTP/1.1 303 See Other\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", ""),
    (200, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly", "early"),
    (200, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n", "early"),
    (413, "HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig", "big"),
];

#[test]
fn a_service_that_answers_on_the_head_is_sent_the_whole_request() {
    let content = vec![b'x'; 3 << 20];
    for (status, answer, text) in EARLY {
        let service = answers_on_the_head(answer);
        let gateway = Gateway::start("", &open(&service));

        let mut client = gateway.connect();
        let length = content.len();
        client.send(format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\nx"));
        let early = client.answer();
        assert_eq!((early.status, early.text()), (status, text));
        // Nothing else is to be sent behind what is still on its way (RFC 9112 §9.6).
        assert_eq!(early.field("connection"), Some("close"));
        client.send(&content[1..]);
        service.reached(1);
        assert!(client.is_closed());

        // The same in chunks, with fields behind it.
        let mut client = gateway.connect();
        client.send("POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
        assert_eq!(client.answer().status, status);
        for piece in content[1..].chunks(100_000) {
            client.send(format!("{:x}\r\n", piece.len()));
            client.send(piece);
            client.send("\r\n");
        }
        client.send("0\r\nX-Sum: 42\r\n\r\n");
        service.reached(2);

        let seen = service.seen();
        assert!(seen.iter().all(|seen| seen.body == content), "{answer}");
        assert_eq!(seen[1].trailers.to_ascii_lowercase(), "x-sum: 42\r\n");
        // Both directions have ended: the connection to the service is good for the next one.
        eventually("the connection's rest", || gateway.metric(IDLE) == 1.0);
        let mut client = gateway.connect();
        client.send("POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.answer().status, status);
        assert_eq!(service.connections(), 1, "{answer}");
    }
}

#[test]
fn an_upload_over_http_2_goes_on_behind_its_answer() {
    for (status, answer, _) in EARLY {
        let service = answers_on_the_head(answer);
        let gateway = Gateway::start("", &open(&service));
        let mut http2 = Http2::connect(&gateway);
        let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

        http2.head(1, &head, false);
        assert_eq!(http2.outcome(1), Outcome::Answered(status));
        let piece = "x".repeat(16_000);
        for n in 1..=3 {
            http2.data(1, &piece, n == 3);
        }

        service.reached(1);
        assert_eq!(service.only().body.len(), 3 * 16_000, "{answer}");
    }
}

#[test]
fn an_answer_that_ends_with_its_connection_does_not_end_the_upload() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let mut request = reading.head(connection).expect("a head");
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nearly").expect("a reader");
        stream.shutdown(std::net::Shutdown::Write).expect("a socket");
        if reading.body(&mut request).is_some() {
            seen(request);
        }
    });
    let gateway = Gateway::start("", &open(&service));
    for version in ["1.1", "1.0"] {
        let mut client = gateway.connect();
        client
            .send(format!("POST / HTTP/{version}\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nx"));
        assert_eq!(client.answer().text(), "early");
        client.send(vec![b'x'; 999_999]);
    }
    service.reached(2);
    assert!(service.seen().iter().all(|seen| seen.body.len() == 1_000_000));
}

#[test]
fn an_upload_goes_on_while_its_client_reads_nothing_of_the_answer() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let mut request = reading.head(connection).expect("a head");
        // More than the system's buffers take.
        let answer = thread::spawn(move || {
            let _ = stream.write_all(&ok(&"x".repeat(SIZE)));
        });
        if reading.body(&mut request).is_some() {
            seen(request);
        }
        answer.join().expect("a writer");
    });
    let gateway = Gateway::start("", &open(&service));
    let content = vec![b'x'; 3 << 20];

    let mut client = gateway.connect();
    let length = content.len();
    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"));
    client.send(&content);
    service.reached(1);
    assert_eq!(client.answer().body.len(), SIZE, "what was not read yet is still there");

    let mut http2 = Http2::connect(&gateway);
    let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    http2.head(1, &head, false);
    assert_eq!(http2.outcome(1), Outcome::Answered(200));
    assert_eq!(http2.upload(1, length, PATIENCE), length);
    service.reached(2);
    assert!(service.seen().iter().all(|seen| seen.body == content));
}

/// The last bytes and the FIN of a client that has its answer may come together.
#[test]
fn a_client_that_closes_behind_its_last_byte_has_sent_it() {
    let service = answers_on_the_head(EARLY[0].1);
    let gateway = Gateway::start("", &open(&service));
    for round in 1..=60 {
        let content = vec![b'x'; [1, 5_000, 9_000, 300_000][round % 4]];
        let length = content.len();
        let mut client = gateway.connect();
        client
            .send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\nx", length + 1));
        assert_eq!(client.answer().status, 202);
        client.send(&content);
        drop(client);
        service.reached(round);
        assert_eq!(service.seen()[round - 1].body.len(), length + 1, "round {round}");
    }
}

#[test]
fn a_service_that_closes_early_still_has_its_answer_delivered() {
    let service = Upstream::by_hand(|mut stream, connection, _| {
        let _ = Reading::new(&stream).head(connection);
        let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
    });
    let gateway = Gateway::start("", &open(&service));
    for _ in 0..5 {
        let mut client = gateway.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n");
        let mut writer = client.stream.try_clone().expect("a socket");
        let sending = thread::spawn(move || drop(writer.write_all(&vec![b'x'; 8_000_000])));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (401, "no"));
        drop(client);
        sending.join().expect("a writer");
    }
}

#[test]
fn a_service_that_answers_and_reads_no_more_is_let_go_of() {
    let (told, over) = channel::<()>();
    let over = std::sync::Mutex::new(over);
    let service = Upstream::by_hand(move |mut stream, connection, _| {
        let _ = Reading::new(&stream).head(connection);
        let _ = stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig");
        let _ = over.lock().expect("it is whole").recv();
    });
    let rest = open(&service).replace("targets", "timeout: 300ms, targets");
    let gateway = Gateway::start("header_timeout: 1s, max_body_size: 1GiB", &rest);
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nx");
    assert_eq!(client.answer().text(), "big");

    // It is read on for a while, and then no more.
    let sent = client.try_send(vec![b'x'; 99_999_999]);

    eventually("the connection's end", || gateway.metric(ACTIVE) == 0.0);
    drop(told);
    assert!(sent.is_ok() || client.try_send(vec![b'x'; 1 << 20]).is_err());
}

#[test]
fn an_upload_keeps_its_place_until_it_ends_however_early_its_answer() {
    let service = answers_on_the_head(EARLY[0].1);
    let gateway = Gateway::start("max_requests_in_flight: 1", &open(&service));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nh");
    assert_eq!(client.answer().status, 202);

    assert_eq!(gateway.get("/", "").status, 503);
    client.send("ello");

    eventually("a free place", || gateway.get("/", "").status == 202);
}

#[test]
fn a_client_that_goes_away_behind_its_answer_leaves_no_whole_request() {
    for framing in ["Content-Length: 10\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"] {
        let (ended, heard) = channel();
        let ended = std::sync::Mutex::new(ended);
        let service = Upstream::by_hand(move |mut stream, connection, _| {
            let mut reading = Reading::new(&stream);
            let Some(mut request) = reading.head(connection) else { return };
            stream.write_all(EARLY[0].1.as_bytes()).expect("a reader");
            let whole = reading.body(&mut request).is_some();
            let _ = ended.lock().expect("it is whole").send(whole);
        });
        let gateway = Gateway::start("", &open(&service));
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{framing}"));
        assert_eq!(client.answer().status, 202);

        drop(client);

        let whole = heard.recv_timeout(crate::support::PATIENCE).expect("the end of it");
        assert!(!whole, "{framing}");
        eventually("the connection's end", || gateway.metric(ACTIVE) + gateway.metric(IDLE) == 0.0);
    }
}

/// One failure is enough for a service to be left alone, and another to be asked that says `backup` to everything.
fn trusting(service: &Upstream, more: &str) -> (String, Upstream) {
    let backup = Upstream::start(|_| ok("backup"));
    let (url, other) = (service.url(), backup.url());
    let rest = open(service).replace(
        &format!("targets: [\"{url}\"]"),
        &format!(
            "{more}outlier: {{ errors: 1 }}, retries: {{ attempts: 0 }}, \
             targets: [\"{url}\", {{ url: \"{other}\", backup: true }}]"
        ),
    );
    (rest, backup)
}

/// How many failures services are blamed for.
fn failures(gateway: &Gateway) -> usize {
    let text = gateway.metrics.render();
    let errors = text.lines().filter(|line| line.starts_with("northgate_upstream_errors_total{"));
    errors.filter(|line| !line.ends_with(" 0")).count()
}

#[test]
fn a_client_that_stalls_its_upload_is_told_so_and_its_service_is_not_blamed() {
    let service = Upstream::polite();
    let (rest, _backup) = trusting(&service, "timeout: 500ms, ");
    let gateway = Gateway::start("body_timeout: 900ms", &rest);
    for start in [
        "Content-Length: 10\r\n\r\nabc",
        "Content-Length: 10\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\na",
    ] {
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{start}"));

        let answer = client.answer();

        assert_eq!((answer.status, answer.problem().as_deref()), (408, Some("body-timeout")));
        assert_eq!(gateway.get("/", "").text(), "fine", "{start}");
    }
    let mut http2 = Http2::connect(&gateway);
    let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    http2.head(1, &head, false);
    http2.data(1, "abc", false);
    assert_eq!(http2.outcome(1), Outcome::Answered(408));
    assert_eq!(gateway.get("/", "").text(), "fine");
    assert_eq!(failures(&gateway), 0);
}

#[test]
fn a_client_that_breaks_its_upload_is_no_fault_of_the_service() {
    let service = Upstream::polite();
    let (rest, _backup) = trusting(&service, "");
    let gateway = Gateway::start("", &rest);
    for start in ["3\r\nab", "3\r\nabcd\r\n", "zz\r\n", "0\r\nA B: c\r\n\r\n"] {
        let mut client = gateway.connect();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{start}"
        ));
        client.finish();
        let status = client.try_answer().map(|answer| answer.status);
        assert!(matches!(status, Some(400) | None), "{start:?}: {status:?}");
        assert_eq!(gateway.get("/", "").text(), "fine", "{start:?}");
    }
    assert_eq!(failures(&gateway), 0);
}

#[test]
fn a_service_that_tires_of_a_stalled_client_is_not_left_alone_for_it() {
    for goodbye in
        [&b""[..], b"HTTP/1.1 503 Tired\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
    {
        let service = Upstream::by_hand(move |mut stream, connection, _| {
            let mut reading = Reading::new(&stream);
            while let Some(request) = reading.head(connection) {
                if request.line().starts_with("POST") {
                    let _ = reading.exactly(3);
                    // The client has sent nothing for longer than a second.
                    thread::sleep(Duration::from_millis(1500));
                    let _ = stream.write_all(goodbye);
                    return;
                }
                let _ = stream.write_all(&ok("fine"));
            }
        });
        let (rest, _backup) = trusting(&service, "");
        let gateway = Gateway::start("", &rest);
        let mut client = gateway.connect();

        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");

        assert!(matches!(client.answer().status, 502 | 503));
        assert_eq!(gateway.get("/", "").text(), "fine");
    }
}

#[test]
fn a_service_that_fails_uploads_at_once_is_left_alone() {
    for goodbye in [&b""[..], b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"]
    {
        let service = Upstream::by_hand(move |mut stream, connection, _| {
            let mut reading = Reading::new(&stream);
            while let Some(request) = reading.head(connection) {
                if request.line().starts_with("POST") {
                    let _ = reading.exactly(3);
                    let _ = stream.write_all(goodbye);
                    return;
                }
                let _ = stream.write_all(&ok("fine"));
            }
        });
        let (rest, _backup) = trusting(&service, "");
        let gateway = Gateway::start("", &rest);

        eventually("the backup serves", || {
            let mut client = gateway.connect();
            client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc");
            let _ = client.try_answer();
            gateway.get("/", "").text() == "backup"
        });
    }
}

#[test]
fn statuses_501_and_505_do_not_eject_the_endpoint() {
    let service = Upstream::start(|seen| {
        let status = seen.target().trim_start_matches('/').to_owned();
        format!("HTTP/1.1 {status} Said\r\nContent-Length: 4\r\n\r\nsaid").into_bytes()
    });
    let (rest, _backup) = trusting(&service, "");
    let gateway = Gateway::start("", &rest);

    for (status, then) in [(501, "said"), (505, "said"), (500, "backup")] {
        assert_eq!(gateway.get(&format!("/{status}"), "").status, status);
        assert_eq!(gateway.get("/200", "").text(), then, "behind {status}");
    }
}

#[test]
fn a_service_that_waits_for_the_rest_of_an_upload_is_not_silent() {
    let service = Upstream::by_hand(|mut stream, connection, _| {
        let mut reading = Reading::new(&stream);
        let Some(mut request) = reading.head(connection) else { return };
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwell\r\n")
            .expect("a reader");
        if reading.body(&mut request).is_some() {
            let _ = stream.write_all(b"4\r\ndone\r\n0\r\n\r\n");
        }
    });
    let rest = open(&service).replace("targets", "idle_timeout: 200ms, targets");
    let gateway = Gateway::start("", &rest);
    let mut client: Client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nh");
    assert!(client.until(b"well\r\n").is_some());

    // As long as the client causes the wait.
    thread::sleep(Duration::from_millis(500));
    client.send("ello");

    assert!(client.until(b"done\r\n0\r\n\r\n").is_some());
}

/// A service that answers as soon as it has a head, and reads on.
fn answers_on_the_head(answer: &'static str) -> Upstream {
    Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(mut request) = reading.head(connection) {
            stream.write_all(answer.as_bytes()).expect("a reader");
            if reading.body(&mut request).is_none() {
                // What is not whole was not seen.
                let _ = stream.read(&mut [0]);
                return;
            }
            seen(request);
        }
    })
}

const ACTIVE: &str = "northgate_upstream_connections{upstream=\"service\",state=\"active\"}";
const IDLE: &str = "northgate_upstream_connections{upstream=\"service\",state=\"idle\"}";
/// Bytes of an answer that no buffer takes.
const SIZE: usize = 48 << 20;
