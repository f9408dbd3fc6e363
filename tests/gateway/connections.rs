//! What a client's connection goes through between requests: what it may be kept for, how it ends, and what is said of it.

use std::io::{Read, Write};
use std::net::Shutdown;

use crate::support::{Gateway, Http2, Outcome, Reading, Seen, Upstream, eventually, ok, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_reload_changes_the_limits_of_heads_on_open_connections() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Large: {}\r\n\r\n", "x".repeat(20_000));
    let [mut sized, mut counted] = [(); 2].map(|()| gateway.connect());
    for client in [&mut sized, &mut counted] {
        client.send(&large);
        assert_eq!(client.answer().status, 200);
    }

    gateway.reload("max_header_size: 8KiB, max_headers: 10", &open(&service)).expect("a good file");

    sized.send(&large);
    assert_eq!(sized.answer().status, 431);
    counted.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X-A: 1\r\n".repeat(30)));
    assert_eq!(counted.answer().status, 431);
}

#[test]
fn malformed_input_gets_a_response_with_an_id_and_is_counted() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_header_size: 8KiB", &open(&service));

    for (bytes, status, problem) in [
        ("HELO a\r\n\r\n".to_owned(), 400, "bad-request"),
        ("GET / HTTP/1.1\r\nA : b\r\n\r\n".to_owned(), 400, "bad-request"),
        (format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(9000)), 431, "head-too-large"),
    ] {
        let mut client = gateway.connect();
        client.send(&bytes);
        let answer = client.answer();
        assert_eq!((answer.status, answer.problem().as_deref()), (status, Some(problem)));
        assert!(answer.field("x-request-id").is_some(), "{answer:?}");
        assert_eq!(answer.field("connection"), Some("close"));
        assert!(client.is_closed(), "{bytes:?}");
    }
    let refused = "northgate_http_requests_total{route=\"_none\",method=\"OTHER\",code=\"400\"}";
    eventually("two of them to be counted", || gateway.metric(refused) == 2.0);
    assert!(service.seen().is_empty());
    let log = gateway.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("UNREADABLE")).collect();
    assert_eq!(lines.len(), 3, "{log}");
    let first: serde_json::Value = serde_json::from_str(lines[0]).expect("JSON");
    assert_eq!((&first["error.type"], &first["url.path"]), (&"bad-request".into(), &"".into()));
}

/// RFC 9110 §9.3.7: it asks whether the gateway is there. No other method has such a target.
#[test]
fn options_of_an_asterisk_is_answered_by_the_gateway() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    let mut client = gateway.connect();
    for _ in 0..2 {
        client.send("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.answer_without_body().status, 204);
    }
    for request in [
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\n\r\n",
        "OPTIONS *a HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(gateway.ask(request).status, 400, "{request:?}");
    }
    let mut http2 = Http2::connect(&gateway);
    let head = [(":method", "OPTIONS"), (":scheme", "http"), (":authority", "a"), (":path", "*")];
    http2.head(1, &head, true);
    assert_eq!(http2.outcome(1), Outcome::Answered(204));
    assert!(service.seen().is_empty());
}

/// RFC 9112 §9.6: closed at once, a connection would lose the response to a client that is still sending.
#[test]
fn a_client_whose_upload_is_refused_reads_why() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_body_size: 1KiB", &open(&service));

    for _ in 0..20 {
        let mut client = gateway.connect();
        let mut sender = client.stream.try_clone().expect("a socket");
        let sending = std::thread::spawn(move || {
            let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n";
            sender.write_all(head.as_bytes())?;
            sender.write_all(&vec![b'x'; 8_000_000])
        });
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (413, Some("close")));
        sending.join().expect("no panic").expect("all of it is taken");
    }
    assert!(service.seen().is_empty());
}

/// A client that has no request under way, and does not hang up, holds no permit.
#[test]
fn a_connection_that_owes_nothing_ends_at_once() {
    let service = Upstream::polite();
    let gateway = Gateway::start("header_timeout: 5m", &open(&service));
    let mut client = gateway.connect();

    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");

    assert_eq!(client.answer().status, 200);
    let open = "northgate_connections{listener=\"127.0.0.1:0\",protocol=\"http1\"}";
    eventually("the connection's end", || gateway.metric(open) == 0.0);
    assert!(client.is_closed());
}

#[test]
fn small_unread_content_keeps_the_connection() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service).replace("/**", "/here"));
    let mut client = gateway.connect();

    client.send("POST /nowhere HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234");
    assert_eq!(client.answer().status, 404);
    client.send("56789GET /here HTTP/1.1\r\nHost: a\r\n\r\n");

    assert_eq!(client.answer().status, 200);
    assert_eq!(service.only().line(), "GET /here HTTP/1.1");
}

#[test]
fn unread_content_of_unknown_length_ends_the_connection() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service).replace("/**", "/here"));
    let mut client = gateway.connect();

    client.send("POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.field("connection")), (404, Some("close")));
    let _ = client.try_send(format!("0\r\n\r\n{GET}"));

    assert!(client.is_closed());
    assert!(service.seen().is_empty());
}

/// RFC 9110 §10.1.1: a client that got no 100 may send its content or not, so no request can follow.
#[test]
fn an_expectation_that_is_refused_ends_the_connection() {
    let service = Upstream::polite();
    let gateway = Gateway::start("max_body_size: 3B", &open(&service));
    let mut client = gateway.connect();

    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let answer = client.answer();
    assert_eq!((answer.status, answer.field("connection")), (413, Some("close")));
    let _ = client.try_send(GET);

    assert!(client.is_closed());
    assert!(service.seen().is_empty());
}

#[test]
fn http_1_0_keeps_its_connection_if_it_asks_and_the_end_can_be_told() {
    let service = Upstream::start(|seen| match seen.target() {
        "/known" => ok("known"),
        _ => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec(),
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    for _ in 0..2 {
        client.send("GET /known HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.text(), answer.field("connection")), ("known", Some("keep-alive")));
    }
    client.send("GET /unknown HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");

    let rest = String::from_utf8(client.rest()).expect("text");
    assert!(rest.ends_with("\r\n\r\nabc") && !rest.contains("keep-alive"), "{rest}");
}

#[test]
fn an_answer_to_head_is_recorded_as_what_it_was() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service).replace("/**", "/here"));
    let mut client = gateway.connect();

    client.send("HEAD /nowhere HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.answer_without_body();
    assert_eq!(answer.status, 404);
    assert!(answer.field("content-length").is_some_and(|length| length != "0"), "{answer:?}");
    client.send(GET.replace(" / ", " /here "));

    assert_eq!(client.answer().status, 200);
    let seen = "northgate_http_requests_total{route=\"_none\",method=\"HEAD\",code=\"404\"}";
    eventually("the count of it", || gateway.metric(seen) == 1.0);
}

#[test]
fn an_answer_has_one_date() {
    let service = Upstream::start(|seen| match seen.target() {
        "/dated" => {
            b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n"
                .to_vec()
        }
        _ => ok(""),
    });
    let gateway = Gateway::start("", &open(&service));

    assert_eq!(gateway.get("/dated", "").fields("date"), ["Sun, 06 Nov 1994 08:49:37 GMT"]);
    let dates = gateway.get("/", "");
    let date = dates.field("date").expect("a date");
    assert!(date.ends_with(" GMT") && date.len() == 29, "{date}");
}

/// A client that disconnects while it waits for a response or the rest of one, whatever it has sent meanwhile, holds
/// nothing of an upstream.
#[test]
fn a_client_that_goes_away_takes_its_request_along() {
    for (begun, more) in [(false, ""), (true, ""), (false, "\r\n"), (true, "GET /ne")] {
        let service = Upstream::by_hand(move |mut stream, connection, seen| {
            let mut reading = Reading::new(&stream);
            let Some(head) = reading.until(b"\r\n\r\n") else { return };
            if begun {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
                stream.write_all(head).expect("a reader");
            }
            seen(Seen::head(connection, &head));
            // Only the gateway's closing ends this.
            let _ = stream.read(&mut [0]);
            seen(Seen::head(connection, b"GET /closed HTTP/1.1\r\n\r\n"));
        });
        let gateway = Gateway::start("", &open(&service));
        let mut client = gateway.connect();
        client.send(format!("{GET}{more}"));
        if begun {
            client.until(b"1\r\na\r\n").expect("the beginning");
        }
        service.reached(1);

        client.stream.shutdown(Shutdown::Both).expect("a connection");

        service.reached(2);
        let gone = "northgate_http_requests_total{route=\"open\",method=\"GET\",code=\"499\"}";
        eventually("the count of it", || gateway.metric(gone) == 1.0);
    }
}

#[test]
fn an_early_answer_is_recorded_as_what_it_was() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        if reading.until(b"\r\n\r\n").is_some() {
            stream.write_all(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n").expect("a reader");
            let _ = stream.read(&mut [0]);
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");

    assert_eq!(client.answer().status, 401);
    drop(client);
    let answered = "northgate_http_requests_total{route=\"open\",method=\"POST\",code=\"401\"}";
    eventually("the count of it", || gateway.metric(answered) == 1.0);
}

/// The service has done nothing wrong.
#[test]
fn a_client_that_goes_away_in_mid_upload_is_recorded_as_gone() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        if reading.until(b"\r\n\r\n").is_some() {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n";
            stream.write_all(head).expect("a reader");
            while stream.read(&mut [0; 1000]).is_ok_and(|count| count > 0) {}
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc");
    client.until(b"1\r\na\r\n").expect("the beginning");

    client.stream.shutdown(Shutdown::Both).expect("a connection");

    let gone = "northgate_http_requests_total{route=\"open\",method=\"POST\",code=\"499\"}";
    eventually("the count of it", || gateway.metric(gone) == 1.0);
}

/// RFC 9112 §8: what ends with its connection must not seem to be whole.
#[test]
fn half_an_answer_to_http_1_0_ends_in_a_reset() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        if reading.until(b"\r\n\r\n").is_some() {
            let half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab";
            stream.write_all(half).expect("a reader");
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");

    let mut all = Vec::new();
    let ended = client.stream.read_to_end(&mut all);
    assert!(ended.is_err(), "{:?}", String::from_utf8_lossy(&all));
}

/// What a client cannot buy with a byte now and then, or by reading late.
#[test]
fn an_answer_to_http_1_0_that_is_given_up_ends_in_a_reset() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        if reading.until(b"\r\n\r\n").is_some() {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            while stream.write_all(chunk.as_bytes()).is_ok() {}
        }
    });
    let gateway = Gateway::start("body_timeout: 500ms", &open(&service));
    let mut client = gateway.connect();

    client.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n");

    let open = "northgate_connections{listener=\"127.0.0.1:0\",protocol=\"http1\"}";
    eventually("the connection's opening", || gateway.metric(open) > 0.0);
    eventually("the connection's end", || gateway.metric(open) == 0.0);
    assert!(client.stream.read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn empty_lines_before_a_request_mean_nothing() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    for before in ["\r\n", "\r\n\r\n\r\n"] {
        client.send(format!("{before}{GET}"));
        assert_eq!(client.answer().status, 200);
    }
}
