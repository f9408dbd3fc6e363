//! What stays open is bounded like all else: by places, by time, and by who may open it (RFC 6455 §4).

use std::io::Write;

use crate::support::{Client, Gateway, Reading, Upstream, eventually, open};

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
fn a_websocket_lasts_no_longer_than_streams_may() {
    let service = echoing(ACCEPT.to_owned());
    let gateway = Gateway::start("", &bounded(&service));
    let mut socket = open_socket(&gateway);
    socket.send("hello");
    assert_eq!(socket.exactly(5), b"hello");

    assert!(socket.is_closed());
}

/// A service that says 101 with these fields, and then whatever it hears.
fn echoing(accept: String) -> Upstream {
    Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let Some(request) = reading.request(connection) else { return };
        seen(request);
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
        let _ = stream.write_all(format!("{head}{accept}\r\n").as_bytes());
        while let Some(byte) = reading.exactly(1) {
            let _ = stream.write_all(&byte);
        }
    })
}

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
