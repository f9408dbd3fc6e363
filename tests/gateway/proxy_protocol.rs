//! A load balancer that speaks the PROXY protocol names its client; one that may not is refused.

use core::time::Duration;

use crate::support::{Client, Gateway, Upstream, eventually, noon, open};

/// A gateway behind balancers of `trusted`.
fn behind(trusted: &str, server: &str, service: &Upstream) -> Gateway {
    let server = format!("{{ workers: 1, trusted_proxies: [{trusted}]{server} }}");
    Gateway::of(
        noon(),
        &format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\", proxy_protocol: true }}]\n\
             admin: {{ listen: \"127.0.0.1:0\" }}\nserver: {server}\n{}",
            open(service)
        ),
    )
}

fn version2(command: u8, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([command, protocol]);
    bytes.extend((rest.len() as u16).to_be_bytes());
    bytes.extend(rest);
    bytes
}

const IPV4: [u8; 12] = [203, 0, 113, 9, 192, 0, 2, 2, 0x9c, 0x40, 1, 0xbb];
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 198.51.100.77\r\n\r\n";

#[test]
fn the_address_in_the_header_is_the_clients() {
    let service = Upstream::polite();
    let gateway = behind("127.0.0.0/8", "", &service);
    let extended = [&IPV4[..], &[0xee; 3000]].concat();
    let mut ipv6 = [0; 36];
    ipv6[..16].copy_from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    for (header, client) in [
        (b"PROXY TCP4 203.0.113.9 192.0.2.2 40000 443\r\n".to_vec(), "203.0.113.9"),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 40000 443\r\n".to_vec(), "2001:db8::9"),
        (version2(0x21, 0x11, &IPV4), "203.0.113.9"),
        (version2(0x21, 0x11, &extended), "203.0.113.9"),
        (version2(0x21, 0x21, &ipv6), "2001:db8::9"),
    ] {
        service.forget();
        let mut client_ = gateway.connect();
        client_.send([&header[..], GET.as_bytes()].concat());
        assert_eq!(client_.answer().status, 200);
        // What the client itself says of others is not believed.
        assert_eq!(service.only().field("x-forwarded-for"), Some(client));
        let log = gateway.log();
        assert!(log.contains(&format!("\"client.address\":\"{client}\"")), "{log}");
        // The header is the connection's: the next request has none.
        client_.send(GET);
        assert_eq!(client_.answer().status, 200);
    }
}

#[test]
fn a_header_may_arrive_byte_by_byte() {
    let service = Upstream::polite();
    let gateway = behind("127.0.0.1", "", &service);
    for header in
        [b"PROXY TCP4 203.0.113.9 192.0.2.2 1 2\r\n".to_vec(), version2(0x21, 0x11, &IPV4)]
    {
        let mut client = gateway.connect();
        for byte in &header {
            client.send([*byte]);
            std::thread::sleep(Duration::from_millis(1));
        }
        client.send(GET);
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn a_header_without_a_client_lends_no_trust() {
    let service = Upstream::polite();
    let gateway = behind("127.0.0.0/8", "", &service);
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN 203.0.113.9 192.0.2.2 1 2\r\n".to_vec(),
        version2(0x20, 0x00, &[]),
        version2(0x20, 0x11, &IPV4),
        version2(0x21, 0x31, &[b'x'; 216]),
        version2(0x21, 0x00, &[]),
    ] {
        service.forget();
        let mut client = gateway.connect();
        client.send([&header[..], GET.as_bytes()].concat());
        assert_eq!(client.answer().status, 200);
        assert_eq!(service.only().field("x-forwarded-for"), Some("127.0.0.1"));
    }
}

#[test]
fn a_connection_without_a_valid_header_is_closed_unanswered() {
    let service = Upstream::polite();
    let gateway = behind("127.0.0.0/8", ", header_timeout: 1s", &service);
    let mut refused = 0;
    for start in [
        GET.as_bytes().to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.9 192.0.2.2 1\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.9 192.0.2.2 1 2\n".to_vec(),
        [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
        version2(0x21, 0x11, &IPV4[..11]),
        version2(0x31, 0x11, &IPV4),
    ] {
        let mut client = gateway.connect();
        let _ = client.try_send([&start[..], GET.as_bytes()].concat());
        assert!(client.is_closed(), "{:?}", String::from_utf8_lossy(&start));
        refused += 1;
    }
    assert_eq!(gateway.metric(&refusals("malformed")), f64::from(refused));
    // Half a header, half of its extensions, nothing at all: the timeout of heads.
    for start in [&b"PROXY TCP4 203"[..], &version2(0x21, 0x11, &[1; 300])[..100], b""] {
        let mut client = gateway.connect();
        client.send(start);
        assert!(client.is_closed());
    }
    eventually("the count", || gateway.metric(&refusals("missing")) == 3.0);
    assert!(service.seen().is_empty());
}

#[test]
fn a_sender_that_is_not_trusted_is_refused_whatever_it_sends() {
    let service = Upstream::polite();
    let gateway = behind("127.0.0.2, 10.0.0.0/8", "", &service);
    for start in ["", "PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n"] {
        let mut client = gateway.connect();
        let _ = client.try_send(format!("{start}{GET}"));
        assert!(client.is_closed());
    }
    assert_eq!(gateway.metric(&refusals("untrusted")), 2.0);
    assert!(service.seen().is_empty());
}

#[test]
fn the_limit_per_address_counts_the_clients_and_not_the_balancer() {
    let service = Upstream::polite();
    let gateway = behind("127.0.0.0/8", ", max_connections_per_ip: 2", &service);
    let open = |address: &str| -> Option<Client> {
        let mut client = gateway.connect();
        let _ = client.try_send(format!("PROXY TCP4 {address} 192.0.2.2 1 2\r\n{GET}"));
        client.try_answer().map(|answer| {
            assert_eq!(answer.status, 200);
            client
        })
    };
    let held: Vec<_> =
        (1..=4).flat_map(|n| [n, n]).map(|n| open(&format!("203.0.113.{n}"))).collect();
    assert!(held.iter().all(Option::is_some), "two of each");
    assert!(open("203.0.113.1").is_none());
    drop(held);
    eventually("a free place", || open("203.0.113.1").is_some());
}

fn refusals(reason: &str) -> String {
    format!(
        "northgate_proxy_protocol_refusals_total{{listener=\"127.0.0.1:0\",reason=\"{reason}\"}}"
    )
}
