//! The reasons why an upstream gave no response.

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
    /// The connection ended before the response did.
    #[error("upstream connection: closed before the end of the response")]
    Reset,
    /// The response did not arrive in time.
    #[error("upstream response: timed out")]
    Timeout,
    /// The response violates its version of HTTP, or its framing is ambiguous (RFC 9112 §6, RFC 9113 §8.1.1).
    #[error("upstream response: not valid HTTP")]
    Protocol,
    /// The upstream did not process the request: `REFUSED_STREAM`, or a stream beyond its `GOAWAY` (RFC 9113 §8.7).
    #[error("upstream: refused the request before processing it")]
    Refused,
    /// Every endpoint is ejected or was tried.
    #[error("upstream: no endpoint is available")]
    NoEndpoint,
    /// The circuit of the upstream is open.
    #[error("upstream: the circuit is open")]
    CircuitOpen,
    /// The endpoint has the maximum of requests in flight and of pending ones.
    #[error("upstream: too many requests in flight")]
    Overflow,
    /// The client's body ended early; the upstream is not at fault.
    #[error("request body: ended early")]
    Client,
}

impl UpstreamError {
    /// Returns the reason as the log states it.
    pub(super) const fn cause(self) -> &'static str {
        match self {
            Self::Connect => "no connection",
            Self::Tls => "the TLS handshake failed",
            Self::Reset => "the connection was closed before the end of the response",
            Self::Timeout => "no response in time",
            Self::Protocol => "the response is not valid HTTP",
            Self::Refused => "the upstream refused the request before processing it",
            Self::NoEndpoint => "no target is available",
            Self::CircuitOpen => "the circuit is open",
            Self::Overflow => "too many requests in flight",
            Self::Client => "the client's content ended early",
        }
    }

    /// Whether the failure counts against the endpoint's health.
    pub(super) const fn is_endpoint_fault(self) -> bool {
        matches!(self, Self::Connect | Self::Tls | Self::Reset | Self::Timeout | Self::Protocol)
    }

    /// Returns the metric's label; `None` where no upstream was involved.
    pub(super) const fn reason(self) -> Option<UpstreamFailure> {
        Some(match self {
            Self::Connect => UpstreamFailure::Connect,
            Self::Tls => UpstreamFailure::Tls,
            Self::Reset => UpstreamFailure::Reset,
            Self::Timeout => UpstreamFailure::Timeout,
            Self::Protocol => UpstreamFailure::Protocol,
            Self::Refused => UpstreamFailure::Refused,
            Self::NoEndpoint => UpstreamFailure::NoTarget,
            Self::CircuitOpen => UpstreamFailure::CircuitOpen,
            Self::Overflow => UpstreamFailure::Overflow,
            Self::Client => return None,
        })
    }
}
