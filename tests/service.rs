//! The gateway as a tower service: one request in, one response out, without a socket of its own.

use core::net::{IpAddr, Ipv4Addr};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use http::header::{ALLOW, CONTENT_TYPE, HOST};
use http::{HeaderMap, Request, StatusCode};
use northgate::base::body::Body;
use northgate::base::clock::Clock;
use northgate::config::{self, Environment};
use northgate::gateway::{ClientAddress, Gateway, RetainedState, Shared, compile};
use northgate::observe::log::Log;
use northgate::observe::log_format::Format;
use northgate::observe::metrics::Metrics;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;
use tower::{ServiceBuilder, ServiceExt as _};

#[test]
fn a_request_gets_the_response_of_its_route() {
    let embedded = Embedded::new(ROUTES);
    let response = embedded.ask(request("GET", "/hello"));

    assert_eq!((response.status, &*response.content), (StatusCode::OK, "Hello"));
}

#[test]
fn a_rejected_request_gets_a_problem_and_never_an_error() {
    let embedded = Embedded::new(ROUTES);
    for (target, status) in
        [("/secret", 401), ("/elsewhere", 404), ("/limited", 200), ("/limited", 429)]
    {
        let response = embedded.ask(request("GET", target));
        assert_eq!(response.status.as_u16(), status, "{target}");
        if !response.status.is_success() {
            assert_eq!(response.headers[CONTENT_TYPE], "application/problem+json", "{target}");
        }
    }
    let response = embedded.ask(request("DELETE", "/hello"));
    assert_eq!(response.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers[ALLOW], "GET, HEAD");
}

#[test]
fn an_upstream_learns_the_address_that_the_embedder_names() {
    let upstream = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = upstream.local_addr().expect("a bound socket").port();
    let head = thread::spawn(move || {
        let (mut stream, _) = upstream.accept().expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            .expect("a response is written");
        String::from_utf8(head).expect("text").to_lowercase()
    });
    let embedded = Embedded::new(&ROUTES.replace("9501", &port.to_string()));
    let mut request = request("GET", "/orders");
    request.extensions_mut().insert(ClientAddress(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))));

    let response = embedded.ask(request);

    assert_eq!((response.status, &*response.content), (StatusCode::OK, "ok"));
    let head = head.join().expect("the upstream ends");
    assert!(head.contains("x-forwarded-for: 192.0.2.7\r\n"), "{head}");
}

#[test]
fn a_request_of_no_named_client_is_of_no_trusted_proxy() {
    let embedded = Embedded::new(ROUTES);
    let mut request = request("GET", "/https-only");
    request.headers_mut().insert("x-forwarded-proto", "https".parse().expect("a value"));

    assert_eq!(embedded.ask(request).status, StatusCode::NOT_FOUND);
}

#[test]
fn tower_layers_stand_before_the_gateway() {
    let embedded = Embedded::new(ROUTES);
    let layered = ServiceBuilder::new()
        .map_request(|mut request: Request<Body>| {
            *request.uri_mut() = "/hello".parse().expect("a target");
            request
        })
        .service(embedded.gateway());
    let response = LocalSet::new()
        .block_on(&embedded.runtime, layered.oneshot(request("GET", "/elsewhere")))
        .expect("the gateway never fails");

    assert_eq!(response.status(), StatusCode::OK);
}

struct Embedded {
    shared: Arc<Shared>,
    runtime: Runtime,
}

struct Received {
    status: StatusCode,
    headers: HeaderMap,
    content: String,
}

impl Embedded {
    fn new(text: &str) -> Self {
        let clock = Clock::system();
        let loaded = config::load_text(
            "gateway.yaml",
            text,
            Path::new(""),
            &Environment::default(),
            clock.now(),
        );
        let (config, _) = loaded.unwrap_or_else(|faults| panic!("{faults}"));
        let metrics = Metrics::with(config.metrics.settings.clone());
        let sink = Box::new(std::io::sink());
        let (log, _) = Log::to(sink, Format::Json, &config.logging, None, clock.clone(), &metrics)
            .expect("a thread to log with");
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let state = RetainedState::new(clock, metrics, runtime.handle().clone());
        let snapshot = compile(&config, &state).expect("a checked configuration");
        Self { shared: Arc::new(Shared::new(snapshot, state, log.access())), runtime }
    }

    fn gateway(&self) -> Gateway {
        Gateway::new(Arc::clone(&self.shared))
    }

    fn ask(&self, request: Request<Body>) -> Received {
        let exchange = async {
            let response = self.gateway().oneshot(request).await.expect("the gateway never fails");
            let (head, body) = response.into_parts();
            let content = body.collect(1 << 20).await.expect("the whole content");
            let content = String::from_utf8(content.to_vec()).expect("text");
            Received { status: head.status, headers: head.headers, content }
        };
        LocalSet::new().block_on(&self.runtime, exchange)
    }
}

fn request(method: &str, target: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(target).header(HOST, "localhost");
    request.body(Body::empty()).expect("a request")
}

const ROUTES: &str = "
version: 1
listen: 127.0.0.1:8080
issuers:
  own: { issuer: https://issuer.example, audience: orders }
limits:
  one: { quota: 1/hour, by: ip }
upstreams:
  orders: { targets: [http://127.0.0.1:9501] }
routes:
  - { id: hello, path: /hello, methods: [GET], auth: none, respond: { status: 200, body: Hello } }
  - { id: secret, path: /secret, auth: { jwt: own }, upstream: orders }
  - { id: limited, path: /limited, auth: none, limits: [one], respond: { status: 200 } }
  - { id: secure, path: /https-only, match_headers: { X-Forwarded-Proto: https }, auth: none, respond: { status: 200 } }
  - { id: orders, path: /orders, auth: none, upstream: orders }
";
