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
    /// The connection was closing: it has taken nothing of the request.
    Unsent,
    /// The stream is beyond the last one that a GOAWAY names: the upstream may have received the request, and did not process
    /// it.
    BeyondGoAway,
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
            // GOAWAY fails only the streams beyond the last one that it names; the others continue.
            Self::BeyondGoAway
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

    /// Whether the upstream has not processed the request for certain.
    pub(super) const fn is_unprocessed(self) -> bool {
        matches!(self, Self::Refused) || self.is_of_ending()
    }

    /// Whether the connection was closing, so that another one may work.
    pub(super) const fn is_of_ending(self) -> bool {
        matches!(self, Self::Unsent | Self::BeyondGoAway)
    }

    /// Returns the error of response content that ended early: it was processed, in any case.
    pub(super) const fn of_content(self) -> UpstreamError {
        match self {
            Self::Protocol | Self::ProtocolOfConnection => UpstreamError::Protocol,
            Self::Reset(Some(code)) => UpstreamError::StreamReset(code),
            Self::Refused | Self::Unsent | Self::BeyondGoAway | Self::Reset(None) | Self::Lost => {
                UpstreamError::Reset
            }
        }
    }

    /// Returns the error for the caller.
    pub(super) const fn error(self) -> UpstreamError {
        match self {
            Self::Refused | Self::Unsent | Self::BeyondGoAway => UpstreamError::Refused,
            Self::Reset(Some(code)) => UpstreamError::StreamReset(code),
            Self::Reset(None) | Self::Lost => UpstreamError::Reset,
            Self::Protocol | Self::ProtocolOfConnection => UpstreamError::Protocol,
        }
    }
}
