//! The judgement of the result of an attempt: of its endpoint, and for the circuit of its upstream.

use core::time::Duration;
use std::borrow::Cow;

use http::StatusCode;

use super::attempt_result::{Answered, Failed};
use crate::upstream::Upstream;
use crate::upstream::error::UpstreamError;
use crate::upstream::health::endpoint_health::Outcome;

impl Upstream {
    /// Records the response of an attempt that began at the uptime `began`. An endpoint that waited for its client is not
    /// blamed for what it then says.
    pub(super) fn judge_response(&self, answered: &Answered, began: Duration) {
        let status = answered.response.status();
        let blames = blames_endpoint(status) || answered.is_failed_call;
        if blames && answered.client_was_silent {
            return;
        }
        if blames && !answered.is_failed_call {
            answered.endpoint.health.failed(&format!("status {}", status.as_u16()));
        }
        self.passive.judge(&answered.endpoint, answered.outcome(!blames), began, answered.at);
    }

    /// Records the failure of an attempt that began at the uptime `began`, and returns its cause.
    pub(super) fn judge_failure(&self, failed: &mut Failed, began: Duration) -> Cow<'static, str> {
        let recorded = failed.cause.take();
        let Failed { error, endpoint, counted, .. } = &*failed;
        let failure = error.failure;
        let is_recorded = recorded.is_some();
        let cause = recorded.map_or_else(|| failure.cause(), Cow::Owned);
        if failure.is_deadline() {
            if failure == (UpstreamError::Deadline { silent: true }) {
                // The client chose the time: that takes out one of several endpoints, but opens no circuit.
                self.passive.failed(endpoint, &cause, began);
            }
            return cause;
        }
        let is_fault = failure.is_endpoint_fault() || failure == UpstreamError::Refused;
        let is_its_own = is_fault && !error.stale && !error.client_was_silent && !failed.blameless;
        if !is_its_own && !failed.closed_unprocessed {
            return cause;
        }
        let now = self.clock.uptime();
        if is_recorded {
            // The addresses that the attempt tried were recorded where they failed.
            self.passive.judge_circuit(endpoint, Outcome::Failed, began, now);
            return cause;
        }
        endpoint.health.failed(&cause);
        let is_lost = failure.is_lost_connection();
        if !counted {
            let outcome = if is_lost { Outcome::Lost } else { Outcome::Failed };
            self.passive.judge(endpoint, outcome, began, now);
        }
        if is_lost {
            // Its process may have ended: the control runtime finds out before another request does.
            endpoint.suspect();
        }
        cause
    }
}

/// Whether a status shows that the endpoint is unhealthy, and not only that the request is unsupported.
pub(crate) fn blames_endpoint(status: StatusCode) -> bool {
    let asked_for = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
    status.is_server_error() && !asked_for.contains(&status)
}
