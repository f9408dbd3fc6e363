//! Passive health: the outcomes of an upstream's requests, recorded for the endpoint and for the circuit.

use core::time::Duration;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::circuit_breaker::{CircuitBreaker, CircuitState};
use super::endpoint_health::Outcome;
use crate::base::body;
use crate::base::clock::Clock;
use crate::observe::metrics::UpstreamMetrics;
use crate::upstream::balancing::endpoint::Endpoint;
use crate::upstream::balancing::endpoint_set::EndpointSet;
use crate::upstream::connections::connect::ConnectError;
use crate::upstream::error::UpstreamError;
use crate::upstream::settings::{CircuitBreakerSettings, Settings};

/// The recorder of the outcomes of one upstream's requests, shared with the content of responses.
#[derive(Debug)]
pub(in crate::upstream) struct PassiveHealth {
    pub(in crate::upstream) settings: Arc<Settings>,
    /// The endpoints of the moment.
    pub(in crate::upstream) endpoints: Arc<ArcSwap<EndpointSet>>,
    /// The circuit breaker with its settings, if there is one.
    pub(in crate::upstream) circuit: Option<(CircuitBreakerSettings, Arc<CircuitBreaker>)>,
    pub(in crate::upstream) metrics: Arc<UpstreamMetrics>,
    pub(in crate::upstream) clock: Clock,
}

impl PassiveHealth {
    /// Records the outcome at the uptime `now` of an attempt that began at `began`.
    pub(in crate::upstream) fn judge(
        &self,
        endpoint: &Endpoint,
        outcome: Outcome,
        began: Duration,
        now: Duration,
    ) {
        if outcome == Outcome::Lost && endpoint.health.is_lost_together(began, now) {
            return;
        }
        self.judge_endpoint(endpoint, outcome, began, now);
        self.judge_circuit(endpoint, outcome, began, now);
    }

    /// Records an outcome for the endpoint alone: one address of several that an attempt tried.
    pub(in crate::upstream) fn judge_endpoint(
        &self,
        endpoint: &Endpoint,
        outcome: Outcome,
        began: Duration,
        now: Duration,
    ) {
        if endpoint.health.record(outcome, &self.settings.outlier, began, now) {
            self.log_state(endpoint, now);
        }
    }

    /// Records the outcome of an attempt for the circuit alone: its addresses were recorded before.
    pub(in crate::upstream) fn judge_circuit(
        &self,
        endpoint: &Endpoint,
        outcome: Outcome,
        began: Duration,
        now: Duration,
    ) {
        if let Some((settings, circuit)) = &self.circuit
            && circuit.record(outcome, settings, began, now)
        {
            self.log_circuit(endpoint.last_failure().as_deref());
        }
    }

    /// Records that an attempt that began at `began` could not connect to `endpoint`, one of the addresses that it tried; the
    /// control runtime checks the endpoint at once.
    pub(in crate::upstream) fn refused(
        &self,
        endpoint: &Endpoint,
        error: &ConnectError,
        began: Duration,
    ) {
        self.failed(endpoint, &error.cause, began);
        endpoint.report_refusal();
    }

    /// Records that an attempt that began at `began` failed at `endpoint` for this cause; the circuit counts the attempt once,
    /// whatever the number of addresses that it tried.
    pub(in crate::upstream) fn failed(&self, endpoint: &Endpoint, cause: &str, began: Duration) {
        endpoint.health.failed(cause);
        self.judge_endpoint(endpoint, Outcome::Failed, began, self.clock.uptime());
    }

    /// Records that the content after a successful head ended in `error`, of a request that was sent at `began`.
    pub(in crate::upstream) fn broke_off(
        &self,
        endpoint: &Endpoint,
        error: &body::Error,
        began: Duration,
    ) {
        let failure = error.downcast_ref::<UpstreamError>();
        if let Some(failure) = failure.filter(|failure| failure.is_endpoint_fault()) {
            endpoint.health.failed(&failure.cause());
            self.judge(endpoint, Outcome::BrokeOff, began, self.clock.uptime());
        }
    }

    /// Records the end of the content after a successful head, of a request that was sent at `began`.
    pub(in crate::upstream) fn completed(&self, endpoint: &Endpoint, began: Duration) {
        self.judge(endpoint, Outcome::Completed, began, self.clock.uptime());
    }

    /// Logs a changed state of the circuit, and exports it.
    pub(in crate::upstream) fn log_circuit(&self, cause: Option<&str>) {
        let Some((_, circuit)) = &self.circuit else { return };
        let state = circuit.state();
        self.metrics.circuit.set(state as i64);
        let upstream = &*self.settings.name;
        if state == CircuitState::Closed {
            tracing::info!(
                upstream,
                state = state.word(),
                "The circuit of an upstream closed; requests are forwarded again."
            );
        } else {
            tracing::warn!(
                upstream,
                state = state.word(),
                error = cause,
                "The circuit of an upstream is open or half-open; requests are refused with 503 or take the fallback."
            );
        }
    }

    /// Logs a changed state of an endpoint, and exports it.
    pub(in crate::upstream) fn log_state(&self, endpoint: &Endpoint, now: Duration) {
        let state = endpoint.state(now, self.settings.slow_start);
        let is_out = self.endpoints.load().is_out(endpoint, &self.settings, now);
        let gauge = self.metrics.target(endpoint.name());
        gauge.set(i64::from(!is_out));
        let (upstream, target) = (&*self.settings.name, endpoint.name());
        let cause = endpoint.last_failure();
        if state.is_available() {
            tracing::info!(upstream, target, state = state.word(), "A target is available again.");
        } else {
            let (state, cause) = (state.word(), cause.as_deref());
            let consequence = if is_out {
                "A target is out of rotation; requests go to other targets, or are refused if there is none."
            } else {
                "A target fails; requests are still sent to it, because too few targets would be left."
            };
            tracing::warn!(upstream, target, state, error = cause, "{consequence}");
        }
    }
}
