//! Why a service gave no answer.

use crate::observe::metrics::UpstreamFailure;

/// What went wrong between the gateway and a service. Small, and without text from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be made in time.
    #[error("no connection to the service could be made")]
    Connect,
    /// The service's certificate or handshake was refused.
    #[error("the service's TLS handshake failed")]
    Tls,
    /// The connection ended before the answer did.
    #[error("the service closed the connection")]
    Reset,
    /// The answer did not come in time.
    #[error("the service did not answer in time")]
    Timeout,
    /// The answer is not HTTP/1.1, or its framing is ambiguous (RFC 9112 §6).
    #[error("the service's answer is not valid HTTP/1.1")]
    Protocol,
    /// Every endpoint is ejected or was tried.
    #[error("no endpoint of the service can be tried")]
    NoEndpoint,
    /// The endpoint has its most requests in flight, and its most waiting.
    #[error("the service has too many requests in flight")]
    Overflow,
    /// The client's body broke off; the service is not to blame.
    #[error("the client's request body ended early")]
    Client,
}

impl UpstreamError {
    /// Whether the endpoint should be trusted less.
    pub(super) const fn is_endpoint_fault(self) -> bool {
        matches!(self, Self::Connect | Self::Tls | Self::Reset | Self::Timeout | Self::Protocol)
    }

    /// The metric's word for it; none where no service was involved.
    pub(super) const fn reason(self) -> Option<UpstreamFailure> {
        Some(match self {
            Self::Connect => UpstreamFailure::Connect,
            Self::Tls => UpstreamFailure::Tls,
            Self::Reset => UpstreamFailure::Reset,
            Self::Timeout => UpstreamFailure::Timeout,
            Self::Protocol => UpstreamFailure::Protocol,
            Self::NoEndpoint => UpstreamFailure::NoTarget,
            Self::Overflow => UpstreamFailure::Overflow,
            Self::Client => return None,
        })
    }
}
