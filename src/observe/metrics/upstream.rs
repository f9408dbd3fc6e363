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
    checks: [Counter; 2],
    resolutions: [Counter; 2],
    targets: WeakMap<Arc<str>, LabeledGauge>,
    /// Active connections.
    pub active: Gauge,
    /// Idle connections.
    pub idle: Gauge,
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
            checks: Default::default(),
            resolutions: Default::default(),
            targets: WeakMap::default(),
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
    }
}
