//! One request never becomes two, and what a service sees is what the gateway judged (security.md rules 19–28).

use std::io::Write;

use crate::support::{Gateway, Reading, Upstream, ok, open};

/// Whatever is sent after an ambiguous request must not be taken for a request.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// RFC 9112 §6.3; hyper #4123
#[test]
fn a_length_beside_chunks_is_refused_in_either_order_and_the_connection_closed() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let body = "3\r\nabc\r\n0\r\n\r\n";

    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\nContent-Length: 7",
        "TRANSFER-ENCODING: chunked\r\nX-A: b\r\ncontent-length: nonsense",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length:",
    ] {
        // In one piece, in many, and behind another request.
        for (pieces, before) in [
            (1, ""),
            (7, ""),
            (1, "POST /first HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody"),
        ] {
            let mut client = gateway.connect();
            let text =
                format!("{before}POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n{body}{SMUGGLED}");
            for piece in text.as_bytes().chunks(text.len().div_ceil(pieces)) {
                let _ = client.try_send(piece);
            }
            if !before.is_empty() {
                assert_eq!(client.answer().status, 200, "{fields}");
            }
            assert_eq!(client.answer().status, 400, "{fields}");
            assert!(client.is_closed(), "{fields}: the connection goes on");
        }
    }
    let seen = service.seen();
    assert!(seen.iter().all(|seen| seen.target() == "/first"), "{seen:#?}");
}

/// RFC 9112 §6.1: a transfer coding that the gateway does not decode is refused as such.
#[test]
fn a_coding_that_is_not_known_is_501_and_the_connection_closed() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for fields in ["gzip, chunked", "x, chunked", "gzip\r\nTransfer-Encoding: chunked"] {
        let mut client = gateway.connect();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {fields}\r\n\r\n0\r\n\r\n{SMUGGLED}"
        ));
        assert_eq!(client.answer().status, 501, "{fields}");
        assert!(client.is_closed(), "{fields}: the connection goes on");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn lines_that_end_in_a_bare_line_feed_are_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for head in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\nX-A: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
    ] {
        let mut client = gateway.connect();
        client.send(format!("{head}{SMUGGLED}"));
        assert_eq!(client.answer().status, 400, "{head:?}");
        assert!(client.is_closed(), "{head:?}: the connection goes on");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn an_ambiguous_framing_is_refused_and_the_connection_closed() {
    refuses_and_closes(&[
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chunked;q=1\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chun\0ked\r\n",
    ]);
}

#[test]
fn a_length_that_is_no_number_is_refused() {
    refuses_and_closes(&[
        "Content-Length: +5\r\n",
        "Content-Length: -5\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 5a\r\n",
        "Content-Length:\r\n",
        "Content-Length: \r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Content-Length: ,5\r\n",
        "Content-Length : 5\r\n",
        "Content-Length: ٥\r\n",
    ]);
}

#[test]
fn fields_that_two_readers_read_in_two_ways_are_refused() {
    refuses_and_closes(&[
        "X-A : b\r\n",
        ": b\r\n",
        "X A: b\r\n",
        "X-A: b\rX-B: c\r\n",
        "X-A: b\0c\r\n",
        "X-A: b\r\n folded\r\n",
        "X-A\r\n",
        "X(A): b\r\n",
        "X-Ä: b\r\n",
        " X-A: b\r\n",
    ]);
}

#[test]
fn a_request_line_that_two_readers_read_in_two_ways_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for line in [
        "GET /a b HTTP/1.1",
        "GET /a HTTP/1.1 x",
        "GET\t/a\tHTTP/1.1",
        "GET a HTTP/1.1",
        "GET  HTTP/1.1",
        "G@T /a HTTP/1.1",
        "GET /a HTTP/2.0",
        "GET /a HTTP/1.2",
        "GET /a http/1.1",
        "GET /a\x01b HTTP/1.1",
        "GET /a\x7fb HTTP/1.1",
        "CONNECT a:80 HTTP/1.1",
        "TRACE / HTTP/1.1",
    ] {
        let mut client = gateway.connect();
        client.send(format!("{line}\r\nHost: a\r\n\r\n"));
        let status = client.try_answer().map(|answer| answer.status);
        assert!(matches!(status, Some(400 | 404 | 405 | 505) | None), "{line}: {status:?}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// CVE-2023-45539, CVE-2021-32779: a target has no fragment (RFC 9112 §3.2).
#[test]
fn a_fragment_in_the_target_is_refused() {
    let service = Upstream::polite();
    let rest = format!(
        "{}  - {{ id: closed, path: /closed, upstream: service, auth: none, enabled: false }}\n",
        open(&service)
    );
    let gateway = Gateway::start("", &rest);

    for target in ["/open#/../closed", "/closed#open", "/a?b#c", "#", "http://a/#b"] {
        let answer = gateway.ask(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(answer.status, 400, "{target}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// CVE-2021-32714 (17 hex digits), CVE-2025-22871 (bare LF), and their relatives.
#[test]
fn a_broken_chunk_ends_the_connection_and_the_service_sees_no_whole_request() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for body in [
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "3 3\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "g\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3;a=b\nc\r\nabc\r\n0\r\n\r\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\t\r\nabc\r\n0\r\n\r\n",
        "3;\0\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3\r\nabc\r\n0\r\nA: b\n\r\n",
    ] {
        let mut client = gateway.connect();
        client.send(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}{SMUGGLED}"
        ));
        let status = client.try_answer().map(|answer| answer.status);
        assert!(matches!(status, Some(400) | None), "{body:?}: {status:?}");
        assert!(client.is_closed(), "{body:?}: the connection goes on");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// hyper #3495
#[test]
fn chunk_extensions_are_dropped_and_bounded() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    let answer = gateway.ask(&format!("{head}3;x=y\r\nabc\r\n0;z\r\n\r\n"));
    assert_eq!(answer.status, 200);
    assert_eq!(service.only().body, b"abc");

    let mut client = gateway.connect();
    let _ = client.try_send(format!("{head}3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(100_000)));
    let status = client.try_answer().map(|answer| answer.status);
    assert!(matches!(status, Some(400) | None), "{status:?}");
    assert_eq!(service.seen().len(), 1);
}

/// CVE-2026-2835
#[test]
fn http_1_0_with_chunks_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send(format!(
        "POST / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
    ));

    assert_eq!(client.try_answer().map_or(400, |answer| answer.status), 400);
    assert!(client.is_closed());
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// CVE-2026-29057: methods that usually have no body keep their framing.
#[test]
fn a_body_is_framed_as_it_came_whatever_the_method() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for method in ["DELETE", "OPTIONS", "GET", "POST"] {
        let mut client = gateway.connect();
        client.send(format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
             {:x}\r\n{SMUGGLED}\r\n0\r\n\r\n",
            SMUGGLED.len()
        ));
        assert_eq!(client.answer().status, 200, "{method}");
    }

    let seen = service.seen();
    assert_eq!(seen.len(), 4, "{seen:#?}");
    assert!(seen.iter().all(|seen| seen.body == SMUGGLED.as_bytes()), "{seen:#?}");
}

/// CVE-2019-20372, CVE-2025-4366: what is left of a refused request's body is not a request.
#[test]
fn the_body_of_a_refused_request_is_never_read_as_a_request() {
    let service = Upstream::polite();
    let rest = format!(
        "{}  - {{ id: closed, path: /closed, upstream: service, auth: none, enabled: false }}\n",
        open(&service)
    );
    let gateway = Gateway::start("max_body_size: 10B", &rest);

    for (head, refusal) in [
        (format!("POST /closed HTTP/1.1\r\nHost: a\r\nContent-Length: {}", SMUGGLED.len()), 404),
        (format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}", SMUGGLED.len()), 413),
        (format!("POST /%zz HTTP/1.1\r\nHost: a\r\nContent-Length: {}", SMUGGLED.len()), 400),
    ] {
        let mut client = gateway.connect();
        client.send(format!("{head}\r\n\r\n{SMUGGLED}"));
        assert_eq!(client.answer().status, refusal);
        assert!(
            client.try_send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n").is_err() || {
                let next = client.try_answer();
                next.is_none_or(|answer| answer.status == 200)
            }
        );
    }
    assert!(service.seen().iter().all(|seen| seen.target() == "/next"), "{:#?}", service.seen());
}

/// CVE-2025-4366: the service answers before the body has come.
#[test]
fn the_rest_of_a_body_whose_answer_came_early_is_never_read_as_a_request() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reader = Reading::new(&stream);
        while let Some(mut request) = reader.head(connection) {
            stream.write_all(&ok("early")).expect("a reader");
            let whole = reader.body(&mut request).is_some();
            seen(request);
            if !whole {
                return;
            }
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client
        .send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", SMUGGLED.len()));
    assert_eq!(client.answer().text(), "early");
    // Another client's request must not land behind half a body.
    let (half, rest) = SMUGGLED.split_at(SMUGGLED.len() / 2);
    client.send(half);
    assert_eq!(gateway.get("/other", "").text(), "early");
    client.send(rest);
    client.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");

    assert_eq!(client.answer().status, 200);
    service.reached(3);
    let seen = service.seen();
    assert!(seen.iter().all(|seen| seen.target() != "/smuggled"), "{seen:#?}");
    let other = seen.iter().find(|seen| seen.target() == "/other").expect("it arrived");
    assert_ne!(other.connection, 0, "half a body was on the first connection");
    let first = seen.iter().find(|seen| seen.target() == "/").expect("it arrived");
    assert_eq!(first.body, SMUGGLED.as_bytes(), "and all of it in the end");
}

/// CVE-2024-28869, CVE-2026-33555: a body that breaks off is never forwarded as a whole one.
#[test]
fn a_body_that_breaks_off_is_not_whole_to_the_service() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for start in ["Content-Length: 5\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"]
    {
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{start}"));
        client.finish();
        let status = client.try_answer().map(|answer| answer.status);
        assert!(matches!(status, Some(400) | None), "{status:?}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn trailers_cannot_say_who_the_caller_is_or_where_the_message_ends() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    let mut client = gateway.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\
         Trailer: X-Good, X-Auth-Subject, Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nX-Good: 1\r\nX-Auth-Subject: root\r\nx_auth_subject: root\r\nAuthorization: Bearer x\r\n\
         Content-Length: 100\r\nTransfer-Encoding: chunked\r\nHost: evil\r\nX-Forwarded-For: 6.6.6.6\r\n\
         X_Forwarded_User: root\r\ntransfer_encoding: chunked\r\nVia: 1.1 evil\r\nKeep-Alive: a\r\n\
         Cookie: a=b\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(client.answer().status, 200);

    let trailers = service.only().trailers.to_ascii_lowercase();
    for name in [
        "x-auth-subject",
        "x_auth_subject",
        "authorization",
        "content-length",
        "transfer-encoding",
        "host",
        "x-forwarded-for",
        "cookie",
        "connection",
        "x_forwarded_user",
        "transfer_encoding",
        "via",
        "keep-alive",
    ] {
        assert!(!trailers.contains(name), "{trailers}");
    }
}

#[test]
fn trailers_have_no_field_that_a_route_removes_or_sets_and_no_token() {
    let service = Upstream::polite();
    let edits = "auth: none, headers: { request: { remove: [X-Debug], set: { X-Fix: fixed } } } }";
    let rest = open(&service).replace("auth: none }", edits)
        + "  - { id: token, path: /token, upstream: service, auth: { jwt: main, token_from: { header: X-Token } } }\n\
           issuers: { main: { issuer: \"https://i.test\", audience: a, discovery: off, jwks_uri: \"https://i.test/jwks\" } }\n";
    let gateway = Gateway::start("", &rest);

    let mut client = gateway.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\r\na\r\n0\r\nX-Debug: 1\r\nx_debug: 1\r\nX-Fix: evil\r\nx.fix: evil\r\nX-Token: forged\r\n\
         x_token: forged\r\nDPoP: forged\r\nX-Good: 1\r\n\r\n",
    );
    assert_eq!(client.answer().status, 200);

    assert_eq!(service.only().trailers.to_ascii_lowercase(), "x-good: 1\r\n");
}

#[test]
fn an_answer_with_two_framings_is_a_broken_service() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok!",
        "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nX-A: b\0c\r\nContent-Length: 2\r\n\r\nok",
        "garbage\r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let service = Upstream::start(move |_| answer.as_bytes().to_vec());
        let gateway = Gateway::start("", &open(&service));

        assert_eq!(gateway.get("/", "").status, 502, "{answer:?}");
    }
}

#[test]
fn an_answer_that_breaks_off_breaks_off_at_the_client_too() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n4\r\nhalf\r\n",
    ] {
        let service = Upstream::start(move |_| answer.as_bytes().to_vec());
        let gateway = Gateway::start("", &open(&service));
        let mut client = gateway.connect();

        client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");

        let all = String::from_utf8(client.rest()).expect("text");
        if all.starts_with("HTTP/1.1 502") {
            continue;
        }
        assert!(all.is_empty() || all.starts_with("HTTP/1.1 200"), "{all}");
        assert!(!all.ends_with("0\r\n\r\n"), "a broken answer looks whole: {all}");
    }
}

/// CVE-2025-62409
#[test]
fn bytes_beyond_an_answer_are_never_the_next_answer() {
    let service = Upstream::start(|seen| {
        let mut bytes = ok("own");
        if seen.target() == "/first" {
            bytes.extend(ok("poison"));
        }
        bytes
    });
    let gateway = Gateway::start("", &open(&service));

    assert_eq!(gateway.get("/first", "").text(), "own");
    assert_eq!(gateway.get("/second", "").text(), "own");
}

/// CVE-2021-40346
#[test]
fn a_very_long_name_hides_nothing() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let name = format!("content-length0{}", "a".repeat(255));
    let mut client = gateway.connect();

    client
        .send(format!("POST / HTTP/1.1\r\nHost: a\r\n{name}: 0\r\nContent-Length: 4\r\n\r\nbody"));

    assert_eq!(client.answer().status, 200);
    assert_eq!(service.only().body, b"body");
}

#[test]
fn pipelined_requests_are_answered_in_turn() {
    let service = Upstream::start(|seen| ok(seen.target()));
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send(
        "POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
    );

    let answers = [client.answer(), client.answer(), client.answer()];
    assert_eq!(answers.each_ref().map(|answer| answer.text()), ["/1", "/2", "/3"]);
}

/// Sends a `POST` with each of these fields and a smuggled request behind it: it is refused, and nothing is forwarded.
fn refuses_and_closes(fields: &[&str]) {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    for field in fields {
        let mut client = gateway.connect();
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n0\r\n\r\n{SMUGGLED}"));
        let status = client.try_answer().map(|answer| answer.status);
        assert!(matches!(status, Some(400 | 501) | None), "{field:?}: {status:?}");
        assert!(client.is_closed(), "{field:?}: the connection goes on");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}
