//! The reasons why an upstream gave no response.

use std::borrow::Cow;

use h2::Reason;

use crate::observe::metrics::UpstreamFailure;

/// An error between the gateway and an upstream. Small, and without text from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made in time.
    #[error("cannot connect to the upstream")]
    Connect,
    /// The upstream's certificate or handshake was refused.
    #[error("TLS handshake with the upstream: failed")]
    Tls,
    /// The upstream ended TLS by an alert after the handshake (RFC 8446 §6.2), for this reason: in TLS 1.3 it looks at the
    /// gateway's certificate only then.
    #[error("TLS with the upstream: {0}")]
    TlsAlert(&'static str),
    /// The connection ended before the response did.
    #[error("upstream connection: closed before the end of the response")]
    Reset,
    /// The stream of the response was reset with this code, on a connection that lives on (RFC 9113 §6.4).
    #[error("upstream stream: reset with {0:?}")]
    StreamReset(Reason),
    /// The response did not arrive in time.
    #[error("upstream response: timed out")]
    Timeout,
    /// The deadline of the caller passed before the response.
    #[error("upstream response: not before the deadline")]
    Deadline {
        /// Whether the connection was silent altogether for a while, and the upstream did not wait for the client.
        silent: bool,
    },
    /// A gap in the content of the response exceeded `idle_timeout`.
    #[error("upstream response: the content stalled")]
    Stalled,
    /// The response violates its version of HTTP, or its framing is ambiguous (RFC 9112 §6, RFC 9113 §8.1.1).
    #[error("upstream response: not valid HTTP")]
    Protocol,
    /// The upstream did not process the request: `REFUSED_STREAM`, or a stream beyond its `GOAWAY` (RFC 9113 §8.7).
    #[error("upstream: refused the request before processing it")]
    Refused,
    /// Every endpoint is ejected or was tried.
    #[error("upstream: no endpoint is available")]
    NoEndpoint,
    /// The circuit of the upstream is open, at least for so many seconds.
    #[error("upstream: the circuit is open")]
    CircuitOpen {
        /// The time until the gateway probes, rounded up; at least 1.
        seconds: u64,
    },
    /// The response cannot be relayed, for this reason.
    #[error("upstream response: {0}")]
    Invalid(InvalidResponse),
    /// The connection ended before the announced content did.
    #[error("upstream connection: closed after {received} of {announced} bytes of the response")]
    Truncated {
        /// The `Content-Length`, in bytes.
        announced: u64,
        /// The bytes that arrived.
        received: u64,
    },
    /// The endpoint has the maximum of requests in flight and of pending ones.
    #[error("upstream: too many requests in flight")]
    Overflow,
    /// The head of the request is larger than the upstream accepts (`SETTINGS_MAX_HEADER_LIST_SIZE`, RFC 9113 §6.5.2): it was
    /// not sent.
    #[error("request head: larger than the upstream accepts")]
    HeadTooLarge,
    /// The client's body ended early; the upstream is not at fault.
    #[error("request body: ended early")]
    Client,
}

/// Why a response in HTTP/1.1 cannot be relayed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidResponse {
    /// The head cannot be parsed.
    #[error("not valid HTTP/1.1")]
    Head,
    /// The connection ended within the head.
    #[error("closed within the head")]
    PartialHead,
    /// The head exceeds the limit of 64 KiB or 256 fields.
    #[error("the head is too large")]
    TooLarge,
    /// `Content-Length` is not a number.
    #[error("Content-Length is not a number")]
    Length,
    /// There are two lengths that differ.
    #[error("two different lengths: Content-Length {0} and {1}")]
    TwoLengths(u64, u64),
    /// Both a length and a transfer coding determine where the response ends.
    #[error("both Content-Length and Transfer-Encoding")]
    LengthAndCoding,
    /// `Transfer-Encoding` is not `chunked`, comes twice, or comes with HTTP/1.0.
    #[error("Transfer-Encoding is not supported")]
    Coding,
    /// The chunks of the content are malformed.
    #[error("a chunk of the content is malformed")]
    Chunk,
    /// There is more before the final response than a client may be sent.
    #[error("too many interim responses")]
    TooManyInterim,
    /// The upstream switches to a protocol that the client did not ask for, or incorrectly.
    #[error("an upgrade that was not requested")]
    Upgrade,
    /// A success without the upgrade that the client asked for, which would take it for one.
    #[error("no upgrade, although the status is a success")]
    NoUpgrade,
}

impl UpstreamError {
    /// Returns the reason as the log states it.
    pub fn cause(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Invalid(invalid) => return format!("upstream response: {invalid}").into(),
            Self::Truncated { announced, received } => {
                return format!("closed after {received} of {announced} bytes of the response")
                    .into();
            }
            Self::StreamReset(code) => return format!("the stream was reset: {code:?}").into(),
            Self::TlsAlert(cause) => cause,
            Self::Connect => "no connection",
            Self::Tls => "the TLS handshake failed",
            Self::Reset => "the connection was closed before the end of the response",
            Self::Timeout => "timed out: no response in time",
            Self::Stalled => "timed out: no more of the response within idle_timeout",
            Self::Deadline { silent: true } => {
                "the deadline of the call passed: nothing was received on its connection"
            }
            Self::Deadline { silent: false } => {
                "the deadline of the call passed before its response"
            }
            Self::Protocol => "the response is not valid HTTP",
            Self::Refused => "the upstream refused the request before processing it",
            Self::NoEndpoint => "no target is available",
            Self::CircuitOpen { .. } => "the circuit is open",
            Self::Overflow => "too many requests in flight",
            Self::HeadTooLarge => {
                "the head is larger than the upstream accepts: SETTINGS_MAX_HEADER_LIST_SIZE"
            }
            Self::Client => "the client's content ended early",
        })
    }

    /// Whether the failure counts against the endpoint's health.
    pub(super) const fn is_endpoint_fault(self) -> bool {
        matches!(
            self,
            Self::Connect
                | Self::Tls
                | Self::TlsAlert(_)
                | Self::Reset
                | Self::StreamReset(_)
                | Self::Truncated { .. }
                | Self::Timeout
                | Self::Stalled
                | Self::Protocol
                | Self::Invalid(_)
        )
    }

    /// Whether the connection of the request was lost: all requests in flight fail so when the process of an endpoint ends.
    pub(super) const fn is_lost_connection(self) -> bool {
        matches!(
            self,
            Self::Reset | Self::Truncated { .. } | Self::Invalid(InvalidResponse::PartialHead)
        )
    }

    /// Whether the deadline of the caller ended the request.
    pub(super) const fn is_deadline(self) -> bool {
        matches!(self, Self::Deadline { .. })
    }

    /// Returns the metric's label; `None` where no upstream was involved.
    pub(super) const fn reason(self) -> Option<UpstreamFailure> {
        Some(match self {
            Self::Connect => UpstreamFailure::Connect,
            Self::Tls | Self::TlsAlert(_) => UpstreamFailure::Tls,
            Self::Reset | Self::StreamReset(_) | Self::Truncated { .. } => UpstreamFailure::Reset,
            Self::Timeout | Self::Stalled | Self::Deadline { silent: true } => {
                UpstreamFailure::Timeout
            }
            Self::Protocol | Self::Invalid(_) => UpstreamFailure::Protocol,
            Self::Refused => UpstreamFailure::Refused,
            Self::NoEndpoint => UpstreamFailure::NoTarget,
            Self::CircuitOpen { .. } => UpstreamFailure::CircuitOpen,
            Self::Overflow => UpstreamFailure::Overflow,
            Self::HeadTooLarge | Self::Client | Self::Deadline { silent: false } => return None,
        })
    }
}
