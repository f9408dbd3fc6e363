//! A connection to a service is used again only where nothing is left on it, and a request is sent no more often than it may be.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::thread;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion, version};

use crate::support::{Gateway, Reading, Seen, Upstream, eventually, noon, ok, open};

/// The bytes meant to be read as the next response.
const PIECE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";

#[test]
fn a_record_with_an_answer_and_a_piece_of_another_leaves_nothing_to_the_next_client() {
    for protocol in [&version::TLS12, &version::TLS13] {
        // However large the gateway's reads are, one of these ends where an answer does.
        for length in [1_000, 4_096, 8_192, 12_000, 16_000] {
            let world = World::start(protocol, move |tls, _| {
                let answer = padded(length);
                tls.say(&[&answer, PIECE].concat());
            });
            for _ in 0..3 {
                let body = world.gateway.get("/", "").body;
                assert!(!body.is_empty() && body.iter().all(|byte| *byte == b'x'), "{length}");
            }
            assert_eq!(world.service.connections(), 3, "{length}: none is used again");
        }
    }
}

/// RFC 9110 §15.5.9: the service closes a connection that was idle for too long, while the next request is on its way.
#[test]
fn a_408_on_an_idle_connection_is_its_end_and_no_response() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        while let Some(request) = reading.head(connection) {
            let is_late = request.line().contains("/late") && connection == 0;
            seen(request);
            if is_late {
                let gone = b"HTTP/1.1 408 Late\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                let _ = stream.write_all(gone);
                return;
            }
            let _ = stream.write_all(&ok("fine"));
        }
    });
    let gateway = Gateway::start("", &open(&service));

    assert_eq!(gateway.get("/", "").text(), "fine");
    assert_eq!(gateway.get("/late", "").text(), "fine");

    assert_eq!(service.connections(), 2);
}

#[test]
fn an_idle_connection_is_used_no_more_after_a_reload_that_keeps_none() {
    let service = Upstream::polite();
    let gateway = Gateway::start("", &open(&service));
    assert_eq!(gateway.get("/", "").status, 200);

    let rest = open(&service).replace("targets", "keep_alive: 0s, targets");
    gateway.reload("", &rest).expect("a good file");

    for connections in 2..=3 {
        assert_eq!(gateway.get("/", "").status, 200);
        assert_eq!(service.connections(), connections);
    }
}

#[test]
fn the_beginning_of_a_record_is_the_beginning_of_an_answer() {
    for cut in [1, 4, 5, 20] {
        let world = World::start(&version::TLS13, move |tls, _| {
            tls.say(&ok("fine"));
            let record = tls.seal(PIECE);
            tls.raw(&record[..cut]);
        });
        for times in 1..=3 {
            assert_eq!(world.gateway.get("/", "").text(), "fine");
            // It may come with the answer or behind it; a look at it is all that counts.
            eventually("the connection's end", || {
                world.service.connections() == times && {
                    thread::sleep(core::time::Duration::from_millis(20));
                    true
                }
            });
        }
    }
}

#[test]
fn a_tls_record_on_an_idle_connection_is_never_a_response() {
    for more in [PIECE, b"x"] {
        let world = World::start(&version::TLS13, move |tls, _| {
            tls.say(&ok("fine"));
            thread::sleep(core::time::Duration::from_millis(50));
            tls.say(more);
        });
        for times in 1..=3 {
            assert_eq!(world.gateway.get("/", "").text(), "fine");
            eventually("the connection is given up", || world.open() == 0);
            assert_eq!(world.service.connections(), times);
        }
    }
}

#[test]
fn a_goodbye_ends_a_connection_that_rests() {
    let world = World::start(&version::TLS13, |tls, _| {
        tls.say(&ok("fine"));
        tls.connection.send_close_notify();
        tls.flush();
    });
    for times in 1..=3 {
        assert_eq!(world.gateway.get("/", "").text(), "fine");
        eventually("the connection is given up", || world.open() == 0);
        assert_eq!(world.service.connections(), times);
    }
}

#[test]
fn tls_tickets_and_key_updates_keep_the_connection() {
    let world = World::start(&version::TLS13, |tls, _| {
        // Tickets come with the first answer (RFC 8446 §4.6.1), new keys behind each (§4.6.3).
        tls.say(&ok("fine"));
        thread::sleep(core::time::Duration::from_millis(20));
        tls.connection.refresh_traffic_keys().expect("TLS 1.3");
        tls.flush();
    });
    for _ in 0..5 {
        assert_eq!(world.gateway.get("/", "").text(), "fine");
        thread::sleep(core::time::Duration::from_millis(60));
    }
    assert_eq!(world.service.connections(), 1);
}

#[test]
fn bytes_after_an_unencrypted_response_are_never_the_next_response() {
    for late in [false, true] {
        let service = Upstream::by_hand(move |mut stream, connection, seen| {
            let mut reading = Reading::new(&stream);
            while let Some(request) = reading.request(connection) {
                seen(request);
                let answer = padded(8_192);
                if late {
                    let _ = stream.write_all(&answer);
                    thread::sleep(core::time::Duration::from_millis(50));
                    let _ = stream.write_all(PIECE);
                } else {
                    let _ = stream.write_all(&[&answer, PIECE].concat());
                }
            }
        });
        let gateway = Gateway::start("", &open(&service));
        for _ in 0..3 {
            let body = gateway.get("/", "").body;
            assert!(body.iter().all(|byte| *byte == b'x'));
            eventually("the connection's end", || {
                let text = gateway.metrics.render();
                !text.lines().any(|line| {
                    line.starts_with("northgate_upstream_connections") && !line.ends_with(" 0")
                })
            });
        }
    }
}

#[test]
fn a_request_is_sent_no_more_often_than_it_may_be_however_many_connections_rest() {
    for (method, attempts, times) in
        [("GET", 2, 2), ("GET", 1, 2), ("GET", 0, 1), ("PUT", 5, 2), ("POST", 5, 1)]
    {
        let together = Arc::new(Barrier::new(8));
        let service = Upstream::by_hand(move |mut stream, connection, seen| {
            let mut reading = Reading::new(&stream);
            while let Some(request) = reading.request(connection) {
                let warm = request.target() == "/warm";
                seen(request);
                if !warm {
                    return;
                }
                together.wait();
                let _ = stream.write_all(&ok("warm"));
            }
        });
        let rest = open(&service)
            .replace("targets", &format!("retries: {{ attempts: {attempts} }}, targets"));
        let gateway = Gateway::start("", &rest);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(gateway.get("/warm", "").text(), "warm"));
            }
        });
        eventually("eight idle connections", || gateway.metric(IDLE) == 8.0);
        service.forget();

        let answer = gateway
            .ask(&format!("{method} /reset HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));

        assert_eq!(answer.status, 502);
        let seen = service.seen();
        assert_eq!(seen.len(), times, "{method} with {attempts} attempts");
        let kept = seen.iter().filter(|seen| seen.connection < 8).count();
        assert_eq!(kept, 1, "one connection that had rested, then new ones");
    }
}

#[test]
fn a_connection_that_was_closed_while_it_rested_costs_no_request() {
    let service = Upstream::by_hand(|mut stream, connection, seen| {
        let mut reading = Reading::new(&stream);
        if let Some(request) = reading.request(connection) {
            seen(request);
            let _ = stream.write_all(&ok("fine"));
        }
        // It says nothing of a second request on the same connection, and closes.
        let _ = reading.until(b"\r\n\r\n");
    });
    let gateway = Gateway::start("", &open(&service));
    for _ in 0..4 {
        assert_eq!(gateway.get("/", "").text(), "fine");
    }
}

/// An answer of exactly so many bytes.
fn padded(length: usize) -> Vec<u8> {
    let head = |body: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {body:05}\r\n\r\n");
    let body = length - head(0).len();
    let mut answer = head(body).into_bytes();
    answer.resize(length, b'x');
    answer
}

/// A gateway before a service behind TLS.
struct World {
    gateway: Gateway,
    service: Upstream,
}

impl World {
    /// `answer` says what comes back for each request.
    fn start(
        protocol: &'static SupportedProtocolVersion,
        answer: impl Fn(&mut Tls, &Seen) + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let made = rcgen::generate_simple_self_signed(["service.test".to_owned()]).expect("a key");
        std::fs::write(directory.path().join("ca.pem"), made.cert.pem()).expect("a file");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[protocol])
            .expect("a version")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate");
        let config = Arc::new(config);
        let service = Upstream::by_hand(move |stream, connection, seen| {
            let mut tls = Tls {
                connection: ServerConnection::new(Arc::clone(&config)).expect("a server"),
                stream,
            };
            while let Some(head) = tls.head() {
                let request = Seen::head(connection, &head);
                answer(&mut tls, &request);
                seen(request);
            }
        });
        let url = service.url().replace("http:", "https:");
        let text = format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
             server: {{ workers: 1 }}\nupstreams:\n  service: {{ targets: [\"{url}\"], \
             tls: {{ ca_file: ca.pem, server_name: service.test }} }}\n\
             routes:\n  - {{ id: open, path: /**, upstream: service, auth: none }}\n"
        );
        Self { gateway: Gateway::within(directory, noon(), &text), service }
    }

    /// How many connections to the service the gateway has.
    fn open(&self) -> usize {
        (self.gateway.metric(IDLE) + self.gateway.metric(&IDLE.replace("idle", "active"))) as usize
    }
}

/// One connection of the service's, record by record.
struct Tls {
    connection: ServerConnection,
    stream: TcpStream,
}

impl Tls {
    /// The next request's head; `None` if the connection ends.
    fn head(&mut self) -> Option<Vec<u8>> {
        let (mut head, mut some) = (Vec::new(), [0; 4096]);
        while !head.ends_with(b"\r\n\r\n") {
            match self.connection.reader().read(&mut some) {
                Ok(0) => return None,
                Ok(count) => head.extend_from_slice(&some[..count]),
                Err(_) => {
                    self.flush();
                    self.connection.read_tls(&mut self.stream).ok().filter(|count| *count > 0)?;
                    self.connection.process_new_packets().ok()?;
                    self.flush();
                }
            }
        }
        Some(head)
    }

    /// Sends these bytes in one record.
    fn say(&mut self, bytes: &[u8]) {
        let record = self.seal(bytes);
        self.raw(&record);
    }

    /// These bytes in one record.
    fn seal(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.flush();
        self.connection.writer().write_all(bytes).expect("a session");
        let mut sealed = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut sealed).expect("a buffer");
        }
        sealed
    }

    fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn flush(&mut self) {
        while self.connection.wants_write() {
            if self.connection.write_tls(&mut self.stream).is_err() {
                return;
            }
        }
    }
}

const IDLE: &str = "northgate_upstream_connections{upstream=\"service\",state=\"idle\"}";
