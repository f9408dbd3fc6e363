//! Metrics of one upstream.

use core::time::Duration;
use std::sync::Arc;

use crate::base::weak_map::WeakMap;

use super::family::Source;
use super::family::{self, Scrape};
use super::labels::{LabeledCounters, UpstreamFailure};
use super::primitives::Buckets;
use super::primitives::{Counter, Gauge, Histogram, LabeledGauge};
use super::status_codes::StatusCounters;

/// The metrics of one upstream; exported while a handle exists.
#[derive(Debug)]
pub struct UpstreamMetrics {
    name: Arc<str>,
    answers: StatusCounters,
    duration: Histogram,
    failures: LabeledCounters<UpstreamFailure>,
    retried: Counter,
    retried_in_vain: Counter,
    fallbacks: [Counter; 3],
    mirrored: [Counter; 3],
    checks: [Counter; 2],
    resolutions: [Counter; 2],
    targets: WeakMap<Arc<str>, LabeledGauge>,
    target_versions: WeakMap<Arc<str>, LabeledGauge>,
    /// The state of the circuit: 0 closed, 1 half-open, 2 open.
    pub circuit: Gauge,
    /// Active connections.
    pub active: Gauge,
    /// Idle connections.
    pub idle: Gauge,
}

/// The outcome of a copy of a request, in the order of its counters.
#[derive(Clone, Copy, Debug)]
pub enum MirrorResult {
    /// It got a response.
    Ok,
    /// It got none.
    Failed,
    /// It was not sent: too many are under way, or the content of its request is too large.
    LeftOut,
}

/// The kind of a response in place of an upstream's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FallbackKind {
    /// The response of another upstream.
    Upstream,
    /// The last good response.
    Stale,
    /// A fixed response.
    Respond,
}

impl FallbackKind {
    const ALL: [Self; 3] = [Self::Upstream, Self::Stale, Self::Respond];

    /// Returns the word for metrics and the log.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Upstream => "upstream",
            Self::Stale => "stale",
            Self::Respond => "respond",
        }
    }
}

impl UpstreamMetrics {
    pub(super) fn new(name: &str, buckets: &Buckets) -> Self {
        Self {
            name: name.into(),
            answers: StatusCounters::default(),
            duration: Histogram::new(&buckets.requests),
            failures: LabeledCounters::new(),
            retried: Counter::default(),
            retried_in_vain: Counter::default(),
            fallbacks: Default::default(),
            mirrored: Default::default(),
            circuit: Gauge::default(),
            checks: Default::default(),
            resolutions: Default::default(),
            targets: WeakMap::default(),
            target_versions: WeakMap::default(),
            active: Gauge::default(),
            idle: Gauge::default(),
        }
    }

    /// Counts an attempt with a response; `took` ends with the response head.
    pub fn answered(&self, status: u16, took: Duration) {
        self.answers.inc(status);
        self.duration.observe(took);
    }

    /// Counts an attempt without a response.
    pub fn failed(&self, why: UpstreamFailure) {
        self.failures.inc(why);
    }

    /// Counts a retry; `ok` is whether it got a response.
    pub fn retried(&self, ok: bool) {
        if ok { self.retried.inc() } else { self.retried_in_vain.inc() }
    }

    /// Counts a response of the fallback in place of this upstream's.
    pub fn fell_back(&self, kind: FallbackKind) {
        self.fallbacks[kind as usize].inc();
    }

    /// Counts a copy of a request.
    pub fn mirrored(&self, result: MirrorResult) {
        self.mirrored[result as usize].inc();
    }

    /// Counts an active health check; `ok` is whether it succeeded.
    pub fn checked(&self, ok: bool) {
        self.checks[usize::from(!ok)].inc();
    }

    /// Counts a resolution of a target's name; `ok` is whether it had an answer.
    pub fn resolved(&self, ok: bool) {
        self.resolutions[usize::from(!ok)].inc();
    }

    /// Returns the gauge of `target`: 1 if it receives requests, else 0. Exported while it exists; initially 1.
    pub fn target(&self, target: &str) -> Arc<LabeledGauge> {
        self.targets.get_or_insert_with(target.into(), || LabeledGauge::starting_at(target, 1))
    }

    /// Returns the gauge of the major version of HTTP on the last connection that requests opened to `target`: 1 or 2.
    /// Exported while it exists; initially 0.
    pub fn target_version(&self, target: &str) -> Arc<LabeledGauge> {
        let of_target = || LabeledGauge::starting_at(target, 0);
        self.target_versions.get_or_insert_with(target.into(), of_target)
    }
}

impl Source for UpstreamMetrics {
    fn report(&self, to: &mut Scrape) {
        let upstream = &*self.name;
        self.answers.each(|code, count| {
            to.count(&family::UPSTREAM_REQUESTS, &[upstream, code], count);
        });
        to.histogram(&family::UPSTREAM_DURATION, &[upstream], &self.duration);
        for (reason, count) in self.failures.iter() {
            to.counter(&family::UPSTREAM_ERRORS, &[upstream, reason], count);
        }
        to.counter(&family::UPSTREAM_RETRIES, &[upstream, "ok"], &self.retried);
        to.counter(&family::UPSTREAM_RETRIES, &[upstream, "failed"], &self.retried_in_vain);
        to.gauge(&family::CIRCUIT_STATE, &[upstream], &self.circuit);
        for kind in FallbackKind::ALL {
            let count = &self.fallbacks[kind as usize];
            to.counter(&family::FALLBACKS, &[upstream, kind.word()], count);
        }
        for (result, count) in ["ok", "failed", "left_out"].into_iter().zip(&self.mirrored) {
            to.counter(&family::MIRRORED, &[upstream, result], count);
        }
        for (result, [checks, resolutions]) in ["ok", "failed"]
            .into_iter()
            .zip([0, 1].map(|index| [&self.checks[index], &self.resolutions[index]]))
        {
            to.counter(&family::HEALTH_CHECKS, &[upstream, result], checks);
            to.counter(&family::NAME_RESOLUTIONS, &[upstream, result], resolutions);
        }
        to.gauge(&family::UPSTREAM_CONNECTIONS, &[upstream, "active"], &self.active);
        to.gauge(&family::UPSTREAM_CONNECTIONS, &[upstream, "idle"], &self.idle);
        for target in self.targets.values() {
            to.gauge(&family::TARGET_HEALTHY, &[upstream, target.name()], &target);
        }
        for target in self.target_versions.values() {
            to.gauge(&family::TARGET_HTTP_VERSION, &[upstream, target.name()], &target);
        }
    }
}
