//! Classifies the errors of HTTP/2 streams: may the upstream have processed the request, and who is to blame?
//!
//! hyper keeps the error of the `h2` crate as its source and exports no type for it, so it is recognised by its
//! text. An unknown text is the answer that is safe: the request may have been processed. `tests/gateway/http2_services.rs`
//! holds the texts against real resets and GOAWAYs.

use core::error::Error;

use super::super::UpstreamError;

/// The reason why a stream had no response, or not all of one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum StreamError {
    /// The upstream did not process the request, and says so: it may be sent again whatever its method.
    Refused,
    /// The connection was closing: the stream is beyond its GOAWAY, or was never opened.
    Unsent,
    /// The stream was reset, or the connection lost.
    Reset,
    /// The upstream violated the protocol.
    Protocol,
}

impl StreamError {
    /// Classifies an error of hyper.
    pub(super) fn of(error: &hyper::Error) -> Self {
        if error.is_canceled() {
            return Self::Unsent;
        }
        let text = error.source().map(ToString::to_string).unwrap_or_default();
        if text.starts_with(REFUSED_STREAM) {
            Self::Refused
        } else if text.starts_with(GOAWAY_RECEIVED) {
            // Only streams beyond the last one that the upstream names fail with it; the others go on.
            Self::Unsent
        } else if VIOLATIONS.iter().any(|violation| text.starts_with(violation)) {
            Self::Protocol
        } else {
            Self::Reset
        }
    }

    /// Returns the error of response content that ended early: it was processed, in any case.
    pub(super) const fn of_content(self) -> UpstreamError {
        match self {
            Self::Protocol => UpstreamError::Protocol,
            Self::Refused | Self::Unsent | Self::Reset => UpstreamError::Reset,
        }
    }

    /// Returns the error for the caller.
    pub(super) const fn error(self) -> UpstreamError {
        match self {
            Self::Refused | Self::Unsent => UpstreamError::Refused,
            Self::Reset => UpstreamError::Reset,
            Self::Protocol => UpstreamError::Protocol,
        }
    }
}

/// `RST_STREAM` with `REFUSED_STREAM` (RFC 9113 §8.7).
const REFUSED_STREAM: &str =
    "stream error received: refused stream before processing any application logic";
const GOAWAY_RECEIVED: &str = "connection error received: ";
/// Errors that `h2` detected itself.
const VIOLATIONS: [&str; 2] = ["stream error detected: ", "connection error detected: "];
