//! What stays open is bounded like all else: by places, by time, and by who may open it (RFC 6455 §4).

use std::io::{ErrorKind, Read, Write};
use std::thread;

use crate::support::{Client, Gateway, Http2, Outcome, Reading, Upstream, eventually, open};

const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
const ACCEPT: &str = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

#[test]
fn a_service_that_says_101_without_having_read_the_key_opens_no_tunnel() {
    for accept in [
        "",
        "Sec-WebSocket-Accept: yes\r\n",
        "Sec-WebSocket-Accept: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xoo=\r\n",
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Accept: yes\r\n",
    ] {
        let service = echoing(accept.to_owned());
        let gateway = Gateway::start("", &open(&service));
        let answer = gateway.get("/", &handshake(KEY, VERSION));
        assert_eq!(answer.status, 502, "{accept}");
    }
}

#[test]
fn a_101_without_the_connection_option_or_with_two_protocols_opens_no_tunnel() {
    for (line, fields) in [
        ("HTTP/1.1", "Upgrade: websocket\r\n"),
        ("HTTP/1.1", "Upgrade: websocket\r\nConnection: keep-alive\r\n"),
        ("HTTP/1.1", "Upgrade: websocket\r\nConnection: upgraded, x-upgrade\r\n"),
        ("HTTP/1.1", "Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: upgrade\r\n"),
        ("HTTP/1.0", "Upgrade: websocket\r\nConnection: upgrade\r\n"),
    ] {
        let answer = format!("{line} 101 Switching Protocols\r\n{fields}{ACCEPT}\r\nearly");
        let service = Upstream::start(move |_| answer.clone().into_bytes());
        let gateway = Gateway::start("", &open(&service));
        assert_eq!(gateway.get("/", &handshake(KEY, VERSION)).status, 502, "{line} {fields}");
    }
    // One option of several, in any letters, is one.
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nConnection: keep-alive,uPgRaDe\r\n{ACCEPT}\r\n"
    );
    let service = Upstream::start(move |_| answer.clone().into_bytes());
    let gateway = Gateway::start("", &open(&service));
    assert_eq!(gateway.get("/", &handshake(KEY, VERSION)).status, 101);
}

#[test]
fn a_request_that_is_no_handshake_reaches_no_service_as_one() {
    let service = echoing(ACCEPT.to_owned());
    let gateway = Gateway::start("", &open(&service));

    for (key, version) in [
        ("Sec-WebSocket-Key: x\r\n", VERSION),
        ("Sec-WebSocket-Key: \r\n", VERSION),
        ("Sec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n", VERSION),
        (KEY, ""),
        (KEY, "Sec-WebSocket-Version: 8\r\n"),
        (KEY, "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 13\r\n"),
        (&KEY.repeat(2), VERSION),
    ] {
        assert_eq!(gateway.get("/", &handshake(key, version)).status, 400, "{key}{version}");
    }
    assert!(service.seen().is_empty(), "{:#?}", service.seen());
    // Without a key it asks for no WebSocket: what comes back must not be one.
    assert_eq!(gateway.get("/", &handshake("", VERSION)).status, 502);
    assert_eq!(service.only().field("upgrade"), None);
}

#[test]
fn a_websocket_is_a_request_in_flight_for_as_long_as_it_lasts() {
    for (server, route) in [("max_requests_in_flight: 1", ""), ("", ", limits: [slots]")] {
        let service = echoing(ACCEPT.to_owned());
        let rest = format!(
            "limits:\n  slots: {{ concurrency: 1, by: route }}\n{}",
            open(&service).replace("auth: none }", &format!("auth: none{route} }}"))
        );
        let gateway = Gateway::start(server, &rest);
        let mut socket = open_socket(&gateway);

        let refused = gateway.get("/", "").status;
        assert!(matches!(refused, 429 | 503), "{refused}");
        assert_eq!(gateway.get("/", &handshake(KEY, VERSION)).status, refused);
        socket.send("still here");
        assert_eq!(socket.exactly(10), b"still here");
        drop(socket);

        eventually("a free place", || gateway.get("/", &handshake(KEY, VERSION)).status == 101);
    }
}

#[test]
fn a_websocket_takes_a_place_at_its_target_for_as_long_as_it_lasts() {
    let service = echoing(ACCEPT.to_owned());
    let text = open(&service).replace("targets", "max_connections: 1, max_pending: 0, targets");
    let gateway = Gateway::start("", &text);
    let socket = open_socket(&gateway);

    assert_eq!(gateway.get("/", &handshake(KEY, VERSION)).status, 503);
    assert_eq!(gateway.metric(ACTIVE), 1.0);
    drop(socket);

    eventually("a free place", || gateway.get("/", &handshake(KEY, VERSION)).status == 101);
}

#[test]
fn a_websocket_lasts_no_longer_than_streams_may() {
    let service = echoing(ACCEPT.to_owned());
    let gateway = Gateway::start("", &bounded(&service));
    let mut socket = open_socket(&gateway);
    socket.send("hello");
    assert_eq!(socket.exactly(5), b"hello");

    assert!(socket.is_closed());
}

#[test]
fn a_websocket_whose_client_reads_nothing_ends_in_a_reset() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let Some(request) = Reading::new(&stream).request(connection) else { return };
        seen(request);
        let _ = stream.write_all(format!("{SWITCHING}{ACCEPT}\r\n").as_bytes());
        while stream.write_all(&[b'x'; 0x4000]).is_ok() {}
    });
    let gateway = Gateway::start("", &bounded(&service));
    let mut client = open_socket(&gateway);

    eventually("no connection", || gateway.metric(&connections("http1")) == 0.0);

    let end = client.stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
}

#[test]
fn an_answer_lasts_no_longer_than_streams_may_whatever_its_reader_does() {
    // A length that the fastest reader does not come to the end of: a gigabyte goes through in a second.
    for framing in ["Transfer-Encoding: chunked\r\n", "Content-Length: 1000000000000000\r\n", ""] {
        let service = endless(framing);
        let gateway = Gateway::start("", &bounded(&service));

        // One reads as fast as it can, one a little now and then, one nothing at all.
        let ask = || {
            let mut client = gateway.connect();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            client
        };
        let (mut fast, mut slow, mut still) = (ask(), ask(), ask());
        let fast = thread::spawn(move || {
            let mut some = vec![0; 1 << 20];
            while fast.stream.read(&mut some).is_ok_and(|count| count > 0) {}
        });
        service.reached(3);
        eventually("the end of all three", || {
            let _ = slow.stream.read(&mut [0; 1000]);
            gateway.metric(&connections("http1")) == 0.0
        });
        eventually("three lines", || overdue(&gateway) == 3);
        fast.join().expect("a reader");
        for client in [&mut slow, &mut still] {
            // What they have not taken is not kept for them.
            let end = client.stream.read_to_end(&mut Vec::new()).map_err(|error| error.kind());
            assert_eq!(end, Err(ErrorKind::ConnectionReset), "{framing}");
        }
        assert_no_fault(&gateway);
    }
}

#[test]
fn an_http2_stream_lasts_no_longer_than_streams_may_whatever_its_reader_does() {
    let service = endless("Content-Length: 1000000000000000\r\n");
    let gateway = Gateway::start("", &bounded(&service));
    // The last one grants everything and does not look at what comes.
    let clients = [(1 << 20, 0), (1, 0), (0, 0), (0, i32::MAX as u32 - 65_535)];
    let clients = clients.map(|(share, ahead)| {
        let mut client = Http2::connect(&gateway);
        client.head(1, &GET, true);
        client.grant(1, ahead);
        thread::spawn(move || {
            if ahead == 0 {
                assert_eq!(client.outcome(1), Outcome::Answered(200));
                assert!(client.is_reset(1, |came| came.min(share)), "{share} granted for each");
            }
            client
        })
    });

    eventually("four lines", || overdue(&gateway) == 4);
    eventually("no connection to the service", || gateway.metric(ACTIVE) == 0.0);
    for client in clients {
        client.join().expect("a reset");
    }
    assert_no_fault(&gateway);
}

/// Whose side has lost its power says no goodbye.
#[cfg(target_os = "linux")]
#[test]
fn the_system_probes_both_sides_of_a_silent_websocket() {
    let service = echoing(ACCEPT.to_owned());
    let gateway = Gateway::start("", &open(&service));
    let socket = open_socket(&gateway);
    let client = socket.stream.local_addr().expect("a socket").port();
    let service: u16 = service.url().rsplit(':').next().expect("a port").parse().expect("a port");

    for (side, peer) in [("client", client), ("service", service)] {
        // The timer of a connection that has nothing in flight is that of the probes (02).
        eventually(&format!("a probe's timer towards the {side}"), || {
            let table = std::fs::read_to_string("/proc/net/tcp").expect("a table");
            table.lines().skip(1).any(|line| {
                let columns: Vec<_> = line.split_whitespace().collect();
                let port = |address: &str| {
                    u16::from_str_radix(address.rsplit(':').next().unwrap_or_default(), 16)
                        .expect("a port")
                };
                let (kind, ticks) = columns[5].split_once(':').expect("a timer");
                let ticks = u32::from_str_radix(ticks, 16).expect("a number");
                port(columns[2]) == peer && kind == "02" && (1..=60 * 100).contains(&ticks)
            })
        });
    }
}

fn connections(protocol: &str) -> String {
    format!("northgate_connections{{listener=\"127.0.0.1:0\",protocol=\"{protocol}\"}}")
}

fn overdue(gateway: &Gateway) -> usize {
    gateway.log().matches("stream-timeout").count()
}

/// That a stream is cut is not the service's doing.
fn assert_no_fault(gateway: &Gateway) {
    let text = gateway.metrics.render();
    let mut errors =
        text.lines().filter(|line| line.starts_with("northgate_upstream_errors_total"));
    assert!(errors.all(|line| line.ends_with(" 0")), "{text}");
}

/// A service that always has more to say.
fn endless(framing: &'static str) -> Upstream {
    Upstream::by_hand(move |mut stream, connection, seen| {
        let Some(request) = Reading::new(&stream).request(connection) else { return };
        seen(request);
        let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{framing}\r\n").as_bytes());
        let piece = format!("4000\r\n{}\r\n", "x".repeat(0x4000)).into_bytes();
        while stream.write_all(&piece).is_ok() {}
    })
}

/// A service that says 101 with these fields, and then whatever it hears.
fn echoing(accept: String) -> Upstream {
    Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let Some(request) = reading.request(connection) else { return };
        seen(request);
        let _ = stream.write_all(format!("{SWITCHING}{accept}\r\n").as_bytes());
        while let Some(byte) = reading.exactly(1) {
            let _ = stream.write_all(&byte);
        }
    })
}

const SWITCHING: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";

fn handshake(key: &str, version: &str) -> String {
    format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{key}{version}")
}

fn open_socket(gateway: &Gateway) -> Client {
    let mut client = gateway.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", handshake(KEY, VERSION)));
    assert_eq!(client.answer().status, 101);
    client
}

/// A service whose answers last a second at the most.
fn bounded(service: &Upstream) -> String {
    open(service).replace("targets", "stream_timeout: 1s, targets")
}

const ACTIVE: &str = "northgate_upstream_connections{upstream=\"service\",state=\"active\"}";
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")];
