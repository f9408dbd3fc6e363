//! Targets whose system accepts connections while they say nothing: a process that is stopped, or locked in itself.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use super::dns::{NameServer, Record};
use crate::support::{Gateway, Http2Service, drain, eventually, frame, next_frame};

#[test]
fn a_connection_alone_closes_no_circuit() {
    let silent = SilentService::start("127.0.0.1:0");
    let settings = ", connect_timeout: 200ms, retries: { attempts: 0 }, \
                    circuit_breaker: { errors: 2, open_for: 50ms, close_after: 1 }";
    let gateway = Gateway::start("", &file(&silent.url, settings));
    for _ in 0..2 {
        assert_eq!(gateway.get("/a", "").status, 502);
    }
    let before = silent.connections();

    eventually("it is probed", || silent.connections() >= before + 3);

    // No request is what finds out.
    let circuit = "northgate_upstream_circuit_state{upstream=\"service\"}";
    assert_ne!(gateway.metric(circuit), 0.0);
    assert_eq!(gateway.get("/a", "").status, 503);
    silent.wake();
    eventually("the circuit closes", || gateway.get("/a", "").status == 200);
}

#[test]
fn an_address_that_accepts_and_says_nothing_gets_no_further_request() {
    let service = Http2Service::start(100, async |mut call| {
        call.read().await;
        call.answer("x");
    });
    let url = service.url();
    let port = url.rsplit(':').next().expect("a port");
    let silent = SilentService::start(&format!("127.0.0.3:{port}"));
    let all = ["127.0.0.3", "127.0.0.1"]
        .map(|address| Record::Address(address.parse().expect("an address")));
    let server = NameServer::start(&[("orders.test", all.to_vec())]);
    let url = format!("http://orders.test:{port}");
    let settings = format!(", dns_servers: [\"{}\"], connect_timeout: 400ms", server.address);
    let gateway = Gateway::start("", &file(&url, &settings));

    eventually("the silent address is known", || {
        assert_eq!(gateway.get("/a", "").status, 200);
        let state = gateway.operator("GET /-/upstreams HTTP/1.1\r\nHost: localhost\r\n\r\n");
        state.text().contains("unreachable")
    });

    let before = service.calls();
    for _ in 0..20 {
        assert_eq!(gateway.get("/a", "").status, 200);
    }
    assert_eq!(service.calls(), before + 20);
    silent.wake();
    eventually("the address is asked again", || {
        gateway.get("/a", "");
        silent.served.load(SeqCst) > 0
    });
}

/// A configuration with one upstream in HTTP/2.
fn file(target: &str, settings: &str) -> String {
    format!(
        "upstreams:\n  service: {{ targets: [\"{target}\"], http2: always{settings} }}\n\
         routes:\n  - {{ id: open, path: /**, upstream: service, auth: none }}\n"
    )
}

/// A service that accepts connections, and says nothing until it wakes.
struct SilentService {
    url: String,
    connections: Arc<AtomicUsize>,
    awake: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl SilentService {
    fn start(address: &str) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (connections, served) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let awake = Arc::<AtomicBool>::default();
        let (accepted, is_awake, answered) =
            (Arc::clone(&connections), Arc::clone(&awake), Arc::clone(&served));
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                accepted.fetch_add(1, SeqCst);
                let (is_awake, answered) = (Arc::clone(&is_awake), Arc::clone(&answered));
                thread::spawn(move || {
                    if !is_awake.load(SeqCst) {
                        return drain(&mut stream);
                    }
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
                    let _ = stream.write_all(&frame(4, 0, 0, &[]));
                    let _ = stream.read_exact(&mut [0; 24]);
                    while let Some((kind, id)) = next_frame(&mut stream) {
                        if kind == 1 {
                            answered.fetch_add(1, SeqCst);
                            let _ = stream.write_all(&frame(1, 5, id, &[0x88]));
                        }
                    }
                });
            }
        });
        Self { url, connections, awake, served }
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    fn wake(&self) {
        self.awake.store(true, SeqCst);
    }
}
