//! Stops new TCP handshakes on a listening socket before it is closed, so that none is reset.
//!
//! The system completes handshakes by itself, and resets what waits on a socket that is closed. So the socket ignores
//! the first packet (SYN) of new connections for a moment, until all handshakes under way have been completed and
//! accepted. A client whose SYN was ignored sends it again after a second, and reaches the sockets of the gateway that
//! has taken over the address. Without such a gateway the client would wait for nothing, and the socket is closed at
//! once.

use core::time::Duration;
use std::io;

use tokio::net::TcpListener;

/// Returns the number of sockets of all processes that listen on each of `ports`; `None` if the system does not report
/// it.
pub(super) fn listening_sockets(ports: &[u16]) -> Option<Vec<usize>> {
    let mut counts = vec![0; ports.len()];
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match std::fs::read_to_string(table) {
            Ok(table) => {
                for listening in table.lines().filter_map(listening_port) {
                    let same =
                        ports.iter().zip(&mut counts).filter(|(port, _)| **port == listening);
                    same.for_each(|(_, count)| *count += 1);
                }
            }
            // A system without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
            Err(_) => return None,
        }
    }
    Some(counts)
}

/// Returns the port of a line of the system's table of connections, if it is of a listening socket.
fn listening_port(line: &str) -> Option<u16> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let (_, port) = columns.next()?.split_once(':')?;
    let state = columns.nth(1)?;
    (state == LISTENING).then(|| u16::from_str_radix(port, 16).ok())?
}

/// The state `LISTEN` in the table.
const LISTENING: &str = "0A";
/// The time for handshakes under way: a round trip. Shorter than the second after which clients send again.
pub(super) const HANDSHAKES_COMPLETE: Duration = Duration::from_millis(250);

/// Makes the system ignore new handshakes on `socket`; those under way are completed.
///
/// # Errors
///
/// If the system refuses the filter, or has none.
#[cfg(target_os = "linux")]
pub(super) fn ignore_new_handshakes(socket: &TcpListener) -> io::Result<()> {
    use socket2::{SockFilter, SockRef};
    // Classic BPF over the TCP header: drops a packet with SYN and without ACK.
    let filter = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(AND, 0, 0, SYN | ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    SockRef::from(socket).attach_filter(&filter)
}

/// Fails: the system has no such filter.
#[cfg(not(target_os = "linux"))]
pub(super) fn ignore_new_handshakes(_: &TcpListener) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
const LOAD_BYTE: u16 = 0x30;
#[cfg(target_os = "linux")]
const AND: u16 = 0x54;
#[cfg(target_os = "linux")]
const JUMP_IF_EQUAL: u16 = 0x15;
#[cfg(target_os = "linux")]
const RETURN: u16 = 0x06;
/// The offset of the flags in a TCP header (RFC 9293 §3.1).
#[cfg(target_os = "linux")]
const FLAGS_OFFSET: u32 = 13;
#[cfg(target_os = "linux")]
const SYN: u32 = 0x02;
#[cfg(target_os = "linux")]
const ACK: u32 = 0x10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_counted_by_port() {
        for (line, port) in [
            ("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000", Some(8080)),
            (
                "   1: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A 0",
                Some(80),
            ),
            ("   2: 0100007F:1F90 0100007F:A1B2 01 00000000:00000000", None),
            ("  sl  local_address rem_address   st tx_queue rx_queue", None),
            ("", None),
        ] {
            assert_eq!(listening_port(line), port, "{line}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_listening_socket_of_this_process_is_in_the_table() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = socket.local_addr().expect("an address").port();
        assert_eq!(listening_sockets(&[port, 1]).map(|counts| counts[0]), Some(1));
    }
}
