//! The error of an attempt, in either version of HTTP.

use super::error::UpstreamError;
use crate::http1::BodyWriter;

/// An attempt without a response, in either version of HTTP.
#[derive(Debug)]
pub(super) struct AttemptError {
    pub(super) failure: UpstreamError,
    /// Whether some of the request may have reached the upstream.
    pub(super) sent: bool,
    /// Whether the request failed on a reused connection that the upstream may have closed meanwhile.
    pub(super) stale: bool,
    /// Whether the upstream waited for the client, which had sent nothing for a while.
    pub(super) client_was_silent: bool,
    /// The request for another connection: `None` if a part of its body is lost.
    pub(super) remaining_content: Option<Box<BodyWriter>>,
}

impl AttemptError {
    /// Creates the error of a request of which nothing was sent.
    pub(super) const fn not_sent(failure: UpstreamError, sending: Box<BodyWriter>) -> Self {
        Self {
            failure,
            sent: false,
            stale: false,
            client_was_silent: false,
            remaining_content: Some(sending),
        }
    }
}
