//! Tests of the client against scripted upstreams over real sockets.

use core::time::Duration;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use bytes::Bytes;
use http::{Method, Request};
use http_body::Frame;

use super::*;
use crate::base::body::{self, Body};
use crate::base::clock::Timestamp;

#[test]
fn a_complete_response_releases_its_connection() {
    let service = serve(|listener| {
        let mut connection = accept(&listener);
        for _ in 0..2 {
            assert!(head(&mut connection).starts_with("GET /a HTTP/1.1\r\nhost: 127.0.0.1:"));
            connection
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .expect("written");
        }
        until_closed(&mut connection);
    });

    run(
        async |client| {
            assert_eq!(client.get("/a").await, Ok((200, "hi".into())));
            assert_eq!(client.get("/a").await, Ok((200, "hi".into())));
            assert_eq!(client.idle_connections(), 1);
        },
        vec![service],
    );
}

#[test]
fn late_chunks_are_streamed_and_the_connection_is_reused() {
    let service = serve(|listener| {
        let mut connection = accept(&listener);
        head(&mut connection);
        for piece in [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chu",
            "nked\r\n\r\n3\r\nab",
            "c\r\n2\r\nde\r\n0\r",
            "\n\r\n",
        ] {
            connection.write_all(piece.as_bytes()).expect("written");
        }
        head(&mut connection);
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").expect("written");
        connection.write_all(b"cde").expect("written");
        until_closed(&mut connection);
    });

    run(
        async |client| {
            assert_eq!(client.get("/").await, Ok((200, "abcde".into())));
            assert_eq!(client.get("/").await, Ok((200, "abcde".into())));
            assert_eq!(client.idle_connections(), 1);
        },
        vec![service],
    );
}

#[test]
fn a_body_of_unknown_length_is_sent_in_chunks() {
    let service = serve(|listener| {
        let mut connection = accept(&listener);
        let seen = until(&mut connection, "0\r\n\r\n");
        assert!(seen.contains("transfer-encoding: chunked\r\n"), "{seen}");
        assert!(seen.ends_with("\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"), "{seen}");
        connection.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").expect("written");
        until_closed(&mut connection);
    });

    run(
        async |client| {
            let pieces =
                [Ok(Frame::data(Bytes::from("hello"))), Ok(Frame::data(Bytes::from(" world")))];
            let body = Body::streaming(http_body_util::StreamBody::new(
                futures_util::stream::iter(pieces),
            ));
            assert_eq!(client.send(Method::POST, body).await, Ok((204, String::new())));
            assert_eq!(client.idle_connections(), 1);
        },
        vec![service],
    );
}

#[test]
fn an_upstream_may_respond_before_the_request_has_ended() {
    let service = serve(|listener| {
        let mut connection = accept(&listener);
        head(&mut connection);
        connection
            .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
            .expect("written");
        let _ = connection.read(&mut [0]);
    });

    run(
        async |client| {
            let body =
                Body::streaming(http_body_util::StreamBody::new(futures_util::stream::pending()));
            assert_eq!(client.send(Method::POST, body).await, Ok((413, "big".into())));
            assert_eq!(client.idle_connections(), 0, "the request was never finished");
        },
        vec![service],
    );
}

#[test]
fn a_closed_idle_connection_costs_no_request() {
    let (released, closed) = std::sync::mpsc::channel();
    let service = serve(move |listener| {
        let mut connection = accept(&listener);
        head(&mut connection);
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").expect("written");
        drop(connection);
        released.send(()).expect("the test waits");
        let mut connection = accept(&listener);
        head(&mut connection);
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb").expect("written");
    });

    run(
        async |client| {
            assert_eq!(client.get("/").await, Ok((200, "a".into())));
            closed.recv().expect("released");
            assert_eq!(client.get("/").await, Ok((200, "b".into())));
        },
        vec![service],
    );
}

#[test]
fn a_request_that_an_idle_connection_does_not_take_is_sent_whole_on_a_new_one() {
    let large = "x".repeat(100_000);
    let contents: [&[&str]; 5] = [&[], &["data"], &[&large], &["a", "bc"], &["a", &large, "bc"]];
    for (pieces, chunked, method) in contents.into_iter().flat_map(|each| {
        [(each, false, "POST"), (each, true, "POST"), (each, false, "PUT"), (each, true, "PUT")]
    }) {
        let content = pieces.concat();
        let whole = content.clone();
        let (rests, may_close) = std::sync::mpsc::channel();
        let (released, closed) = std::sync::mpsc::channel();
        let service = serve(move |listener| {
            let mut connection = accept(&listener);
            head(&mut connection);
            connection
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
                .expect("written");
            may_close.recv().expect("a test");
            let socket = socket2::SockRef::from(&connection);
            socket.set_linger(Some(Duration::ZERO)).expect("a socket");
            drop(connection);
            released.send(()).expect("a test");
            let mut connection = accept(&listener);
            let head = head(&mut connection);
            assert!(head.starts_with(&format!("{method} / ")), "{head}");
            let mut came = Vec::new();
            if head.contains("chunked") {
                let mut read = bytes::BytesMut::from(&*until(&mut connection, "0\r\n\r\n"));
                let mut decoder = crate::http1::Decoder::new(crate::http1::Framing::Chunked);
                while let Ok(crate::http1::ChunkEvent::Data(data)) = decoder.take(&mut read) {
                    came.extend_from_slice(&data);
                }
            } else {
                assert!(head.contains(&format!("content-length: {}\r\n", whole.len())), "{head}");
                came.resize(whole.len(), 0);
                connection.read_exact(&mut came).expect("the content");
            }
            assert_eq!(String::from_utf8(came).expect("text"), whole);
            connection
                .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
                .expect("sent");
        });
        let frames: Vec<Result<_, body::Error>> = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece.as_bytes()))))
            .collect();

        run(
            async |client| {
                assert_eq!(client.get("/").await, Ok((200, "a".into())));
                // The runtime notices the close no sooner than a write does: nothing is awaited before.
                rests.send(()).expect("a service");
                closed.recv().expect("released");
                let body = if chunked {
                    let stream = futures_util::stream::iter(frames);
                    Body::streaming(http_body_util::StreamBody::new(stream))
                } else {
                    content.into()
                };
                let request = Request::builder().method(method).uri("/").body(());
                let (head, ()) = request.expect("valid").into_parts();
                let outgoing =
                    OutgoingRequest { head: &head, fields: ExtraHeaders::default(), interim: None };
                let content = RequestContent::new(body);
                let sent = client.upstream.send(&outgoing, content, client.options());
                let response = sent.await.expect("a response");
                // What cannot be sent twice looks before; the rest finds out by writing.
                let attempts = if method == "PUT" && pieces.is_empty() && !chunked { 2 } else { 1 };
                let outcome = (response.response.status().as_u16(), response.attempts);
                assert_eq!(outcome, (201, attempts), "{method} {pieces:?} {chunked}");
            },
            vec![service],
        );
    }
}

#[test]
fn a_request_that_may_have_been_processed_is_repeated_only_if_idempotent() {
    let closes = || serve(|listener| while head(&mut accept(&listener)).starts_with("GET") {});
    let answers = || {
        serve(|listener| {
            let mut connection = accept(&listener);
            head(&mut connection);
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("written");
        })
    };

    let services = vec![closes(), answers()];
    run(async |client| assert_eq!(client.get("/").await, Ok((200, String::new()))), services);

    let services = vec![closes(), answers()];
    run(
        async |client| {
            assert_eq!(client.send(Method::POST, Body::empty()).await, Err(UpstreamError::Reset));
        },
        services,
    );
}

#[test]
fn an_unsent_request_is_retried_with_any_method() {
    let gone =
        TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port();
    let answers = serve(|listener| {
        let mut connection = accept(&listener);
        assert!(until(&mut connection, "data").contains("POST"));
        connection
            .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
            .expect("written");
    });

    run(
        async |client| {
            assert_eq!(client.send(Method::POST, "data".into()).await, Ok((201, String::new())));
        },
        vec![Service { port: gone, thread: None }, answers],
    );
}

#[test]
fn a_truncated_response_is_an_error() {
    for broken in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5x\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Len",
        "SSH-2.0-OpenSSH\r\n",
    ] {
        let service = serve(move |listener| {
            let mut connection = accept(&listener);
            head(&mut connection);
            connection.write_all(broken.as_bytes()).expect("written");
        });
        run(async |client| assert!(client.get("/").await.is_err(), "{broken}"), vec![service]);
    }
}

#[test]
fn surplus_bytes_after_a_response_are_discarded_with_the_connection() {
    let service = serve(|listener| {
        let mut connection = accept(&listener);
        head(&mut connection);
        connection
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
            .expect("written");
        let mut connection = accept(&listener);
        head(&mut connection);
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb").expect("written");
    });

    run(
        async |client| {
            assert_eq!(client.get("/").await, Ok((200, "a".into())));
            assert_eq!(client.get("/").await, Ok((200, "b".into())));
        },
        vec![service],
    );
}

#[test]
fn a_silent_upstream_times_out() {
    let service = serve(|listener| {
        let mut connection = accept(&listener);
        let _ = connection.read_to_end(&mut Vec::new());
    });

    run(
        async |mut client: Client| {
            client.wait = Duration::from_millis(50);
            assert_eq!(client.get("/").await, Err(UpstreamError::Timeout));
        },
        vec![service],
    );
}

#[test]
fn a_request_has_arrived_only_if_something_of_it_was_sent() {
    let (released, gone) = std::sync::mpsc::channel();
    let service = serve(move |listener| {
        let mut connection = accept(&listener);
        head(&mut connection);
        drop((connection, listener));
        released.send(()).expect("the test waits");
    });

    run(
        async |client| {
            let send = async || {
                let (head, ()) = Request::post("/").body(()).expect("valid").into_parts();
                let outgoing =
                    OutgoingRequest { head: &head, fields: ExtraHeaders::default(), interim: None };
                let arrival = core::cell::Cell::new(false);
                let options = SendOptions { arrival: Some(&arrival), ..client.options() };
                let content = RequestContent::new("a=1".into());
                let failed = client.upstream.send(&outgoing, content, options).await;
                (failed.err().map(|failed| failed.failure), arrival.get())
            };
            assert_eq!(send().await, (Some(UpstreamError::Reset), true));
            gone.recv().expect("released");
            assert_eq!(send().await, (Some(UpstreamError::Connect), false));
        },
        vec![service],
    );
}

struct Client {
    upstream: Upstream,
    idle: IdlePool,
    wait: Duration,
}

impl Client {
    async fn get(&self, path: &str) -> Result<(u16, String), UpstreamError> {
        self.request(Request::get(path).body(Body::empty()).expect("valid")).await
    }

    async fn send(&self, method: Method, body: Body) -> Result<(u16, String), UpstreamError> {
        self.request(Request::builder().method(method).uri("/").body(body).expect("valid")).await
    }

    async fn request(&self, request: Request<Body>) -> Result<(u16, String), UpstreamError> {
        let (head, body) = request.into_parts();
        let outgoing =
            OutgoingRequest { head: &head, fields: ExtraHeaders::default(), interim: None };
        let sent = self.upstream.send(&outgoing, RequestContent::new(body), self.options()).await;
        let response = sent.map_err(|failed| failed.failure)?;
        let status = response.response.status().as_u16();
        let whole = response
            .response
            .into_body()
            .collect(1 << 20)
            .await
            .map_err(|_| UpstreamError::Reset)?;
        Ok((status, String::from_utf8(whole.to_vec()).expect("text")))
    }

    fn options(&self) -> SendOptions<'_> {
        let began = self.upstream.clock.uptime();
        SendOptions {
            idle: &self.idle,
            wait: self.wait,
            deadline: None,
            began,
            retries: None,
            has_fallback: false,
            reads_content: false,
            key: None,
            arrival: None,
        }
    }

    fn idle_connections(&self) -> i64 {
        self.upstream.metrics.idle.value()
    }
}

struct Service {
    port: u16,
    thread: Option<JoinHandle<()>>,
}

/// Starts a service on a thread of its own.
fn serve(script: impl FnOnce(TcpListener) + Send + 'static) -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    Service { port, thread: Some(std::thread::spawn(move || script(listener))) }
}

/// Runs `test` with a client of `services`, then checks that no script failed.
fn run(test: impl AsyncFnOnce(Client), mut services: Vec<Service>) {
    let target =
        |service: &Service| Target::from(Address::tcp(Scheme::Http, "127.0.0.1", service.port));
    let settings = Settings::new("test", services.iter().map(target).collect());
    let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
    let upstream =
        Upstream::new(settings, &Arc::default(), clock, &Metrics::default()).expect("valid");
    let client = Client { upstream, idle: IdlePool::default(), wait: Duration::from_secs(5) };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test(client));
    for service in &services {
        let _ = TcpStream::connect(("127.0.0.1", service.port));
    }
    for thread in services.iter_mut().filter_map(|service| service.thread.take()) {
        thread.join().expect("the service's script");
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().expect("a connection").0
}

/// Keeps a connection open until the client closes it.
fn until_closed(connection: &mut TcpStream) {
    let _ = connection.read(&mut [0]);
}

fn head(connection: &mut TcpStream) -> String {
    until(connection, "\r\n\r\n")
}

/// Reads up to and including `end`, or what there is.
fn until(connection: &mut TcpStream, end: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(end.as_bytes())
        && connection.read(&mut byte).is_ok_and(|count| count == 1)
    {
        seen.push(byte[0]);
    }
    String::from_utf8(seen).expect("text")
}
