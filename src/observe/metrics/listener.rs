//! Metrics of one listener.

use std::sync::Arc;

use crate::base::clock::Timestamp;
use crate::base::weak_map::WeakMap;

use super::family::Source;
use super::family::{self, Scrape};
use super::labels::{HandshakeFailure, LabelValue as _, LabeledCounters, Protocol, ProxyRefusal};
use super::primitives::{Counter, Gauge, LabeledGauge};

/// The metrics of one listener; exported while a handle exists.
#[derive(Debug)]
pub struct ListenerMetrics {
    name: Arc<str>,
    accepted: LabeledCounters<Protocol>,
    open: [Gauge; PROTOCOLS],
    failures: LabeledCounters<HandshakeFailure>,
    over_limit: Counter,
    refusals: LabeledCounters<ProxyRefusal>,
    certificates: WeakMap<Arc<str>, LabeledGauge>,
}

impl ListenerMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            accepted: LabeledCounters::new(),
            open: Default::default(),
            failures: LabeledCounters::new(),
            over_limit: Counter::default(),
            refusals: LabeledCounters::new(),
            certificates: WeakMap::default(),
        }
    }

    /// Counts a connection whose protocol is known. Must be paired with [`ListenerMetrics::closed`].
    pub fn opened(&self, protocol: Protocol) {
        self.accepted.inc(protocol);
        self.open[protocol.index()].inc();
    }

    /// Counts the end of a connection.
    pub fn closed(&self, protocol: Protocol) {
        self.open[protocol.index()].dec();
    }

    /// Counts a failed TLS handshake.
    pub fn handshake_failed(&self, why: HandshakeFailure) {
        self.failures.inc(why);
    }

    /// Counts a connection that was closed because its client's address has too many.
    pub fn refused_over_limit(&self) {
        self.over_limit.inc();
    }

    /// Counts a connection that was refused for its PROXY protocol header.
    pub fn proxy_refused(&self, why: ProxyRefusal) {
        self.refusals.inc(why);
    }

    /// Exports the expiry of the certificate for `name`, while the returned gauge exists.
    pub fn certificate(&self, name: &str, expiry: Timestamp) -> Arc<LabeledGauge> {
        let certificate =
            self.certificates.get_or_insert_with(name.into(), || LabeledGauge::new(name));
        certificate.set(expiry.as_secs().cast_signed());
        certificate
    }

    /// Returns the number of open connections, of all protocols.
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
        to.counter(&family::CONNECTION_REFUSALS, &[listener], &self.over_limit);
        for (reason, count) in self.refusals.iter() {
            to.counter(&family::PROXY_REFUSALS, &[listener, reason], count);
        }
        for certificate in self.certificates.values() {
            to.gauge(&family::CERTIFICATE_EXPIRY, &[listener, certificate.name()], &certificate);
        }
    }
}

const PROTOCOLS: usize = Protocol::ALL.len();
