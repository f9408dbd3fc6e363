//! How the program ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::{Running, ask, file};

const SOON: Duration = Duration::from_secs(20);

/// The reader of the log has stopped: standard output is a full pipe.
fn with_a_full_log(server: &str) -> (Running, std::net::SocketAddr, super::Log) {
    let mut gateway = Running::start(&file(server, 0, 0), &[]);
    let mut log = gateway.log();
    let address = log.address();
    // More lines than a pipe takes (64 KiB), each a request's.
    let mut client = TcpStream::connect(address).expect("a connection");
    let target = "x".repeat(400);
    for _ in 0..400 {
        client
            .write_all(format!("GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .expect("sent");
        let mut answer = [0; 4096];
        assert!(client.read(&mut answer).expect("an answer") > 0);
    }
    (gateway, address, log)
}

#[test]
fn a_log_that_is_not_read_does_not_hold_up_the_end() {
    let (mut gateway, _, _unread) = with_a_full_log("workers: 1");

    gateway.signal("-TERM");

    assert_eq!(gateway.end(SOON).and_then(|status| status.code()), Some(0));
}

#[test]
fn a_second_signal_ends_the_process_at_once_whatever_hangs() {
    for (second, code) in [("-TERM", 143), ("-INT", 130)] {
        let (mut gateway, address, _unread) =
            with_a_full_log("workers: 1, drain_delay: 5m, drain_timeout: 5m");
        gateway.signal("-TERM");
        assert!(gateway.end(Duration::from_millis(200)).is_none(), "it drains");
        assert_eq!(ask(address).as_deref(), Some("204"), "the delay goes on");

        gateway.signal(second);

        assert_eq!(gateway.end(SOON).and_then(|status| status.code()), Some(code), "{second}");
    }
}
