//! Why the gateway itself answered.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};

use crate::base::scopes::Scopes;
use crate::limit::Limited;
use crate::observe::metrics::Rejected;
use crate::upstream::UpstreamError;

/// Why the gateway itself answered. Closed, small (a test holds it to 64 bytes), free of text from outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// No route has this host and path.
    NoRoute,
    /// The request could be read in two ways: its path, host or credentials' place.
    BadRequest,
    /// Services could read its path as that of another route.
    AmbiguousPath,
    /// Its target is longer than the gateway takes, or would be so at the service (RFC 9110 §15.5.15).
    TargetTooLong,
    /// The body has a transfer coding besides `chunked` (RFC 9112 §6.1).
    UnknownCoding,
    /// The path is known, the method is not taken.
    Method {
        /// What is.
        allow: HeaderValue,
    },
    /// The head has more fields than the gateway takes.
    HeadTooLarge,
    /// The body is larger than the route takes.
    BodyTooLarge,
    /// The body came too slowly, or stopped.
    BodyTimeout,
    /// The gateway has as many requests in flight as it may.
    Overloaded,
    /// Nobody was recognized, or not well enough.
    Unauthenticated(Challenge),
    /// The credentials cannot be read (RFC 6750 §3.1 `invalid_request`).
    MalformedCredentials,
    /// The token lacks scopes.
    InsufficientScope {
        /// What it would need.
        required: Arc<Scopes>,
    },
    /// Another client, claim or audience is wanted.
    Forbidden,
    /// Another site asked in the name of a session.
    CsrfRejected,
    /// More than the client may have.
    Limited(Limited),
    /// Too many wrong passwords, of one user or from one address.
    TooManyFailures {
        /// Whole seconds until the next one is heard.
        retry_after: u64,
    },
    /// A refresh brought tokens that fit into no cookies, and the session's old ones have ended.
    SessionTooLarge,
    /// The authorization server cannot be asked, or whoever else must be: never the client's fault.
    IssuerUnavailable {
        /// Whole seconds until it is worth trying again.
        retry_after: u64,
    },
    /// It has come through gateways such as this one again and again: a service is the gateway itself.
    LoopDetected,
    /// The service gave no answer.
    Upstream(UpstreamError),
    /// A fault of the gateway's own.
    Internal,
}

/// What was wrong with what was presented.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Challenge {
    /// Nothing was presented.
    Missing,
    /// A token that is not, or no longer, good.
    InvalidToken(&'static str),
    /// A user name and password that are not.
    InvalidCredentials,
    /// A session that has ended.
    SessionEnded,
    /// A `DPoP` proof that is none for this request, or was used before (RFC 9449 §7.1).
    InvalidProof,
    /// A `DPoP` proof without a nonce of the gateway's (RFC 9449 §9).
    NonceRequired,
}

impl Rejection {
    /// The status clients see.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BadRequest
            | Self::AmbiguousPath
            | Self::MalformedCredentials
            | Self::Upstream(UpstreamError::Client) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::UnknownCoding => StatusCode::NOT_IMPLEMENTED,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::InsufficientScope { .. } | Self::Forbidden | Self::CsrfRejected => {
                StatusCode::FORBIDDEN
            }
            Self::Limited(limited) => limited.status,
            Self::TooManyFailures { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded
            | Self::IssuerUnavailable { .. }
            | Self::Upstream(UpstreamError::NoEndpoint | UpstreamError::Overflow) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Upstream(UpstreamError::Timeout) => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(
                UpstreamError::Connect
                | UpstreamError::Tls
                | UpstreamError::Reset
                | UpstreamError::Protocol,
            )
            | Self::SessionTooLarge => StatusCode::BAD_GATEWAY,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The stable name, the last part of the problem's `type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::BadRequest => "bad-request",
            Self::AmbiguousPath => "ambiguous-path",
            Self::TargetTooLong => "target-too-long",
            Self::UnknownCoding => "unknown-coding",
            Self::Method { .. } => "method-not-allowed",
            Self::HeadTooLarge => "head-too-large",
            Self::BodyTooLarge => "body-too-large",
            Self::BodyTimeout => "body-timeout",
            Self::Overloaded => "overloaded",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::MalformedCredentials => "malformed-credentials",
            Self::InsufficientScope { .. } => "insufficient-scope",
            Self::Forbidden => "forbidden",
            Self::CsrfRejected => "cross-site",
            Self::Limited(_) => "limited",
            Self::TooManyFailures { .. } => "too-many-failures",
            Self::IssuerUnavailable { .. } => "issuer-unavailable",
            Self::SessionTooLarge => "session-too-large",
            Self::Upstream(UpstreamError::Client) => "body-broken",
            Self::Upstream(UpstreamError::Timeout) => "upstream-timeout",
            Self::Upstream(UpstreamError::NoEndpoint | UpstreamError::Overflow) => {
                "upstream-unavailable"
            }
            Self::Upstream(_) => "upstream-failed",
            Self::LoopDetected => "loop",
            Self::Internal => "internal",
        }
    }

    /// Plain words for people.
    pub const fn title(&self) -> &'static str {
        match self {
            Self::NoRoute => "There is nothing here",
            Self::BadRequest => "The request is ambiguous or malformed",
            Self::AmbiguousPath => "The path can be read in several ways",
            Self::TargetTooLong => "The request's target is too long",
            Self::UnknownCoding => "The request's transfer coding is not known here",
            Self::Method { .. } => "The method is not allowed here",
            Self::HeadTooLarge => "The request's head is too large",
            Self::BodyTooLarge => "The request's body is too large",
            Self::BodyTimeout => "The request's body came too slowly",
            Self::Overloaded => "The gateway has too much to do",
            Self::Unauthenticated(Challenge::Missing) => "Credentials are needed",
            Self::Unauthenticated(Challenge::InvalidToken(_)) => "The access token is not valid",
            Self::Unauthenticated(Challenge::InvalidCredentials) => {
                "The user name or password is not right"
            }
            Self::Unauthenticated(Challenge::SessionEnded) => "The session has ended",
            Self::Unauthenticated(Challenge::InvalidProof) => "The DPoP proof is not valid",
            Self::Unauthenticated(Challenge::NonceRequired) => "The DPoP proof needs a nonce",
            Self::MalformedCredentials => "The credentials are malformed",
            Self::InsufficientScope { .. } => "The access token lacks a scope",
            Self::Forbidden => "The credentials do not allow this",
            Self::CsrfRejected => "The request came from another site",
            Self::Limited(_) => "Too many requests",
            Self::TooManyFailures { .. } => "Too many failed attempts",
            Self::IssuerUnavailable { .. } => "Credentials cannot be checked at the moment",
            Self::SessionTooLarge => "The session's tokens do not fit into cookies any more",
            Self::Upstream(UpstreamError::Client) => "The request's body ended early",
            Self::Upstream(UpstreamError::Timeout) => "The service did not answer in time",
            Self::Upstream(UpstreamError::NoEndpoint | UpstreamError::Overflow) => {
                "The service is not available"
            }
            Self::Upstream(_) => "The service could not be reached",
            Self::LoopDetected => "The request goes round in a circle",
            Self::Internal => "The gateway failed",
        }
    }

    /// The metric's word for it.
    pub const fn reason(&self) -> Rejected {
        match self {
            Self::NoRoute => Rejected::NoRoute,
            Self::BadRequest | Self::UnknownCoding | Self::Upstream(UpstreamError::Client) => {
                Rejected::BadRequest
            }
            Self::AmbiguousPath => Rejected::AmbiguousPath,
            Self::TargetTooLong => Rejected::TargetSize,
            Self::Method { .. } => Rejected::Method,
            Self::HeadTooLarge => Rejected::HeaderSize,
            Self::BodyTooLarge | Self::BodyTimeout => Rejected::BodySize,
            Self::Overloaded => Rejected::Overload,
            Self::Unauthenticated(_) | Self::MalformedCredentials => Rejected::Auth,
            Self::InsufficientScope { .. } | Self::Forbidden => Rejected::Forbidden,
            Self::CsrfRejected => Rejected::Csrf,
            Self::Limited(_) | Self::TooManyFailures { .. } => Rejected::Limit,
            Self::IssuerUnavailable { .. } | Self::SessionTooLarge => Rejected::Unavailable,
            Self::Upstream(_) | Self::LoopDetected => Rejected::Upstream,
            Self::Internal => Rejected::Internal,
        }
    }
}

impl From<UpstreamError> for Rejection {
    fn from(failure: UpstreamError) -> Self {
        Self::Upstream(failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_stays_small() {
        assert!(size_of::<Rejection>() <= 64, "{} bytes", size_of::<Rejection>());
    }

    #[test]
    fn a_broken_verifier_is_never_the_clients_fault() {
        assert_eq!(Rejection::IssuerUnavailable { retry_after: 1 }.status(), 503);
    }
}
