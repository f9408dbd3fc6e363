//! The log names the target and the cause of every answer 502, 503 and 504, and the id that the client saw of every
//! refusal.

use std::io::Write as _;
use std::net::TcpListener;
use std::sync::Arc;

use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::support::{
    Gateway, Reading, Upstream, drain, eventually, frame, noon, open, raw_service, request_arrived,
    whole,
};

#[test]
fn a_refused_connection_is_logged_with_its_target() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let gateway = Gateway::start("", &route(&format!("http://{port}"), ""));

    let answer = gateway.get("/", "");

    assert_eq!(answer.status, 502);
    let line = line(&gateway, answer.field("x-request-id").expect("an id"));
    assert!(
        line["target"].as_str().is_some_and(|target| target.contains(&port.to_string())),
        "{line}"
    );
    assert_eq!(line["error.cause"], "connection refused");
}

#[test]
fn a_late_answer_is_logged_as_one_that_timed_out() {
    let service = Upstream::by_hand(|stream, _, _| {
        let mut reading = Reading::new(&stream);
        let _ = reading.until(b"never");
    });
    let gateway = Gateway::start("", &route(&service.url(), ", timeout: 100ms"));

    let answer = gateway.get("/", "");

    assert_eq!(answer.status, 504);
    let line = line(&gateway, answer.field("x-request-id").expect("an id"));
    assert_eq!(line["error.cause"], "timed out: no response in time");
    assert!(line["target"].as_str().is_some_and(|target| target.contains("127.0.0.1")), "{line}");
}

/// Also what the beginning of the content shows to be broken is 502: nothing of it was relayed yet.
#[test]
fn an_invalid_answer_is_logged_with_the_reason() {
    for (answer, cause) in [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
            "two different lengths: Content-Length 2 and 3",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            "both Content-Length and Transfer-Encoding",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "Transfer-Encoding is not supported",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "a chunk of the content is malformed",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n 5\r\nhello\r\n0\r\n\r\n",
            "a chunk of the content is malformed",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA b\r\n\r\n",
            "a chunk of the content is malformed",
        ),
        ("garbage\r\n\r\n", "not valid HTTP/1.1"),
    ] {
        let service = Upstream::start(move |_| answer.as_bytes().to_vec());
        let gateway = Gateway::start("", &open(&service));

        let refused = gateway.get("/", "");

        assert_eq!(refused.status, 502, "{answer:?}");
        let line = line(&gateway, refused.field("x-request-id").expect("an id"));
        assert_eq!(line["error.cause"], format!("upstream response: {cause}"), "{answer:?}");
    }
}

/// Whatever the method: nothing of it was relayed yet either.
#[test]
fn a_response_that_breaks_off_before_its_content_is_502() {
    for (response, cause) in [
        (&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"[..], "closed before the end"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n",
            "closed after 0 of 20 bytes of the response",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n",
            "closed after 0 of 2000000 bytes of the response",
        ),
    ] {
        let service = Upstream::by_hand(move |mut stream, connection, _| {
            let mut reading = Reading::new(&stream);
            if reading.head(connection).is_some() {
                let _ = stream.write_all(response);
            }
        });
        let gateway = Gateway::start("", &open(&service));
        for method in ["GET", "POST"] {
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            let answer = gateway.ask(&request);

            assert_eq!(answer.status, 502, "{method} {cause}");
            let line = line(&gateway, answer.field("x-request-id").expect("an id"));
            assert!(
                line["error.cause"].as_str().is_some_and(|shown| shown.contains(cause)),
                "{line}"
            );
        }
    }
}

#[test]
fn a_response_that_breaks_off_is_logged_with_both_lengths() {
    let service = Upstream::start(|_| {
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nhalf".to_vec()
    });
    let gateway = Gateway::start("", &open(&service));
    let mut client = gateway.connect();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    drop(client.rest());

    eventually("the line", || gateway.log().contains("closed after 4 of 10 bytes of the response"));
}

#[test]
fn a_gap_in_a_response_is_logged_with_the_setting_that_bounds_it() {
    let service = Upstream::by_hand(|mut stream, _, _| {
        let mut reading = Reading::new(&stream);
        let _ = reading.until(b"\r\n\r\n");
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhalf");
        let _ = reading.until(b"never");
    });
    let gateway = Gateway::start("", &route(&service.url(), ", idle_timeout: 100ms"));
    let mut client = gateway.connect();

    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    drop(client.rest());

    eventually("the line", || {
        gateway.log().contains("no more of the response within idle_timeout")
    });
}

#[test]
fn a_failed_handshake_is_logged_with_the_reason() {
    let authority = Authority::new();
    let now = 2100;
    for (certificate, trusted, cause) in [
        (authority.certificate("127.0.0.1", now), false, "the certificate has an unknown issuer"),
        (
            authority.certificate("other.test", now),
            true,
            "the certificate is not for this name (name mismatch)",
        ),
        (authority.certificate("127.0.0.1", 2020), true, "the certificate has expired"),
    ] {
        let service = https(certificate);
        let trusted = if trusted { ", tls: { ca_file: ca.pem }" } else { "" };
        let (directory, rest) = (
            tempfile::tempdir().expect("a directory"),
            route(&service.url().replace("http:", "https:"), trusted),
        );
        std::fs::write(directory.path().join("ca.pem"), authority.0.pem()).expect("a file");
        let gateway = Gateway::within(directory, noon(), &whole("", &rest));

        let answer = gateway.get("/", "");

        assert_eq!(answer.status, 502, "{cause}");
        let line = line(&gateway, answer.field("x-request-id").expect("an id"));
        assert_eq!(line["error.cause"], cause);
    }
    let plain = Upstream::by_hand(|mut stream, _, _| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = Reading::new(&stream).until(b"never");
    });
    let gateway = Gateway::start("", &route(&plain.url().replace("http:", "https:"), ""));
    let answer = gateway.get("/", "");
    let line = line(&gateway, answer.field("x-request-id").expect("an id"));
    assert_eq!(line["error.cause"], "the upstream does not speak TLS");
}

#[test]
fn a_failure_of_http2_is_logged_with_the_reason() {
    let reset = |code: u8| {
        raw_service(move |_, stream| {
            request_arrived(stream);
            let _ = stream.write_all(&frame(3, 0, 1, &[0, 0, 0, code]));
            drain(stream);
        })
    };
    let (internal, calm) = (reset(2).0, reset(11).0);
    let not_http2 = Upstream::by_hand(|mut stream, _, _| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = Reading::new(&stream).until(b"never");
    });
    let silent = Upstream::by_hand(|stream, _, _| {
        let _ = Reading::new(&stream).until(b"never");
    });
    for (url, cause) in [
        (internal, "the stream was reset: INTERNAL_ERROR"),
        (calm, "the stream was reset: ENHANCE_YOUR_CALM"),
        (not_http2.url(), "the upstream does not speak HTTP/2: its first frame is not SETTINGS"),
        (silent.url(), "timed out: connected, but no settings of HTTP/2"),
    ] {
        let more = ", http2: always, connect_timeout: 500ms, retries: { attempts: 0 }";
        let gateway = Gateway::start("", &route(&url, more));

        let answer = gateway.get("/", "");

        let line = line(&gateway, answer.field("x-request-id").expect("an id"));
        assert_eq!((answer.status, &line["error.cause"]), (502, &Value::from(cause)));
        assert!(
            line["target"].as_str().is_some_and(|target| url.ends_with(target) || target == url)
        );
    }
}

#[test]
fn a_certificate_refused_after_the_handshake_is_logged_with_the_reason() {
    let authority = Authority::new();
    let certificate = || authority.certificate("127.0.0.1", 2100);
    let demanding = || {
        let mut roots = RootCertStore::empty();
        roots.add(authority.0.der().clone()).expect("an authority");
        let provider = Arc::new(default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        https_with(certificate(), Some(verifier.expect("a verifier")))
    };
    let required = "the upstream requires a client certificate";
    let without = "the TLS handshake did not select HTTP/2 (ALPN)";
    for (service, http2, cause) in [
        (https(certificate()), "always", without),
        (demanding(), "always", required),
        (demanding(), "never", required),
    ] {
        let more = format!(", http2: {http2}, tls: {{ ca_file: ca.pem }}");
        let rest = route(&service.url().replace("http:", "https:"), &more);
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("ca.pem"), authority.0.pem()).expect("a file");
        let gateway = Gateway::within(directory, noon(), &whole("", &rest));

        let answer = gateway.get("/", "");

        let line = line(&gateway, answer.field("x-request-id").expect("an id"));
        assert_eq!((answer.status, &line["error.cause"]), (502, &Value::from(cause)), "{http2}");
    }
}

#[test]
fn a_request_that_cannot_be_parsed_is_logged_with_the_id_that_the_client_saw() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));

    for request in
        ["GET / HTTP/1.1\r\nA : b\r\n\r\n", "\u{1}\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\nb\r\n\r\n"]
    {
        let answer = gateway.ask(request);

        assert_eq!(answer.status, 400, "{request:?}");
        let line = line(&gateway, answer.field("x-request-id").expect("an id"));
        assert_eq!(line["error.type"], "bad-request", "{request:?}");
    }
}

/// Identical lengths and padded chunk sizes are not ambiguous: no recipient reads them differently.
#[test]
fn an_answer_that_is_unusual_but_unambiguous_is_relayed() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5  \r\nhello\r\n0  \r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\t\r\nhello\r\n0\t \r\n\r\n",
    ] {
        let service = Upstream::start(move |_| answer.as_bytes().to_vec());
        let gateway = Gateway::start("", &open(&service));

        let relayed = gateway.get("/", "");

        assert_eq!((relayed.status, relayed.text()), (200, "hello"), "{answer:?}");
        assert!(relayed.fields("content-length").len() <= 1, "{answer:?}");
    }
}

/// The line of the access log with this request id.
fn line(gateway: &Gateway, id: &str) -> Value {
    let mut found = None;
    eventually("the line", || {
        let log = gateway.log();
        found = log.lines().find(|line| line.contains(id)).map(str::to_owned);
        found.is_some()
    });
    serde_json::from_str(&found.expect("it was found")).expect("JSON")
}

fn route(target: &str, more: &str) -> String {
    format!(
        "upstreams:\n  service: {{ targets: [\"{target}\"]{more} }}\nroutes:\n  - {{ id: all, path: /**, upstream: service, auth: none }}\n"
    )
}

/// An authority, and the certificates that it issues.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// A certificate that is valid until a year.
    fn certificate(
        &self,
        name: &str,
        until: i32,
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.not_before = rcgen::date_time_ymd(2010, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let made = params.signed_by(&key, &self.0).expect("a certificate");
        (made.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
    }
}

type Pair = (CertificateDer<'static>, PrivateKeyDer<'static>);

fn https(pair: Pair) -> Upstream {
    https_with(pair, None)
}

/// A service that speaks HTTP/1.1 over TLS, to clients with the certificates that a verifier demands.
fn https_with((certificate, key): Pair, verifier: Option<Arc<dyn ClientCertVerifier>>) -> Upstream {
    let is_demanding = verifier.is_some();
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.unwrap_or_else(WebPkiClientVerifier::no_client_auth));
    let mut config = config.with_single_cert(vec![certificate], key).expect("a pair");
    if is_demanding {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    let config = Arc::new(config);
    Upstream::by_hand(move |stream, _, _| {
        let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
        let mut stream = StreamOwned::new(session, stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        // Closing before the request is read would reset the connection, and an alert with it.
        drain(&mut stream.sock);
    })
}
