//! More connections than one worker accepts at a time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use super::{Running, ask, file};

/// As long as more connections wait than a worker accepts at a time, nothing else of its loops has a turn: here the
/// queues are full before it runs. What has ended must leave nothing behind by then.
#[test]
fn connections_that_have_ended_cost_no_memory_while_more_of_them_wait() {
    let addresses = ["\"127.0.0.1:0\""; 12].join(", ");
    let text = file("workers: 1", 0, 0)
        .replace("listen: 127.0.0.1:0\n", &format!("listen: [ {addresses} ]\n"));
    let mut gateway = Running::start(&text, &[]);
    let mut log = gateway.log();
    let addresses: Vec<_> = (0..12).map(|_| log.address()).collect();
    log.ignore();
    assert!(addresses.iter().all(|address| ask(*address).as_deref() == Some("204")));
    let before = gateway.peak_memory();

    gateway.signal("-STOP");
    let filling: Vec<_> =
        addresses.iter().map(|&address| thread::spawn(move || flood(address, 4_000))).collect();
    let opened: usize = filling.into_iter().map(|flood| flood.join().expect("no panic")).sum();
    gateway.signal("-CONT");

    assert!(addresses.iter().all(|address| ask(*address).as_deref() == Some("204")));
    let grown = gateway.peak_memory() - before;
    assert!(opened > 40_000 && grown < 10, "{grown} MiB for {opened} connections");
}

#[test]
fn a_flood_of_short_connections_starves_no_other_client() {
    let mut gateway = Running::start(&file("workers: 1", 0, 0), &[]);
    let mut log = gateway.log();
    let address = log.address();
    log.ignore();
    let mut steady = TcpStream::connect(address).expect("a connection");
    steady.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");

    let flooding: Vec<_> = (0..4).map(|_| thread::spawn(move || flood(address, 1_500))).collect();
    let mut answered = 0;
    while !flooding.iter().all(thread::JoinHandle::is_finished) {
        steady.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("sent");
        assert!(steady.read(&mut [0; 4096]).expect("an answer in time") > 0);
        answered += 1;
    }

    let opened: usize = flooding.into_iter().map(|flood| flood.join().expect("no panic")).sum();
    assert!(opened > 5_000 && answered > 10, "{opened} {answered}");
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
