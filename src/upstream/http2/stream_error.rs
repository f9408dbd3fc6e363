//! Classifies the errors of HTTP/2 streams: by whether the upstream may have processed the request, and by the party at
//! fault.
//!
//! An error of no other kind counts as `Reset`, the safe assumption: the upstream may have processed the request.
//! `tests/gateway/http2_services` holds the errors against real resets and GOAWAYs.

use h2::Reason;

use super::super::UpstreamError;

/// The reason why a stream had no response, or not all of one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum StreamError {
    /// The upstream did not process the request, and says so: it may be sent again whatever its method.
    Refused,
    /// The connection was closing: the stream is beyond its GOAWAY, or was never opened.
    Unsent,
    /// The stream was reset, by the upstream with this code.
    Reset(Option<Reason>),
    /// The connection was lost, with all of its streams.
    Lost,
    /// The upstream violated the protocol on this stream.
    Protocol,
    /// The upstream violated the protocol, on any stream: the connection ended, with all of its streams.
    ProtocolOfConnection,
}

impl StreamError {
    /// Classifies the error of a stream that was opened.
    pub(super) fn of(error: &h2::Error) -> Self {
        if error.is_go_away() && error.is_remote() {
            // Only streams beyond the last one that the upstream names fail with it; the others go on.
            Self::Unsent
        } else if error.is_go_away() && error.is_library() {
            Self::ProtocolOfConnection
        } else if error.is_library() {
            Self::Protocol
        } else if error.is_io() {
            Self::Lost
        } else if error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
            Self::Refused
        } else {
            Self::Reset(error.reason())
        }
    }

    /// Whether the connection was lost, possibly because of another stream.
    pub(super) const fn is_of_connection(self) -> bool {
        matches!(self, Self::Lost | Self::ProtocolOfConnection)
    }

    /// Returns the error of response content that ended early: it was processed, in any case.
    pub(super) const fn of_content(self) -> UpstreamError {
        match self {
            Self::Protocol | Self::ProtocolOfConnection => UpstreamError::Protocol,
            Self::Reset(Some(code)) => UpstreamError::StreamReset(code),
            Self::Refused | Self::Unsent | Self::Reset(None) | Self::Lost => UpstreamError::Reset,
        }
    }

    /// Returns the error for the caller.
    pub(super) const fn error(self) -> UpstreamError {
        match self {
            Self::Refused | Self::Unsent => UpstreamError::Refused,
            Self::Reset(Some(code)) => UpstreamError::StreamReset(code),
            Self::Reset(None) | Self::Lost => UpstreamError::Reset,
            Self::Protocol | Self::ProtocolOfConnection => UpstreamError::Protocol,
        }
    }
}
