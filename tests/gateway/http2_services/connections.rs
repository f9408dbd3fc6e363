//! Connections: shared, as many as the streams need, chosen by ALPN, and apart from each other's pace.

use core::time::Duration;
use std::sync::Arc;
use std::thread;

use futures_util::future::join_all;
use http::{Request, Response};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::Barrier;

use super::{always, echo, with};
use crate::support::{
    Client, Gateway, Http2Client, Http2Service, Upstream, drain, eventually, frame, noon,
    raw_service, request_arrived, whole,
};

#[test]
fn requests_share_a_connection_up_to_the_streams_that_the_service_allows() {
    for (allowed, expected) in [(100, 1), (2, 3), (1, 5)] {
        let together = Arc::new(Barrier::new(5));
        let service = Http2Service::start(allowed, move |call| {
            let together = Arc::clone(&together);
            async move {
                together.wait().await;
                call.answer("all are there");
            }
        });
        let gateway = Gateway::start("", &always(&service.url()));

        Http2Client::run(&gateway, async |client| {
            let calls = (0..5).map(|_| client.unary("/a", &[], ""));
            for call in join_all(calls).await {
                assert_eq!((&*call.content, call.code), (&b"all are there"[..], Some(0)));
            }
        });

        assert_eq!((service.connections(), service.calls()), (expected, 5), "{allowed} streams");
        let retries = "northgate_upstream_retries_total{upstream=\"service\",result=\"ok\"}";
        assert_eq!(gateway.metric(retries), 0.0, "no stream is refused");
    }
}

#[test]
fn a_connection_is_used_again_and_closed_when_it_is_idle() {
    let service = echo(100);
    let gateway = Gateway::start("", &with(&[&service.url()], ", keep_alive: 10s"));
    let open = |state: &str| {
        gateway.metric(&format!(
            "northgate_upstream_connections{{upstream=\"service\",state=\"{state}\"}}"
        ))
    };

    for _ in 0..3 {
        assert_eq!(gateway.get("/a", "").status, 200);
    }
    assert_eq!(service.connections(), 1);
    eventually("idleness", || (open("active"), open("idle")) == (0.0, 1.0));

    thread::sleep(Duration::from_millis(600));
    gateway.clock.advance(Duration::from_secs(11));
    eventually("its end", || open("idle") == 0.0);
    assert_eq!(gateway.get("/a", "").status, 200);
    assert_eq!(service.connections(), 2);
}

#[test]
fn a_client_that_reads_nothing_holds_up_no_other() {
    let service = Http2Service::start(100, async |mut call| {
        let large = call.head.uri.path() == "/large";
        let response = Response::new(());
        let mut stream = call.respond.send_response(response, false).expect("open");
        let content = vec![b'x'; if large { 8_000_000 } else { 1000 }];
        let _ = stream.send_data(content.into(), true);
    });
    let gateway = Gateway::start("", &always(&service.url()));

    Http2Client::run(&gateway, async |client| {
        let request = |path: &str| {
            Request::get(format!("http://api.test{path}")).body(()).expect("a request")
        };
        let mut stalled = Vec::new();
        for _ in 0..20 {
            let (response, _) = client.begin(request("/large"), true).await;
            stalled.push(response.await.expect("a head"));
        }
        // A connection of its own, since the test's client has filled the window of its first one.
        let answers = tokio::task::spawn_blocking({
            let address = gateway.address();
            move || {
                (0..20)
                    .map(|_| {
                        let mut client = Client::connect(address);
                        client.send("GET /small HTTP/1.1\r\nHost: api.test\r\n\r\n");
                        client.answer().body.len()
                    })
                    .collect::<Vec<_>>()
            }
        });
        assert_eq!(answers.await.expect("answers"), [1000; 20]);
        assert_eq!(service.connections(), 1);
        drop(stalled);
    });
}

#[test]
fn a_dead_connection_gets_no_further_request() {
    // The first connection never answers, although it stays open.
    let (url, connections) = raw_service(|number, stream| {
        request_arrived(stream);
        if number > 0 {
            let _ = std::io::Write::write_all(stream, &frame(1, 5, 1, &[0x88]));
        }
        drain(stream);
    });
    let gateway = Gateway::start("", &with(&[&url], ", timeout: 1s"));

    assert_eq!(gateway.get("/a", "").status, 504);
    assert_eq!(gateway.get("/a", "").status, 200);
    assert_eq!(connections.load(core::sync::atomic::Ordering::SeqCst), 2);
}

#[test]
fn alpn_selects_the_protocol_and_a_websocket_uses_http_1_1() {
    for (offered, settings, seen, upgraded) in [
        (&["h2", "http/1.1"][..], "", "h2", "http/1.1"),
        (&["h2", "http/1.1"], ", http2: never", "http/1.1", "http/1.1"),
        (&["http/1.1"], "", "http/1.1", "http/1.1"),
        (&[], "", "none", "none"),
        (&["h2", "http/1.1"], ", http2: always", "h2", "http/1.1"),
    ] {
        let gateway = behind_tls(offered, settings);

        for _ in 0..2 {
            assert_eq!(gateway.get("/a", "").field("x-alpn"), Some(seen), "{offered:?} {settings}");
        }
        let answer = gateway.get("/a", HANDSHAKE);
        assert_eq!(answer.field("x-alpn"), Some(upgraded), "{offered:?} {settings}");
    }
}

#[test]
fn a_handshake_of_a_websocket_takes_no_service_out_that_speaks_http_2_alone() {
    let strict = ", circuit_breaker: { errors: 1 }, outlier: { errors: 1 }";
    let over_tls =
        ["", ", http2: always"].map(|more| behind_tls(&["h2"], &format!("{more}{strict}")));
    let service = echo(100);
    let in_the_clear = Gateway::start("", &with(&[&service.url()], strict));
    for gateway in over_tls.iter().chain([&in_the_clear]) {
        assert_eq!(gateway.get("/a", "").status, 200);
        for _ in 0..3 {
            assert_eq!(gateway.get("/a", HANDSHAKE).status, 502);
        }
        assert_eq!(gateway.get("/a", "").status, 200);
    }
}

#[test]
fn a_service_that_speaks_http_2_alone_is_probed_and_checked_in_it() {
    for more in ["", ", http2: always", ", health_check: { path: /a, interval: 1h }"] {
        let circuit = ", circuit_breaker: { errors: 1, open_for: 100ms, close_after: 1 }";
        let gateway = behind_tls(&["h2"], &format!("{more}{circuit}"));
        assert_eq!(gateway.get("/fail", "").status, 500, "{more}");

        assert_eq!(gateway.get("/a", "").status, 503, "the circuit is open");

        eventually("a successful probe", || gateway.get("/a", "").status == 200);
    }
}

#[test]
fn a_target_that_must_speak_http_2_and_does_not_is_no_target() {
    let gateway = behind_tls(&["http/1.1"], ", http2: always");
    assert_eq!(gateway.get("/a", "").status, 502);

    let plain = Upstream::by_hand(|mut stream, _, _| {
        let _ = std::io::Read::read(&mut stream, &mut [0; 100]);
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let gateway = Gateway::start("", &always(&plain.url()));
    assert_eq!(gateway.get("/a", "").status, 502);
}

#[test]
fn a_service_that_comes_to_speak_http_2_alone_is_spoken_to_in_it() {
    let gateway = behind_tls_in_turn(&[&["http/1.1"], &["h2"]], ", keep_alive: 0s");
    assert_eq!(gateway.get("/a", "").field("x-alpn"), Some("http/1.1"));

    eventually("HTTP/2", || gateway.get("/a", "").field("x-alpn") == Some("h2"));
}

/// A gateway before a service over TLS that offers these protocols, with further settings of the upstream.
fn behind_tls(protocols: &[&str], settings: &str) -> Gateway {
    behind_tls_in_turn(&[protocols], settings)
}

/// The same with protocols for each connection; the last ones are those of all further connections.
fn behind_tls_in_turn(protocols: &[&[&str]], settings: &str) -> Gateway {
    let (url, authority) = tls_service(protocols);
    let directory = tempfile::tempdir().expect("a directory");
    let ca = directory.path().join("ca.pem");
    std::fs::write(&ca, authority).expect("written");
    let rest = format!(
        "upstreams:\n  service: {{ targets: [\"{url}\"], tls: {{ ca_file: {} }}{settings} }}\n\
         routes:\n  - {{ id: open, path: /**, upstream: service, auth: none }}\n",
        ca.display()
    );
    Gateway::within(directory, noon(), &whole("", &rest))
}

/// A service over TLS that offers these protocols on each connection, and its certificate. Each response says which one was selected; those
/// to `/fail` over HTTP/2 are errors.
fn tls_service(protocols: &[&[&str]]) -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a certificate");
    let acceptors: Vec<_> = protocols
        .iter()
        .map(|names| {
            config.alpn_protocols = names.iter().map(|name| name.as_bytes().to_vec()).collect();
            tokio_rustls::TlsAcceptor::from(Arc::new(config.clone()))
        })
        .collect();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("a socket");
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                let acceptor = acceptors[number.min(acceptors.len() - 1)].clone();
                tokio::runtime::Handle::current().spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
                    if alpn.as_deref() == Some(b"h2") {
                        let Ok(mut http2) = h2::server::handshake(stream).await else { return };
                        while let Some(Ok((request, mut respond))) = http2.accept().await {
                            let status = if request.uri().path() == "/fail" { 500 } else { 200 };
                            let response = Response::builder().status(status);
                            let response: Response<()> =
                                response.header("x-alpn", "h2").body(()).expect("valid");
                            let _: Result<h2::SendStream<bytes::Bytes>, _> =
                                respond.send_response(response, true);
                        }
                        return;
                    }
                    let name =
                        alpn.map_or("none".into(), |alpn| String::from_utf8(alpn).expect("text"));
                    let mut room = [0; 4096];
                    while tokio::io::AsyncReadExt::read(&mut stream, &mut room)
                        .await
                        .is_ok_and(|n| n > 0)
                    {
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\nX-ALPN: {name}\r\nContent-Length: 0\r\n\r\n"
                        );
                        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes())
                            .await;
                    }
                });
            }
        });
    });
    (format!("https://localhost:{port}"), made.cert.pem())
}

const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn small_frames_that_a_client_does_not_read_end_no_connection() {
    const FRAMES: usize = 30_000;
    let service = Http2Service::start(100, async |mut call| {
        if call.head.uri.path() != "/many" {
            return call.answer("fine");
        }
        let mut stream = call.respond.send_response(Response::new(()), false).expect("open");
        for _ in 0..FRAMES {
            if stream.send_data("seven b".into(), false).is_err() {
                return;
            }
        }
        let _ = stream.send_data(bytes::Bytes::new(), true);
    });
    let gateway = Gateway::start("", &always(&service.url()));

    Http2Client::run(&gateway, async |client| {
        let request = Request::get("http://api.test/many").body(()).expect("a request");
        let (many, _) = client.begin(request, true).await;
        let (_, mut content) = many.await.expect("a response").into_parts();
        for _ in 0..50 {
            assert_eq!(gateway.get("/ok", "").text(), "fine");
        }
        let (content, _) = crate::support::read(&mut content).await;
        assert_eq!(content.len(), 7 * FRAMES);
    });
    assert_eq!(service.connections(), 1);
}

#[test]
fn empty_frames_of_a_service_end_no_connection() {
    let service = Http2Service::start(100, async |mut call| {
        let mut stream = call.respond.send_response(Response::new(()), false).expect("open");
        stream.send_data(bytes::Bytes::new(), false).expect("open");
        stream.send_data("fine".into(), true).expect("open");
    });
    let gateway = Gateway::start("", &always(&service.url()));
    for _ in 0..150 {
        assert_eq!(gateway.get("/a", "").text(), "fine");
    }
    assert_eq!(service.connections(), 1);
}
