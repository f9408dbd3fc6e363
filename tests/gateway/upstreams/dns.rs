//! A name server that answers as it is told (RFC 1035, RFC 2782).

use core::net::{IpAddr, SocketAddr};
use std::collections::HashMap;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A record of a name.
#[derive(Clone)]
pub(super) enum Record {
    Address(IpAddr),
    Service { priority: u16, weight: u16, port: u16, host: &'static str },
}

/// A running name server. Names without records do not exist.
pub(super) struct NameServer {
    pub(super) address: SocketAddr,
    zone: Arc<Mutex<Option<Zone>>>,
    /// The type of records whose queries fail, if any.
    failing: Arc<Mutex<Option<u16>>>,
}

type Zone = HashMap<&'static str, Vec<Record>>;

impl NameServer {
    pub(super) fn start(zone: &[(&'static str, Vec<Record>)]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("a bound socket");
        let server = Self { address, zone: Arc::default(), failing: Arc::default() };
        server.publish(zone);
        let (zone, failing) = (Arc::clone(&server.zone), Arc::clone(&server.failing));
        thread::spawn(move || {
            let mut query = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let zone = zone.lock().unwrap_or_else(PoisonError::into_inner);
                let failing = *failing.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = socket.send_to(&answer(&query[..length], zone.as_ref(), failing), from);
            }
        });
        server
    }

    /// Replaces all records.
    pub(super) fn publish(&self, zone: &[(&'static str, Vec<Record>)]) {
        *self.lock() = Some(zone.iter().cloned().collect());
    }

    /// Fails every query from now on (SERVFAIL).
    pub(super) fn fail(&self) {
        *self.lock() = None;
    }

    /// Fails every query for A records from now on (SERVFAIL).
    pub(super) fn fail_ipv4(&self) {
        *self.failing.lock().unwrap_or_else(PoisonError::into_inner) = Some(1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Zone>> {
        self.zone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(query: &[u8], zone: Option<&Zone>, failing: Option<u16>) -> Vec<u8> {
    let mut end = 12;
    let mut labels = Vec::new();
    while query[end] != 0 {
        let length = usize::from(query[end]);
        labels.push(String::from_utf8_lossy(&query[end + 1..=end + length]).to_lowercase());
        end += length + 1;
    }
    let (name, kind) = (labels.join("."), u16::from_be_bytes([query[end + 1], query[end + 2]]));
    let question = &query[12..end + 5];
    let zone = zone.filter(|_| failing != Some(kind));
    let records = zone.and_then(|zone| zone.get(name.as_str()));
    let code = match (zone, records) {
        (None, _) => 2,
        (Some(_), None) => 3,
        (Some(_), Some(_)) => 0,
    };
    let data: Vec<_> = records.into_iter().flatten().filter_map(|r| r.data(kind)).collect();
    let mut out = query[..2].to_vec();
    out.extend([0x85, 0x80 | code, 0, 1]);
    out.extend((data.len() as u16).to_be_bytes());
    out.extend([0, 0, 0, 0]);
    out.extend(question);
    for data in data {
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 1]);
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
    }
    out
}

impl Record {
    fn data(&self, kind: u16) -> Option<Vec<u8>> {
        match (self, kind) {
            (Self::Address(IpAddr::V4(ip)), 1) => Some(ip.octets().to_vec()),
            (Self::Address(IpAddr::V6(ip)), 28) => Some(ip.octets().to_vec()),
            (Self::Service { priority, weight, port, host }, 33) => {
                let mut data = [priority, weight, port].map(|n| n.to_be_bytes()).concat();
                for label in host.split('.') {
                    data.push(label.len() as u8);
                    data.extend(label.as_bytes());
                }
                data.push(0);
                Some(data)
            }
            _ => None,
        }
    }
}
