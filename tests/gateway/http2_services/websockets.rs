//! WebSockets to services in HTTP/2 (RFC 8441).

use bytes::Bytes;
use h2::ext::Protocol;
use http::{Method, Response};

use super::always;
use crate::support::{Gateway, Http2Service};

#[test]
fn a_websocket_is_a_stream_where_the_service_takes_it() {
    let service = Http2Service::taking_websockets(async |mut call| {
        let (head, protocol) = (&call.head, call.head.extensions.get::<Protocol>());
        let opens = head.method == Method::CONNECT
            && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
            && head.uri.path() == "/chat"
            && head.headers["sec-websocket-version"] == "13"
            && !head.headers.contains_key("sec-websocket-key");
        let response = Response::builder().status(if opens { 200 } else { 404 });
        let response = response.header("sec-websocket-protocol", "chat").body(()).expect("valid");
        let Ok(mut stream) = call.respond.send_response(response, !opens) else { return };
        while let Some(Ok(data)) = call.body.data().await {
            let _ = call.body.flow_control().release_capacity(data.len());
            let _ = stream.send_data(data, false);
        }
        let _ = stream.send_data(Bytes::new(), true);
    });
    let gateway = Gateway::start("", &always(&service.url()));
    assert_eq!(gateway.get("/a", "").status, 404);
    let mut client = gateway.connect();

    client.send(HANDSHAKE);
    let answer = client.answer();
    client.send("hello");
    let echoed = client.exactly(5);
    client.finish();

    assert!(client.is_closed());
    assert_eq!((answer.status, &echoed[..]), (101, &b"hello"[..]));
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(answer.field("sec-websocket-protocol"), Some("chat"));
    assert_eq!((service.connections(), service.calls()), (1, 2));
}

#[test]
fn a_refusal_of_a_websocket_reaches_the_client() {
    let service = Http2Service::taking_websockets(async |mut call| {
        let response = Response::builder().status(403).body(()).expect("valid");
        let _ = call.respond.send_response(response, true);
    });
    let gateway = Gateway::start("", &always(&service.url()));

    assert_eq!(gateway.ask(HANDSHAKE).status, 403);
    assert_eq!(gateway.ask(HANDSHAKE).status, 403);
    assert_eq!(service.connections(), 1);
}

const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: api.test\r\nConnection: Upgrade\r\n\
                         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Protocol: mqtt, chat\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
