//! Upgrades: WebSockets, and what is no WebSocket (RFC 6455, RFC 9110 §7.8).

use std::io::{Read, Write};

use crate::support::{Gateway, Reading, Seen, Upstream, open};

#[test]
fn a_websocket_is_connected_through_and_bytes_pass_both_ways() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let head = Reading::new(&stream).until(b"\r\n\r\n").expect("a head");
        seen(Seen::head(connection, &head));
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello",
            )
            .expect("a reader");
        let mut bytes = [0; 4];
        stream.read_exact(&mut bytes).expect("four bytes");
        stream.write_all(&bytes.map(|byte| byte.to_ascii_uppercase())).expect("a reader");
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    // What comes right behind the request is the other protocol's, too.
    client.send(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\npi",
    );

    let answer = client.answer();
    assert_eq!(
        (answer.status, answer.field("sec-websocket-accept")),
        (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
    );
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    assert_eq!(client.exactly(5), b"hello");
    client.send("ng");
    assert_eq!(client.exactly(4), b"PING");
    assert!(client.is_closed());
    let seen = service.only();
    assert_eq!(seen.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert!(seen.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade")));
}

/// CVE-2026-2833: what follows an upgrade that the service did not accept is the next request, not the tunnel's.
#[test]
fn an_upgrade_that_the_service_did_not_accept_opens_no_tunnel() {
    let service = Upstream::polite();
    let rest = format!(
        "{}  - {{ id: closed, path: /closed, upstream: service, auth: none, enabled: false }}\n",
        open(&service)
    );
    let gateway = Gateway::start("", &rest);
    let mut client = gateway.connect();

    client.send(
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n\
         GET /closed HTTP/1.1\r\nHost: a\r\n\r\n",
    );

    assert_eq!(client.answer().status, 200);
    assert_eq!(client.try_answer().map(|answer| answer.status), Some(404));
    assert_eq!(service.seen().len(), 1, "{:#?}", service.seen());
}

#[test]
fn only_websockets_are_upgraded() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
        "Upgrade: websocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
        "HTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    ] {
        assert_eq!(gateway.get("/", fields).status, 200, "{fields}");
    }
    let mut client = gateway.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 4\r\n\r\nbody",
    );
    assert_eq!(client.answer().status, 400, "a body could be taken for frames");
    assert!(client.is_closed());

    for seen in service.seen() {
        assert_eq!(seen.field("upgrade"), None, "{}", seen.head);
        assert_eq!(seen.field("http2-settings"), None, "{}", seen.head);
    }
}

#[test]
fn an_unrequested_101_is_an_upstream_protocol_error() {
    let service = Upstream::start(|_| {
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\nGET /"
            .to_vec()
    });
    let gateway = Gateway::start("", &open(&service));

    assert_eq!(gateway.get("/", "").status, 502);
}

#[test]
fn a_101_to_another_protocol_than_was_asked_for_is_a_broken_service() {
    for field in ["Upgrade: h2c\r\n", "", "Upgrade: websocket, h2c\r\n"] {
        let service = Upstream::start(move |_| {
            format!("HTTP/1.1 101 Switching Protocols\r\n{field}Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nearly")
                .into_bytes()
        });
        let gateway = Gateway::start("", &open(&service));

        let answer = gateway.get("/", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n");

        assert_eq!(answer.status, 502, "{field}");
    }
}

/// The bytes of a tunnel are not HTTP to the gateway: it refuses none of them.
#[test]
fn a_tunnel_carries_what_would_be_no_request() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        let Some(_) = reading.until(b"\r\n\r\n") else { return };
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
        );
        while let Some(bytes) = reading.exactly(1) {
            let _ = stream.write_all(&bytes);
        }
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n");
    assert_eq!(client.answer().status, 101);

    let bytes = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nnone\r\nGET /#\n\n";
    for byte in bytes {
        client.send([*byte]);
    }

    assert_eq!(client.exactly(bytes.len()), bytes);
}
