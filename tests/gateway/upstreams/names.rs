//! Every address of a name is a target, and a name that changes is followed.

use core::net::IpAddr;
use core::time::{self, Duration};
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use super::dns::{NameServer, Record};
use super::service::Service;
use crate::support::{Gateway, Upstream, eventually, ok};
use northgate::base::clock::Clock;

fn named(target: &str, server: &NameServer, more: &str) -> String {
    format!(
        "upstreams: {{ a: {{ targets: [\"{target}\"], dns_servers: \"{}\", dns_refresh: 100ms, {more} }} }}\n\
         routes: [{{ id: open, path: /**, upstream: a, auth: none }}]\n",
        server.address
    )
}

fn address(text: &str) -> Record {
    Record::Address(text.parse::<IpAddr>().expect("an address"))
}

/// Two services at one port of two addresses.
fn twins() -> (Service, Service) {
    loop {
        let one = Service::start(|_| ok("one"));
        let other = format!("127.0.0.2:{}", one.address.port());
        if std::net::TcpListener::bind(&other).is_ok() {
            return (one, Service::at(&other, |_| ok("two")));
        }
    }
}

fn answers(gateway: &Gateway, wanted: &[&str]) -> bool {
    let all: Vec<_> = (0..8).map(|_| gateway.get("/", "").text().to_owned()).collect();
    wanted.iter().all(|text| all.iter().any(|answer| answer == text))
        && all.iter().all(|answer| wanted.contains(&answer.as_str()))
}

#[test]
fn every_address_of_a_name_is_a_target_and_a_change_is_followed() {
    let (one, two) = twins();
    let both = vec![address("127.0.0.1"), address("127.0.0.2")];
    let server = NameServer::start(&[("orders.test", both.clone())]);
    let target = format!("http://orders.test:{}", one.address.port());
    let gateway = Gateway::at(Clock::system(), "", &named(&target, &server, ""));
    eventually("both addresses serve", || answers(&gateway, &["one", "two"]));

    server.publish(&[("orders.test", vec![address("127.0.0.2")])]);
    eventually("the address that is gone receives nothing", || answers(&gateway, &["two"]));
    server.publish(&[("orders.test", both)]);
    eventually("a new address serves", || answers(&gateway, &["one", "two"]));
    assert_eq!(one.received().len() + two.received().len(), 2);
}

#[test]
fn a_name_keeps_its_addresses_while_its_server_fails() {
    let (one, _two) = twins();
    let server = NameServer::start(&[("orders.test", vec![address("127.0.0.1")])]);
    let target = format!("http://orders.test:{}", one.address.port());
    let gateway = Gateway::at(Clock::system(), "", &named(&target, &server, ""));
    eventually("it serves", || gateway.get("/", "").status == 200);

    server.fail();
    eventually("a resolution fails", || {
        gateway.metric("northgate_upstream_resolutions_total{upstream=\"a\",result=\"failed\"}")
            > 0.0
    });

    assert_eq!(gateway.get("/", "").text(), "one");
    gateway.reload("", &named(&target, &server, "slow_start: 1s")).expect("a valid file");
    assert_eq!(gateway.get("/", "").text(), "one", "a reload forgets no addresses");
}

#[test]
fn a_family_of_addresses_that_cannot_be_resolved_keeps_those_it_had() {
    let service = Service::start(|_| ok("found"));
    let both = vec![address("127.0.0.1"), address("::1")];
    let server = NameServer::start(&[("orders.test", both)]);
    let target = format!("http://orders.test:{}", service.address.port());
    let gateway = Gateway::at(Clock::system(), "", &named(&target, &server, ""));
    eventually("it serves", || gateway.get("/", "").status == 200);

    server.fail_ipv4();
    let resolved =
        || gateway.metric("northgate_upstream_resolutions_total{upstream=\"a\",result=\"ok\"}");
    let before = resolved();
    // The first of them may have begun before.
    eventually("the other half is resolved", || resolved() >= before + 2.0);

    assert_eq!(gateway.get("/", "").text(), "found");
}

#[test]
fn a_name_without_an_address_is_resolved_again_long_before_the_next_refresh() {
    let service = Service::start(|_| ok("found"));
    let server = NameServer::start(&[]);
    server.fail();
    let target = format!("http://orders.test:{}", service.address.port());
    let text = named(&target, &server, "connect_timeout: 100ms")
        .replace("dns_refresh: 100ms", "dns_refresh: 1h");
    let gateway = Gateway::at(Clock::system(), "", &text);
    assert_ne!(gateway.get("/", "").status, 200);

    server.publish(&[("orders.test", vec![address("127.0.0.1")])]);

    eventually("the name is found", || gateway.get("/", "").status == 200);
}

#[test]
fn service_records_name_ports_weights_and_priorities() {
    let (one, two) = (Service::start(|_| ok("one")), Service::start(|_| ok("two")));
    let record = |priority, weight, service: &Service, host| Record::Service {
        priority,
        weight,
        port: service.address.port(),
        host,
    };
    let hosts = |records| {
        vec![
            ("_http._tcp.orders.test", records),
            ("n1.orders.test", vec![address("127.0.0.1")]),
            ("n2.orders.test", vec![address("127.0.0.1")]),
        ]
    };
    let server = NameServer::start(&hosts(vec![
        record(0, 3, &one, "n1.orders.test"),
        record(0, 1, &two, "n2.orders.test"),
    ]));
    let target = "srv://_http._tcp.orders.test";
    let gateway = Gateway::at(Clock::system(), "", &named(target, &server, ""));
    eventually("the records are found", || gateway.get("/", "").status == 200);
    let (before, other) = (one.count("/w"), two.count("/w"));
    for _ in 0..40 {
        gateway.get("/w", "");
    }
    assert_eq!((one.count("/w") - before, two.count("/w") - other), (30, 10));

    server.publish(&hosts(vec![
        record(10, 1, &one, "n1.orders.test"),
        record(0, 1, &two, "n2.orders.test"),
    ]));
    eventually("only the preferred one serves", || answers(&gateway, &["two"]));
    two.kill();
    eventually("the other one serves when it is gone", || answers(&gateway, &["one"]));
}

#[test]
fn a_name_with_an_address_that_refuses_serves_from_the_other_one() {
    let service = Service::start(|_| ok("fine"));
    let server = NameServer::start(&[("orders.test", vec![address("::1"), address("127.0.0.1")])]);
    let target = format!("http://orders.test:{}", service.address.port());
    let more = "retries: { attempts: 0 }, keep_alive: 0s";
    let gateway = Gateway::at(Clock::system(), "", &named(&target, &server, more));
    eventually("the name is resolved", || gateway.get("/", "").status == 200);

    for _ in 0..20 {
        assert_eq!(gateway.get("/", "").status, 200);
    }
}

#[test]
fn a_silent_address_costs_a_fraction_of_the_connection_timeout() {
    // An address of TEST-NET-1 (RFC 5737) is silent, or unreachable at once where there is no network.
    let service = Service::start(|_| ok("fine"));
    let silent = address("192.0.2.1");
    let server = NameServer::start(&[("orders.test", vec![silent, address("127.0.0.1")])]);
    let target = format!("http://orders.test:{}", service.address.port());
    let more = "retries: { attempts: 0 }, keep_alive: 0s, connect_timeout: 5s";
    let gateway = Gateway::at(Clock::system(), "", &named(&target, &server, more));
    eventually("the name is resolved", || gateway.get("/", "").status == 200);

    for _ in 0..4 {
        #[expect(clippy::disallowed_methods, reason = "the race itself is measured")]
        let began = Instant::now();
        assert_eq!(gateway.get("/", "").status, 200);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    }
}

#[test]
fn a_request_that_succeeds_opens_no_circuit_however_many_addresses_refuse() {
    let service = Service::at("127.0.0.7:0", |_| ok("fine"));
    let all = [2, 3, 4, 5, 7].map(|last| address(&format!("127.0.0.{last}"))).to_vec();
    let server = NameServer::start(&[("orders.test", all)]);
    let target = format!("http://orders.test:{}", service.address.port());
    let more = "circuit_breaker: { errors: 2, open_for: 1h }";
    let gateway = Gateway::at(Clock::system(), "", &named(&target, &server, more));
    eventually("the name is resolved", || {
        service.count("/") > 0 || {
            gateway.get("/", "");
            false
        }
    });

    for _ in 0..10 {
        assert_eq!(gateway.get("/then", "").status, 200);
    }
}

#[test]
fn a_service_listens_on_a_unix_socket() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("app.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut seen = Vec::new();
            let mut byte = [0];
            while std::io::Read::read(&mut stream, &mut byte).is_ok_and(|n| n == 1) {
                seen.push(byte[0]);
                if seen.ends_with(b"\r\n\r\n") {
                    let host = String::from_utf8_lossy(&seen).contains("host: localhost\r\n");
                    stream.write_all(&ok(if host { "unix" } else { "no host" })).expect("read");
                    seen.clear();
                }
            }
        }
    });
    let text = format!(
        "upstreams: {{ a: {{ targets: [\"unix:{}\"] }} }}\nroutes: [{{ id: open, path: /**, upstream: a, auth: none }}]\n",
        path.display()
    );
    let gateway = Gateway::start("", &text);

    for _ in 0..3 {
        assert_eq!(gateway.get("/", "").text(), "unix");
    }
}

#[test]
fn the_log_names_the_address_and_the_cause_of_a_failure() {
    let gone = Upstream::polite();
    let url = gone.url();
    drop(gone);
    let text = format!(
        "upstreams: {{ a: {{ targets: [{url}] }} }}\nroutes: [{{ id: open, path: /**, upstream: a, auth: none }}]\n"
    );
    let gateway = Gateway::start("", &text);
    eventually("the port is closed", || std::net::TcpStream::connect(&url[7..]).is_err());

    assert_eq!(gateway.get("/", "").status, 502);

    eventually("the line is written", || {
        let log = gateway.log();
        log.contains(&format!("\"target\":\"{url}\""))
            && log.contains("\"error.cause\":\"connection refused\"")
    });
    let silent = Upstream::by_hand(|stream, _, _| {
        std::thread::sleep(time::Duration::from_secs(3));
        drop(stream);
    });
    let text = format!(
        "upstreams: {{ a: {{ targets: [{}], timeout: 100ms, retries: {{ attempts: 0 }} }} }}\nroutes: [{{ id: open, path: /**, upstream: a, auth: none }}]\n",
        silent.url()
    );
    gateway.reload("", &text).expect("a valid file");
    assert_eq!(gateway.get("/", "").status, 504);
    eventually("the line is written", || {
        let log = gateway.log();
        log.contains(&format!("\"target\":\"{}\"", silent.url()))
            && log.contains("\"error.cause\":\"timed out: no response in time\"")
    });
}
