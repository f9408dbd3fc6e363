//! Metrics of one route.

use core::time::Duration;
use std::sync::{Arc, OnceLock};

use super::family::Source;
use super::family::{self, Scrape};
use super::labels::{AuthLabel, AuthResult, LabelValue as _, LabeledCounters, Method, Rejected};
use super::primitives::Buckets;
use super::primitives::{Bounds, Counter, Gauge, Histogram};
use super::status_codes::{CLASS_WORDS, CLASSES, StatusCounters, class};

/// The metrics of one route; exported while a handle exists.
#[derive(Debug)]
pub struct RouteMetrics {
    name: Arc<str>,
    /// Whether requests are counted by method.
    methods: bool,
    durations: Bounds,
    in_flight: Gauge,
    requests: [OnceLock<Box<StatusCounters>>; METHODS],
    duration: [OnceLock<Box<Histogram>>; CLASSES],
    overhead: Histogram,
    request_bytes: Counter,
    response_bytes: Counter,
    rejections: LabeledCounters<Rejected>,
    auth: [OnceLock<LabeledCounters<AuthResult>>; AUTH_METHODS],
    /// Upgraded connections.
    pub upgraded: Gauge,
}

impl RouteMetrics {
    pub(super) fn new(name: &str, buckets: &Buckets, methods: bool) -> Self {
        Self {
            name: name.into(),
            methods,
            durations: buckets.requests.clone(),
            in_flight: Gauge::default(),
            requests: Default::default(),
            duration: Default::default(),
            overhead: Histogram::new(&buckets.overhead),
            request_bytes: Counter::default(),
            response_bytes: Counter::default(),
            rejections: LabeledCounters::new(),
            auth: Default::default(),
            upgraded: Gauge::default(),
        }
    }

    /// Counts a request that matched this route. Must be paired with [`RouteMetrics::answered`].
    pub fn began(&self) {
        self.in_flight.inc();
    }

    /// Counts a completed response, or a client that disconnected (499).
    ///
    /// `overhead` is the part of `took` without waiting for peers;
    /// bytes are those of the bodies.
    pub fn answered(
        &self,
        method: &http::Method,
        status: u16,
        took: Duration,
        overhead: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        self.in_flight.dec();
        let method = if self.methods { Method::from(method) } else { Method::Other };
        self.requests[method.index()].get_or_init(Box::default).inc(status);
        self.duration[class(status)]
            .get_or_init(|| Box::new(Histogram::new(&self.durations)))
            .observe(took);
        self.overhead.observe(overhead);
        if request_bytes > 0 {
            self.request_bytes.add(request_bytes);
        }
        self.response_bytes.add(response_bytes);
    }

    /// Counts a rejection by the gateway itself.
    pub fn rejected(&self, reason: Rejected) {
        self.rejections.inc(reason);
    }

    /// Counts an authentication result.
    pub fn authenticated(&self, auth: AuthLabel, result: AuthResult) {
        self.results(auth).inc(result);
    }

    /// Exports every result of `auth` as zero before the first request.
    pub fn expects(&self, auth: AuthLabel) {
        self.results(auth);
    }

    fn results(&self, auth: AuthLabel) -> &LabeledCounters<AuthResult> {
        self.auth[auth.index()].get_or_init(LabeledCounters::new)
    }
}

impl Source for RouteMetrics {
    fn report(&self, to: &mut Scrape) {
        let route = &*self.name;
        to.gauge(&family::IN_FLIGHT, &[route], &self.in_flight);
        to.gauge(&family::UPGRADED, &[route], &self.upgraded);
        to.histogram(&family::OVERHEAD, &[route], &self.overhead);
        to.counter(&family::REQUEST_BYTES, &[route], &self.request_bytes);
        to.counter(&family::RESPONSE_BYTES, &[route], &self.response_bytes);
        for (method, codes) in Method::ALL.iter().zip(&self.requests) {
            let method = if self.methods { method.word() } else { "" };
            if let Some(codes) = codes.get() {
                codes
                    .each(|code, count| to.count(&family::REQUESTS, &[route, method, code], count));
            }
        }
        for (class, duration) in CLASS_WORDS.iter().zip(&self.duration) {
            if let Some(duration) = duration.get() {
                to.histogram(&family::REQUEST_DURATION, &[route, class], duration);
            }
        }
        for (reason, count) in self.rejections.iter() {
            to.counter(&family::REJECTIONS, &[route, reason], count);
        }
        for (auth, results) in AuthLabel::ALL.iter().zip(&self.auth) {
            for (result, count) in results.get().into_iter().flat_map(LabeledCounters::iter) {
                to.counter(&family::AUTH_REQUESTS, &[route, auth.word(), result], count);
            }
        }
    }
}

const METHODS: usize = Method::ALL.len();
const AUTH_METHODS: usize = AuthLabel::ALL.len();
