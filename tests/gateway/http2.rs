//! HTTP/2 in, HTTP/1.1 out: nothing malformed gets through (RFC 9113 §8; security.md rules 29–31).

use std::io::{Read, Write};

use http::{Request, StatusCode};

use crate::support::{
    Gateway, Http2, Http2Client, Outcome, Reading, Seen, Upstream, eventually, ok, open,
};

type Fields<'a> = &'a [(&'a str, &'a str)];

const HEAD: Fields<'_> =
    &[(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

#[test]
fn a_request_arrives_as_it_was_meant() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut http2 = Http2::connect(&gateway);

    http2.head(1, &with(HEAD, &[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]), false);
    http2.data(1, "body", true);

    assert_eq!(http2.outcome(1), Outcome::Answered(200));
    let seen = service.only();
    assert_eq!((seen.line(), &*seen.body), ("POST / HTTP/1.1", &b"body"[..]));
    assert_eq!(seen.field("x-forwarded-host"), Some("a"));
    assert_eq!(seen.field("cookie"), Some("a=1; b=2"), "crumbs are joined (RFC 9113 §8.2.3)");
}

#[test]
fn fields_that_mean_something_else_in_http_1_are_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for field in [
        ("Upper", "x"),
        ("", "x"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "x"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("x-a", "b\r\nx-injected: 1"),
        ("x-a", "b\nx-injected: 1"),
        ("x-a", "b\0c"),
        ("x-a\r\nx-b", "c"),
        ("x a", "b"),
        (":path", "/late"),
        (":unknown", "x"),
        (":status", "200"),
        ("host", "other"),
        ("content-length", "5"),
        ("content-length", "+0"),
        ("x-a", " b"),
        ("x-a", "b "),
        ("x-a", "\tb"),
    ] {
        let mut http2 = Http2::connect(&gateway);
        http2.head(1, &with(HEAD, &[field]), true);
        let outcome = http2.outcome(1);
        assert!(refused(outcome), "{field:?}: {outcome:?}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn a_request_line_that_is_none_is_refused() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    let heads: [Fields<'_>; 15] = [
        &[(":scheme", "http"), (":authority", "a"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a")],
        &[(":method", "GET"), (":authority", "a"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":path", "/")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "x")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "*")],
        &[(":method", "G T"), (":scheme", "http"), (":authority", "a"), (":path", "/")],
        &[
            (":method", "GET"),
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/"),
        ],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "u@a"), (":path", "/")],
        &[
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/ HTTP/1.1\r\nx: y"),
        ],
        &[(":method", "CONNECT"), (":authority", "a:80")],
        &[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "?q")],
        &[(":method", "GET"), (":scheme", "ftp"), (":authority", "a"), (":path", "/")],
        &[(":method", "GET"), (":scheme", ""), (":authority", "a"), (":path", "/")],
    ];
    for head in heads {
        let mut http2 = Http2::connect(&gateway);
        http2.head(1, head, true);
        let outcome = http2.outcome(1);
        assert!(refused(outcome), "{head:?}: {outcome:?}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// CVE-2021-21295
#[test]
fn a_body_of_another_length_than_it_says_is_no_whole_request() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for (length, body) in [("3", "GET /smuggled"), ("100", "short")] {
        let mut http2 = Http2::connect(&gateway);
        http2.head(1, &with(HEAD, &[("content-length", length)]), false);
        http2.data(1, body, true);
        let outcome = http2.outcome(1);
        assert!(refused(outcome), "{length}: {outcome:?}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

#[test]
fn sizes_are_bounded_as_in_http_1() {
    let service = Upstream::polite();
    let gateway = Gateway::start(
        "max_header_size: 8KiB, max_headers: 20, max_body_size: 10B",
        &open(&service),
    );

    let names: Vec<String> = (0..30).map(|number| format!("x-{number}")).collect();
    let many: Vec<_> = names.iter().map(|name| (&**name, "")).collect();
    let mut http2 = Http2::connect(&gateway);
    http2.head(1, &with(HEAD, &many), true);
    assert_eq!(http2.outcome(1), Outcome::Answered(431));

    let large = "a".repeat(9000);
    let mut http2 = Http2::connect(&gateway);
    http2.head(1, &with(HEAD, &[("x-a", &large)]), true);
    let outcome = http2.outcome(1);
    assert!(refused(outcome), "{outcome:?}");

    for length in [66_000, 90_000] {
        let (value, mut http2) = ("a".repeat(length), Http2::connect(&gateway));
        http2.head(1, &with(HEAD, &[("x-a", &value)]), true);
        assert_eq!(http2.outcome(1), Outcome::Answered(431), "{length}");
    }

    for length in [66_000, 100_000, 140_000] {
        let (path, mut http2) = (format!("/{}", "a".repeat(length)), Http2::connect(&gateway));
        let get = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", &*path)];
        http2.head(1, &get, true);
        assert_eq!(http2.outcome(1), Outcome::Answered(414), "{length}");
    }

    let mut http2 = Http2::connect(&gateway);
    http2.head(1, HEAD, false);
    http2.data(1, "more than ten bytes", true);
    assert_eq!(http2.outcome(1), Outcome::Answered(413));
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
}

/// Cookies come with every request: without the field their owner would get nothing but 431 from then on.
#[test]
fn a_browser_with_too_many_cookies_is_told_to_delete_them_on_a_page() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for length in [33_000, 60_000, 120_000, 200_000, 720_000] {
        let cookie = format!("a={}", "x".repeat(length));
        let head = Http2Client::run(&gateway, async |client| {
            let request = Request::get("http://a/").header("accept", "text/html");
            let request = request.header("cookie", &cookie).body(());
            client.begin(request.expect("a request"), true).await.0.await.expect("a response")
        });
        assert_eq!(head.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "{length}");
        assert_eq!(head.headers()["clear-site-data"], "\"cookies\"", "{length}");
        assert_eq!(head.headers()["content-type"], "text/html; charset=utf-8", "{length}");
    }
    let large = format!("Accept: text/html\r\nCookie: a={}\r\n", "x".repeat(120_000));
    let answer = gateway.get("/", &large);
    assert_eq!((answer.status, answer.field("clear-site-data")), (431, Some("\"cookies\"")));
    assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
    assert!(service.seen().is_empty());
}

/// A page of another site chooses the target, and up to 4 KiB of `Referer`.
#[test]
fn no_page_can_have_the_cookies_of_its_visitor_deleted() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for (length, referer, cookies, status) in [
        (30_000, 4_000, 0, 431),
        (28_000, 0, 8_000, 431),
        (32_760, 0, 0, 431),
        (33_000, 0, 8_000, 414),
        (40_000, 4_000, 8_000, 414),
    ] {
        let target = format!("/{}", "a".repeat(length));
        let (referer, cookie) = ("r".repeat(referer), format!("a={}", "x".repeat(cookies)));
        let request = || Request::get(format!("http://a{target}")).header("referer", &referer);
        let head = Http2Client::run(&gateway, async |client| {
            let request = request().header("cookie", &cookie).body(()).expect("a request");
            client.begin(request, true).await.0.await.expect("a response")
        });
        let answer = gateway.get(&target, &format!("Referer: {referer}\r\nCookie: {cookie}\r\n"));
        assert_eq!((head.status().as_u16(), answer.status), (status, status), "{length}");
        assert_eq!(
            (head.headers().get("clear-site-data"), answer.field("clear-site-data")),
            (None, None)
        );
    }
    let picture = format!(
        "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nCookie: a={}\r\n",
        "x".repeat(33_000)
    );
    let answer = gateway.get("/", &picture);
    assert_eq!((answer.status, answer.field("clear-site-data")), (431, None));
    assert!(service.seen().is_empty());
}

/// CVE-2023-44487
#[test]
fn a_flood_of_resets_ends_the_connection() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut http2 = Http2::connect(&gateway);

    for number in 0..20_000 {
        let stream = number * 2 + 1;
        http2.head(stream, HEAD, true);
        if http2.reset(stream).is_err() {
            break;
        }
    }

    assert_eq!(http2.outcome(1_000_001), Outcome::Closed);
    assert_eq!(gateway.get("/", "").status, 200, "others are served");
}

/// CVE-2019-9512, CVE-2019-9515
#[test]
fn a_flood_of_frames_that_bring_nothing_ends_the_connection() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for (kind, payload) in [(PING, &[7; 8][..]), (SETTINGS, &[]), (0x55, &[])] {
        let mut http2 = Http2::connect(&gateway);
        http2.flood(kind, payload, 5_000).expect("a client may measure its line");
        http2.head(1, HEAD, true);
        assert_eq!(http2.outcome(1), Outcome::Answered(200), "{kind}");

        while http2.flood(kind, payload, 5_000).is_ok() {}

        assert_eq!(http2.outcome(3), Outcome::Closed, "{kind}");
    }
    eventually("the count of the floods", || gateway.metric(BAD_REQUESTS) == 3.0);
    assert_eq!(gateway.get("/", "").status, 200, "others are served");
}

/// CVE-2026-49975: a client that grants no window holds neither the answer nor the service's connection.
#[test]
fn a_stream_whose_client_takes_nothing_is_reset_and_the_others_go_on() {
    let large = "x".repeat(1 << 20);
    let service =
        Upstream::start(move |seen| ok(if seen.target() == "/large" { &large } else { "fine" }));
    let gateway = Gateway::start("body_timeout: 500ms", &open(&service));
    let mut http2 = Http2::connect(&gateway);
    let get =
        |path| [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)];

    // The window is 64 KiB at first, and nothing is ever added to it.
    http2.head(1, &get("/large"), true);
    assert_eq!(http2.outcome(1), Outcome::Answered(200));
    assert_eq!(http2.outcome(1), Outcome::Reset);

    http2.head(3, &get("/small"), true);
    assert_eq!(http2.outcome(3), Outcome::Answered(200));
}

/// CVE-2025-8671: streams that the gateway itself must reset are counted too.
#[test]
fn a_flood_of_faults_ends_the_connection() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut http2 = Http2::connect(&gateway);

    for number in 0..1000 {
        http2.head(number * 2 + 1, &with(HEAD, &[("connection", "close")]), true);
    }

    assert_eq!(http2.outcome(1_000_001), Outcome::Closed);
    assert!(service.seen().is_empty());
    assert_eq!(gateway.get("/", "").status, 200, "others are served");
}

/// A mistake now and then is no attack: only a flood of them is.
#[test]
fn a_client_that_makes_mistakes_keeps_its_connection_and_each_is_counted() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let mut http2 = Http2::connect(&gateway);

    for number in 0..100 {
        let stream = number * 2 + 1;
        http2.head(stream, &with(HEAD, &[("connection", "close")]), true);
        let outcome = http2.outcome(stream);
        assert!(
            matches!(outcome, Outcome::Reset | Outcome::Answered(400)),
            "{number}: {outcome:?}"
        );
    }

    http2.head(1001, HEAD, true);
    assert_eq!(http2.outcome(1001), Outcome::Answered(200));
    eventually("the count of them", || gateway.metric(BAD_REQUESTS) == 100.0);
}

/// The library below gives up the whole connection for these.
#[test]
fn a_fault_that_ends_the_connection_is_counted() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for (count, value) in (1_u8..).zip(["a\u{1}b", "a\u{7f}b", "a\0b"]) {
        let mut http2 = Http2::connect(&gateway);
        http2.head(1, &with(HEAD, &[("x-a", value)]), true);
        assert_eq!(http2.outcome(1), Outcome::Closed, "{value:?}");
        eventually("the count of it", || gateway.metric(BAD_REQUESTS) == f64::from(count));
    }
    assert!(service.seen().is_empty());
}

/// One byte stands for a field that takes a hundred in memory (RFC 7541 §6.1): a block of a few kilobytes is no head.
#[test]
fn a_head_of_more_fields_than_clients_send_is_refused_and_its_connection_goes_on() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    let begins = b"\x82\x86\x04\x01/\x01\x01a";
    // `accept-charset`, without a value.
    let fields = |count: usize| [&begins[..], &vec![0x8f; count]].concat();

    for (count, is_in_pieces) in [(5_000, false), (14_000, false), (12_000, true), (20_000, true)] {
        let mut http2 = Http2::connect(&gateway);
        let block = fields(count);
        if is_in_pieces {
            http2.pieces(1, &block, 8_000);
        } else {
            http2.block(1, &block, true);
        }
        assert_eq!(http2.outcome(1), Outcome::Reset, "{count} fields");
        http2.head(3, HEAD, true);
        assert_eq!(http2.outcome(3), Outcome::Answered(200), "behind {count} fields");
    }
    assert!(service.seen().iter().all(|seen| seen.target() == "/"), "{:#?}", service.seen());
}

/// RFC 9113 §8.3.1: a target has no fragment. The library below cuts one off without a word.
#[test]
fn a_fragment_in_a_path_is_refused_however_it_is_written() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    // `:method: GET`, `:scheme: http`, and `:authority: a`.
    let begins = b"\x82\x86\x01\x01a";

    for path in [
        &b"\x04\x04/a#b"[..],
        b"\x04\x05/?a#b",
        b"\x04\x02/#",
        b"\x44\x04/a#b",
        b"\x14\x04/a#b",
        b"\x00\x05:path\x04/a#b",
        // `/a#b` in Huffman's code.
        b"\x04\x84\x60\x7f\xf5\x1f",
        b"\x44\x84\x60\x7f\xf5\x1f",
    ] {
        let mut http2 = Http2::connect(&gateway);
        http2.block(1, &[begins, path].concat(), true);
        let outcome = http2.outcome(1);
        assert!(refused(outcome), "{path:?}: {outcome:?}");
        if path[0] == 0x44 {
            // The client's table holds it by now, behind nothing else.
            http2.block(3, &[&begins[..], b"\xbe"].concat(), true);
            assert!(refused(http2.outcome(3)), "{path:?} by its index");
        }
        http2.block(5, &[&begins[..], b"\x04\x06/a%23b"].concat(), true);
        assert_eq!(http2.outcome(5), Outcome::Answered(200), "escaped, it is a part of the path");
    }
    assert!(service.seen().iter().all(|seen| seen.target() == "/a%23b"), "{:#?}", service.seen());
}

/// Content that no service reads fills its stream's window, and only that.
#[test]
fn uploads_that_stall_do_not_stop_the_others_of_their_connection() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let Some(head) = reading.until(b"\r\n\r\n") else { return };
        let request = Seen::head(connection, &head);
        let stalls = request.target() == "/stall";
        seen(request);
        if stalls {
            let small = socket2::SockRef::from(&stream).set_recv_buffer_size(4096);
            small.expect("a socket");
            std::thread::sleep(core::time::Duration::from_secs(20));
        } else {
            let mut end = Vec::new();
            while !end.ends_with(b"0\r\n\r\n") {
                let mut piece = [0; 64 * 1024];
                let count = stream.read(&mut piece).expect("more of it");
                end.extend_from_slice(&piece[..count]);
                end.drain(..end.len().saturating_sub(16));
            }
            let _ = stream.write_all(&ok("fine"));
        }
    });
    let gateway = Gateway::start("http2_max_concurrent_streams: 8", &open(&service));
    let mut http2 = Http2::connect(&gateway);
    let head =
        |path| [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", path)];
    let moment = core::time::Duration::from_millis(300);

    for stream in [1, 3, 5, 7, 9, 11, 13] {
        http2.head(stream, &head("/stall"), false);
        let sent = http2.upload(stream, 16 << 20, moment);
        assert!(sent < 16 << 20, "{stream} does not stall");
    }
    http2.head(15, &head("/live"), false);

    let size = 1 << 19;
    assert_eq!(http2.upload(15, size, core::time::Duration::from_secs(5)), size);
    assert_eq!(http2.outcome(15), Outcome::Answered(200));
}

fn with<'a>(head: Fields<'a>, more: Fields<'a>) -> Vec<(&'a str, &'a str)> {
    head.iter().chain(more).copied().collect()
}

fn refused(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Reset | Outcome::Closed | Outcome::Answered(400..=499))
}

const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const BAD_REQUESTS: &str =
    "northgate_http_rejections_total{route=\"_none\",reason=\"bad_request\"}";
