//! What is counted for each listener.

use std::sync::Arc;

use crate::base::clock::Timestamp;
use crate::base::shelf::Shelf;

use super::Source;
use super::family::{self, Scrape};
use super::value::{Gauge, Named};
use super::words::{HandshakeFailure, Protocol, Tally, Word as _};

/// One listener's numbers; exported as long as somebody holds them.
#[derive(Debug)]
pub struct ListenerMetrics {
    name: Arc<str>,
    accepted: Tally<Protocol>,
    open: [Gauge; PROTOCOLS],
    failures: Tally<HandshakeFailure>,
    certificates: Shelf<Arc<str>, Named>,
}

impl ListenerMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            accepted: Tally::new(),
            open: Default::default(),
            failures: Tally::new(),
            certificates: Shelf::default(),
        }
    }

    /// A connection is up and its protocol known. Each is [`ListenerMetrics::closed`] once.
    pub fn opened(&self, protocol: Protocol) {
        self.accepted.inc(protocol);
        self.open[protocol.place()].inc();
    }

    /// A connection is gone.
    pub fn closed(&self, protocol: Protocol) {
        self.open[protocol.place()].dec();
    }

    /// A TLS handshake came to nothing.
    pub fn handshake_failed(&self, why: HandshakeFailure) {
        self.failures.inc(why);
    }

    /// The certificate for `name` ends at `expiry`; exported as long as somebody holds the answer.
    pub fn certificate(&self, name: &str, expiry: Timestamp) -> Arc<Named> {
        let certificate = self.certificates.keep(name.into(), || Named::new(name));
        certificate.set(expiry.as_secs().cast_signed());
        certificate
    }

    /// Connections open now, of all protocols.
    pub fn open(&self) -> i64 {
        self.open.iter().map(Gauge::value).sum()
    }
}

impl Source for ListenerMetrics {
    fn report(&self, to: &mut Scrape) {
        let listener = &*self.name;
        for (protocol, open) in Protocol::ALL.iter().zip(&self.open) {
            to.gauge(&family::CONNECTIONS, &[listener, protocol.word()], open);
        }
        for (protocol, count) in self.accepted.iter() {
            to.counter(&family::CONNECTIONS_ACCEPTED, &[listener, protocol], count);
        }
        for (reason, count) in self.failures.iter() {
            to.counter(&family::HANDSHAKE_FAILURES, &[listener, reason], count);
        }
        for certificate in self.certificates.living() {
            to.gauge(&family::CERTIFICATE_EXPIRY, &[listener, certificate.name()], &certificate);
        }
    }
}

const PROTOCOLS: usize = Protocol::ALL.len();
