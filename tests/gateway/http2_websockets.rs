//! A WebSocket over HTTP/2 (RFC 8441) is a WebSocket to all that the gateway does, and to the service.

use core::time::Duration;
use std::io::{Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use crate::support::{Gateway, PATIENCE, Reading, Upstream, eventually, ok, open};

/// A service that accepts every handshake, and then serves the connection by `serve`.
fn accepting(serve: fn(std::net::TcpStream)) -> Upstream {
    Upstream::by_hand(move |mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        let Some(request) = reading.head(connection) else { return };
        let key = request.field("sec-websocket-key").unwrap_or_default().to_owned();
        let plain = request.field("upgrade").is_none();
        let protocol = request
            .field("sec-websocket-protocol")
            .map_or_else(String::new, |offered| format!("Sec-WebSocket-Protocol: {offered}\r\n"));
        seen(request);
        if plain {
            let _ = stream.write_all(&ok("no handshake"));
            return;
        }
        let accept = accept(&key);
        let head = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
        );
        stream.write_all(head.as_bytes()).expect("a reader");
        serve(stream);
    })
}

/// One that echoes.
fn echoing() -> Upstream {
    accepting(|mut stream| {
        let mut some = [0; 1000];
        while let Ok(count @ 1..) = stream.read(&mut some) {
            let _ = stream.write_all(&some[..count]);
        }
    })
}

fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
    STANDARD.encode(aws_lc_rs::digest::digest(digest, text.as_bytes()))
}

/// A client connection, and the runtime that it lives on.
struct Client {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
}

impl Client {
    fn connect(gateway: &Gateway) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let address = gateway.address();
        let sender = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.expect("a listener");
            let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
            tokio::runtime::Handle::current().spawn(connection);
            let sender = sender.ready().await.expect("it is open");
            while !sender.is_extended_connect_protocol_enabled() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            sender
        });
        Self { runtime, sender }
    }

    /// The response to an extended CONNECT, and the stream to the gateway.
    fn open(
        &mut self,
        protocol: &'static str,
        fields: &[(&str, &str)],
    ) -> (Response<RecvStream>, SendStream<Bytes>) {
        self.open_at("/chat?x=1", protocol, fields)
    }

    fn open_at(
        &mut self,
        path: &str,
        protocol: &'static str,
        fields: &[(&str, &str)],
    ) -> (Response<RecvStream>, SendStream<Bytes>) {
        let uri = format!("http://a.test{path}");
        let mut request = Request::builder().method(Method::CONNECT).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut request = request.body(()).expect("valid");
        request.extensions_mut().insert(Protocol::from_static(protocol));
        let (response, stream) = self.sender.send_request(request, false).expect("it is open");
        let response = self.runtime.block_on(async { timeout(PATIENCE, response).await });
        (response.expect("a response in time").expect("a response"), stream)
    }

    /// The next data on a stream; `None` at its end, however that comes.
    fn data(&self, stream: &mut RecvStream) -> Option<Bytes> {
        loop {
            let data = self.runtime.block_on(async { timeout(PATIENCE, stream.data()).await });
            let data = data.expect("data in time")?.ok()?;
            let _ = stream.flow_control().release_capacity(data.len());
            // The end of a stream may be a frame of its own.
            if !data.is_empty() {
                return Some(data);
            }
        }
    }
}

const VERSION: (&str, &str) = ("sec-websocket-version", "13");

#[test]
fn an_extended_connect_opens_a_websocket_to_the_service() {
    let service = echoing();
    let gateway = Gateway::start("idle_timeout: 1s", &open(&service));
    let mut client = Client::connect(&gateway);
    let fields = [VERSION, ("sec-websocket-protocol", "chat"), ("origin", "http://a.test")];
    let (response, mut stream) = client.open("websocket", &fields);

    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
    assert!(response.headers().contains_key("date"));
    for name in ["upgrade", "connection", "sec-websocket-accept", "content-length"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let mut body = response.into_body();
    for text in ["hello", "again"] {
        stream.send_data(Bytes::from(text), false).expect("it is open");
        assert_eq!(client.data(&mut body).expect("an echo"), text);
    }
    let seen = service.only();
    assert_eq!(seen.line(), "GET /chat?x=1 HTTP/1.1");
    assert_eq!(seen.field("origin"), Some("http://a.test"));
    assert_eq!(seen.field("sec-websocket-version"), Some("13"));
    // It keeps its connection open, however long that is otherwise idle.
    std::thread::sleep(Duration::from_millis(2500));
    stream.send_data(Bytes::from("still"), false).expect("it is open");
    assert_eq!(client.data(&mut body).expect("an echo"), "still");
    // Its end is the service's.
    stream.send_data(Bytes::new(), true).expect("it is open");
    assert!(client.data(&mut body).is_none());
}

#[test]
fn streams_of_one_connection_are_apart_and_count_as_requests() {
    let service = echoing();
    let gateway = Gateway::start("max_requests_in_flight: 2", &open(&service));
    let mut client = Client::connect(&gateway);
    let (first, mut to_first) = client.open("websocket", &[VERSION]);
    let (second, mut to_second) = client.open("websocket", &[VERSION]);
    let (mut first, mut second) = (first.into_body(), second.into_body());
    to_second.send_data(Bytes::from("2"), false).expect("it is open");
    to_first.send_data(Bytes::from("1"), false).expect("it is open");
    assert_eq!(client.data(&mut first).expect("an echo"), "1");
    assert_eq!(client.data(&mut second).expect("an echo"), "2");
    assert_eq!(client.open("websocket", &[VERSION]).0.status(), 503);
    to_first.send_reset(h2::Reason::CANCEL);
    eventually("a free place", || client.open("websocket", &[VERSION]).0.status() == 200);
}

#[test]
fn a_handshake_that_is_none_is_refused() {
    let service = echoing();
    let gateway = Gateway::start("", &open(&service));
    let mut client = Client::connect(&gateway);
    for (protocol, fields, status) in [
        ("connect-udp", &[VERSION][..], 501),
        ("connect-ip", &[], 501),
        ("websocket", &[], 400),
        ("websocket", &[("sec-websocket-version", "8")], 400),
    ] {
        let (response, _) = client.open(protocol, fields);
        assert_eq!(response.status(), status, "{protocol} {fields:?}");
    }
    assert!(service.seen().is_empty());
}

#[test]
fn a_route_without_websockets_opens_none() {
    let service = echoing();
    let more = "  - { id: fixed, path: /fixed, auth: none, respond: { status: 200 } }\n";
    let rest = open(&service).replace("auth: none }", "auth: none, websocket: false }") + more;
    let gateway = Gateway::start("", &rest);
    let mut client = Client::connect(&gateway);

    for path in ["/", "/fixed"] {
        let (response, _) = client.open_at(path, "websocket", &[VERSION]);
        assert_eq!(response.status(), 501, "{path}");
    }

    assert!(service.seen().is_empty(), "no service is blamed, or asked");
    assert!(gateway.log().contains("\"unknown-protocol\""), "{}", gateway.log());
}

#[test]
fn a_response_of_a_service_is_no_tunnel() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    // The service answers 200, which would open a tunnel here.
    let (response, _) = Client::connect(&gateway).open("websocket", &[VERSION]);
    assert_eq!(response.status(), 502);
}

#[test]
fn a_websocket_needs_the_credentials_of_its_route_and_ends_with_streams() {
    let service = echoing();
    let rest = open(&service).replace("targets", "stream_timeout: 1s, targets");
    let gateway = Gateway::start("", &rest);
    let mut client = Client::connect(&gateway);
    let (response, mut stream) = client.open("websocket", &[VERSION]);
    let mut body = response.into_body();
    stream.send_data(Bytes::from("hello"), false).expect("it is open");
    assert_eq!(client.data(&mut body).expect("an echo"), "hello");
    assert!(client.data(&mut body).is_none(), "the end of the stream's time");

    let issuer = crate::support::start_issuer();
    let rest = format!(
        "{}{}",
        issuer.settings(""),
        open(&service).replace("auth: none", "auth: { jwt: main }")
    );
    let gateway = Gateway::start("", &rest).ready();
    let mut client = Client::connect(&gateway);
    assert_eq!(client.open("websocket", &[VERSION]).0.status(), 401);
    let bearer = format!("Bearer {}", issuer.jwt());
    let fields = [VERSION, ("authorization", bearer.as_str())];
    assert_eq!(client.open("websocket", &fields).0.status(), 200);
}

/// One that neither reads nor closes.
fn holding() -> Upstream {
    accepting(|mut stream| {
        // Until the gateway closes both directions: writing fails then.
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

#[test]
fn a_websocket_ends_with_its_client_even_after_the_clients_half_has() {
    let service = holding();
    let gateway = Gateway::start("max_requests_in_flight: 1", &open(&service));
    for closes in [false, true] {
        let mut client = Client::connect(&gateway);
        let (_response, mut stream) = client.open("websocket", &[VERSION]);
        assert_eq!(gateway.get("/", "").status, 503);
        stream.send_data(Bytes::new(), true).expect("it is open");
        if closes {
            drop((stream, client));
        } else {
            stream.send_reset(h2::Reason::CANCEL);
        }
        eventually("a free place", || gateway.get("/", "").status == 200);
    }
}
