//! What is counted for each listener.

use std::sync::Arc;

use crate::base::clock::Timestamp;
use crate::base::weak_map::WeakMap;

use super::Source;
use super::family::{self, Scrape};
use super::labels::{HandshakeFailure, LabelValue as _, LabeledCounters, Protocol};
use super::primitives::{Gauge, LabeledGauge};

/// One listener's numbers; exported as long as somebody holds them.
#[derive(Debug)]
pub struct ListenerMetrics {
    name: Arc<str>,
    accepted: LabeledCounters<Protocol>,
    open: [Gauge; PROTOCOLS],
    failures: LabeledCounters<HandshakeFailure>,
    certificates: WeakMap<Arc<str>, LabeledGauge>,
}

impl ListenerMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            accepted: LabeledCounters::new(),
            open: Default::default(),
            failures: LabeledCounters::new(),
            certificates: WeakMap::default(),
        }
    }

    /// A connection is up and its protocol known. Each is [`ListenerMetrics::closed`] once.
    pub fn opened(&self, protocol: Protocol) {
        self.accepted.inc(protocol);
        self.open[protocol.index()].inc();
    }

    /// A connection is gone.
    pub fn closed(&self, protocol: Protocol) {
        self.open[protocol.index()].dec();
    }

    /// A TLS handshake came to nothing.
    pub fn handshake_failed(&self, why: HandshakeFailure) {
        self.failures.inc(why);
    }

    /// The certificate for `name` ends at `expiry`; exported as long as somebody holds the answer.
    pub fn certificate(&self, name: &str, expiry: Timestamp) -> Arc<LabeledGauge> {
        let certificate =
            self.certificates.get_or_insert_with(name.into(), || LabeledGauge::new(name));
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
        for certificate in self.certificates.values() {
            to.gauge(&family::CERTIFICATE_EXPIRY, &[listener, certificate.name()], &certificate);
        }
    }
}

const PROTOCOLS: usize = Protocol::ALL.len();
