//! More connections than one worker accepts at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Running, ask, file};

/// Connections that end at once come faster than a worker accepts them: what has ended must leave nothing behind.
#[test]
fn short_connections_without_end_cost_no_memory_and_starve_nobody() {
    let mut gateway = Running::start(&file("workers: 1", 0, 0), &[]);
    let mut log = gateway.log();
    let address = log.address();
    log.ignore();
    let before = gateway.peak_memory();
    let mut steady = TcpStream::connect(address).expect("a connection");
    steady.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");

    let flooding: Vec<_> = (0..4).map(|_| thread::spawn(move || flood(address, 5_000))).collect();
    let mut answered = 0;
    while !flooding.iter().all(thread::JoinHandle::is_finished) {
        steady.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        assert!(steady.read(&mut [0; 4096]).expect("an answer in time") > 0);
        answered += 1;
    }

    let opened: usize = flooding.into_iter().map(|flood| flood.join().expect("no panic")).sum();
    let grown = gateway.peak_memory() - before;
    assert!(opened > 10_000 && answered > 10, "{opened} {answered}");
    assert!(grown < 100, "{grown} MiB for {opened} connections");
    assert_eq!(ask(address).as_deref(), Some("204"));
}

/// Opens connections and resets them, as fast as it can.
fn flood(address: SocketAddr, count: usize) -> usize {
    let opened = (0..count).filter_map(|_| {
        let stream = TcpStream::connect(address).ok()?;
        // A reset leaves no port of this machine waiting.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()
    });
    opened.count()
}

/// Each worker has a socket for each listener: connections come on any of them.
#[test]
fn fewer_places_than_sockets_serve_every_connection_in_its_turn() {
    let text = file("workers: 4, max_connections: 1", 0, 0).replace(
        "listen: 127.0.0.1:0\nadmin",
        "listen: [ \"127.0.0.1:0\", \"127.0.0.1:0\" ]\nadmin",
    );
    let mut gateway = Running::start(&text, &[]);
    let mut log = gateway.log();
    let addresses = [log.address(), log.address()];
    log.ignore();

    for round in 0..20 {
        for address in addresses {
            assert_eq!(ask(address).as_deref(), Some("204"), "{round} {address}");
        }
    }
}
