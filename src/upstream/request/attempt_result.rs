//! The result of one attempt: a response, or a failure with what it means for further attempts.

use core::time::Duration;
use std::sync::Arc;

use http::Response;
use http_body::Body as _;

use super::long_lived_response::is_endless;
use super::tunnel::Tunnel;
use crate::base::body::{self, Body};
use crate::upstream::attempt_error::AttemptError;
use crate::upstream::balancing::attempted_endpoints::Refund;
use crate::upstream::balancing::endpoint::Endpoint;
use crate::upstream::error::UpstreamError;
use crate::upstream::health::endpoint_health::Outcome;

/// The result of an attempt with a response.
pub(super) struct Answered {
    pub(super) response: Response<Body>,
    pub(super) tunnel: Option<Box<Tunnel>>,
    pub(super) endpoint: Arc<Endpoint>,
    /// The uptime of the response head, or of the end of a response that was waited for.
    pub(super) at: Duration,
    /// Whether the endpoint waited for the client, which had sent nothing for a while.
    pub(super) client_was_silent: bool,
    /// Whether it is the response to a gRPC call, without content and with a status that is the service's failure.
    pub(super) is_failed_call: bool,
}

impl Answered {
    /// Returns the outcome of an attempt whose response is good, or shows a failure.
    pub(super) fn outcome(&self, is_good: bool) -> Outcome {
        let body = self.response.body();
        match is_good {
            false => Outcome::Failed,
            true if body.is_buffered() || body.is_end_stream() => Outcome::AnsweredWhole,
            true => Outcome::Answered,
        }
    }

    /// Whether the rest of a response that may be small is still to come.
    pub(super) fn may_be_small(&self) -> bool {
        let body = self.response.body();
        let may_be_small = match body.size_hint().exact() {
            Some(size) => size <= MAX_HELD_BYTES as u64,
            None => !is_endless(self.response.headers()),
        };
        may_be_small && !body.is_buffered() && self.tunnel.is_none()
    }

    /// Whether content that may be waited for has not arrived yet.
    pub(super) fn awaits_content(&self) -> bool {
        let body = self.response.body();
        !body.is_buffered()
            && !body.is_end_stream()
            && self.tunnel.is_none()
            && !is_endless(self.response.headers())
    }

    /// Returns how long the rest of such a response is waited for, in the time that is `left` for the response.
    pub(super) fn max_hold(&self, left: Duration) -> Duration {
        let has_length = self.response.body().size_hint().exact().is_some();
        if has_length { left } else { left.min(MAX_WAIT_FOR_CONTENT) }
    }
}

/// The result of an attempt without a response.
pub(super) struct Failed {
    pub(super) error: AttemptError,
    pub(super) endpoint: Arc<Endpoint>,
    /// The cause of a failure to connect, which was recorded already.
    pub(super) cause: Option<String>,
    /// Whether the metrics have counted the failure.
    pub(super) counted: bool,
    /// Whether a connection of many requests was lost: a new one may work.
    pub(super) connection_lost: bool,
    /// Whether the endpoint ended a connection on which it has processed nothing; once for each.
    pub(super) closed_unprocessed: bool,
    /// Whether the attempt counts against the retries.
    pub(super) refund: Refund,
    /// Whether it is no fault of the endpoint: an upgrade on a connection that may not have been in HTTP/1.1, a request
    /// whose connection another request has reported as lost, or one with a large head that is refused.
    pub(super) blameless: bool,
}

impl Failed {
    pub(super) const fn of(
        error: AttemptError,
        endpoint: Arc<Endpoint>,
        cause: Option<String>,
    ) -> Self {
        // An idle connection that takes nothing costs that connection, but not the request.
        let refund = if error.stale && !error.sent { Refund::Always } else { Refund::Never };
        Self {
            error,
            endpoint,
            cause,
            counted: false,
            connection_lost: false,
            closed_unprocessed: false,
            refund,
            blameless: false,
        }
    }

    /// Creates the failure of an attempt whose response broke off before its head was passed on; its content has counted the
    /// `error`.
    pub(super) fn without_content(error: &body::Error, endpoint: Arc<Endpoint>) -> Self {
        let failure = error.downcast_ref::<UpstreamError>().copied();
        let failure = failure.unwrap_or(UpstreamError::Reset);
        let error = AttemptError {
            failure,
            sent: true,
            stale: false,
            client_was_silent: false,
            remaining_content: None,
        };
        Self { counted: true, ..Self::of(error, endpoint, None) }
    }

    /// Creates the failure of an attempt that the deadline of its request ended while the endpoint was not silent: the request
    /// waited for its client, for a permit or for a connection.
    pub(super) const fn overdue(endpoint: Arc<Endpoint>) -> Self {
        let error = AttemptError {
            failure: UpstreamError::Deadline { silent: false },
            sent: true,
            stale: false,
            client_was_silent: false,
            remaining_content: None,
        };
        Self::of(error, endpoint, None)
    }
}

/// The size up to which the rest of a response is waited for before its head is passed on.
pub(super) const MAX_HELD_BYTES: usize = 64 * 1024;
/// How long content of unknown length, which may be a stream whose client waits for its beginning, and the beginning of any
/// content are waited for.
pub(super) const MAX_WAIT_FOR_CONTENT: Duration = Duration::from_millis(25);
