//! Metrics of one authorization server.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use crate::base::clock::Timestamp;

use super::family::Source;
use super::family::{self, Scrape};
use super::labels::{Endpoint, LabelValue as _};
use super::primitives::Buckets;
use super::primitives::{Bounds, Counter, Gauge, Histogram};
use super::status_codes::StatusCounters;

/// The metrics of one authorization server; exported while a handle exists.
#[derive(Debug)]
pub struct IssuerMetrics {
    name: Arc<str>,
    durations: Bounds,
    calls: [OnceLock<Box<Calls>>; ENDPOINTS],
    /// Usable signing keys, after the first refresh.
    pub keys: Gauge,
    /// Seconds since the Unix epoch; zero before the first refresh.
    keys_read: AtomicU64,
}

/// Calls to one endpoint.
#[derive(Debug)]
struct Calls {
    answers: StatusCounters,
    unanswered: Counter,
    duration: Histogram,
}

impl IssuerMetrics {
    pub(super) fn new(name: &str, buckets: &Buckets) -> Self {
        Self {
            name: name.into(),
            durations: buckets.requests.clone(),
            calls: Default::default(),
            keys: Gauge::default(),
            keys_read: AtomicU64::new(0),
        }
    }

    /// Counts a finished call, with the status of its response, if any.
    pub fn called(&self, endpoint: Endpoint, status: Option<u16>, took: Duration) {
        let calls = self.calls[endpoint.index()].get_or_init(|| {
            Box::new(Calls {
                answers: StatusCounters::default(),
                unanswered: Counter::default(),
                duration: Histogram::new(&self.durations),
            })
        });
        match status {
            Some(status) => calls.answers.inc(status),
            None => calls.unanswered.inc(),
        }
        calls.duration.observe(took);
    }

    /// Records a refresh of the signing keys at `now`; their number goes into [`IssuerMetrics::keys`].
    pub fn keys_refreshed(&self, now: Timestamp) {
        self.keys_read.store(now.as_secs(), Relaxed);
    }
}

impl Source for IssuerMetrics {
    fn report(&self, to: &mut Scrape) {
        let issuer = &*self.name;
        for (endpoint, calls) in Endpoint::ALL.iter().zip(&self.calls) {
            let (endpoint, Some(calls)) = (endpoint.word(), calls.get()) else { continue };
            calls.answers.each(|code, count| {
                to.count(&family::AUTH_SERVER_REQUESTS, &[issuer, endpoint, code], count);
            });
            let unanswered = &[issuer, endpoint, "error"];
            to.counter(&family::AUTH_SERVER_REQUESTS, unanswered, &calls.unanswered);
            to.histogram(&family::AUTH_SERVER_DURATION, &[issuer, endpoint], &calls.duration);
        }
        // An issuer used only for introspection has no keys.
        let read = self.keys_read.load(Relaxed);
        if read > 0 {
            to.gauge(&family::JWKS_KEYS, &[issuer], &self.keys);
            to.level(&family::JWKS_LAST_SUCCESS, &[issuer], read.cast_signed());
        }
    }
}

const ENDPOINTS: usize = Endpoint::ALL.len();
