//! The reasons for which the gateway refuses a request.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};

use crate::base::scopes::Scopes;
use crate::limit::Limited;
use crate::observe::metrics::Rejected;
use crate::session::navigation;
use crate::token::authentication_level::AuthenticationLevel;
use crate::upstream::UpstreamError;

/// The reason for which the gateway refuses a request. A closed set, small (a test limits it to 64 bytes) and without
/// text of the client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Rejection {
    /// No route has this host and path.
    NoRoute,
    /// The request is malformed or ambiguous: its path, host or credentials.
    BadRequest,
    /// Upstreams could read the path as that of another route.
    AmbiguousPath,
    /// Upstreams could read a header field so that the request takes another route, or counts for another key of a limit:
    /// the field is there twice, or in another spelling of its name.
    AmbiguousField,
    /// The request target exceeds the limit, before or after rewriting (RFC 9110 §15.5.15).
    TargetTooLong,
    /// The content has a transfer coding besides `chunked` (RFC 9112 §6.1).
    UnknownCoding,
    /// The tunnel is to speak a protocol that the gateway does not know (RFC 8441 §4).
    UnknownProtocol,
    /// A route has the path, but none has the method.
    Method {
        /// The methods of the path.
        allow: HeaderValue,
    },
    /// The head has more bytes, or more header fields, than the limit.
    HeadTooLarge {
        /// Whether browsers are to delete the cookies of the site.
        clears_cookies: bool,
    },
    /// The content exceeds the limit of the route.
    BodyTooLarge,
    /// The content arrived too slowly, or stalled.
    BodyTimeout,
    /// The number of requests in flight has reached the limit.
    Overloaded,
    /// The credentials are missing or invalid.
    Unauthenticated(Challenge),
    /// The credentials cannot be parsed (RFC 6750 §3.1 `invalid_request`).
    MalformedCredentials,
    /// The token lacks scopes.
    InsufficientScope {
        /// The required scopes.
        required: Arc<Scopes>,
    },
    /// The user has to log in again, or in a stronger way (RFC 9470).
    InsufficientAuthentication {
        /// The demands of the route.
        required: Arc<AuthenticationLevel>,
    },
    /// The route requires another client or claim.
    Forbidden,
    /// A page of another site sent the request with a session's cookies.
    CsrfRejected,
    /// A limit is exceeded.
    Limited(Limited),
    /// Too many failed logins, of one user or from one address.
    TooManyFailures {
        /// Whole seconds until the next attempt is accepted.
        retry_after: u64,
    },
    /// Refreshed tokens do not fit into cookies, and the session's old ones have expired.
    SessionTooLarge,
    /// The authorization server is unavailable: never the client's fault.
    IssuerUnavailable {
        /// Whole seconds after which a retry makes sense.
        retry_after: u64,
    },
    /// Redis is unavailable, without which the credentials cannot be checked: never the client's fault.
    StoreUnavailable,
    /// The request has passed gateways of this program too often (RFC 5842 §7.2): an upstream leads back to the gateway.
    LoopDetected,
    /// The deadline of a gRPC call has passed before it could be forwarded.
    DeadlineExceeded,
    /// A gRPC call came on an unencrypted connection of a listener that redirects to https: gRPC has no redirects.
    HttpsRequired,
    /// The upstream failed.
    Upstream(UpstreamError),
    /// An internal error of the gateway.
    Internal,
}

/// The reason for which credentials were not accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Challenge {
    /// No credentials were presented.
    Missing,
    /// The access token is invalid or has expired.
    InvalidToken(&'static str),
    /// The user name or password is wrong.
    InvalidCredentials,
    /// The session has ended.
    SessionEnded,
    /// The `DPoP` proof is not valid for this request, or was used before (RFC 9449 §7.1).
    InvalidProof,
    /// The `DPoP` proof lacks a nonce of the gateway (RFC 9449 §9).
    NonceRequired,
}

impl Rejection {
    /// Returns the rejection of a head beyond the limits that has these fields, and `cookies` bytes of cookies.
    ///
    /// Browsers delete cookies that leave no room for the rest of a head, more than `max_cookies` bytes: these come with every
    /// request, and their owner could never get out. No page of another site can have that done to smaller ones by a long
    /// target, nor by a picture.
    pub(crate) fn head_too_large(cookies: usize, max_cookies: usize, fields: &HeaderMap) -> Self {
        let clears_cookies = cookies > max_cookies && !navigation::is_cross_site_resource(fields);
        Self::HeadTooLarge { clears_cookies }
    }

    /// Returns the response status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BadRequest
            | Self::AmbiguousPath
            | Self::AmbiguousField
            | Self::MalformedCredentials
            | Self::Upstream(UpstreamError::Client) => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::UnknownCoding | Self::UnknownProtocol => StatusCode::NOT_IMPLEMENTED,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::HeadTooLarge { .. } | Self::Upstream(UpstreamError::HeadTooLarge) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodyTimeout | Self::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
            Self::Unauthenticated(_) | Self::InsufficientAuthentication { .. } => {
                StatusCode::UNAUTHORIZED
            }
            Self::InsufficientScope { .. }
            | Self::Forbidden
            | Self::CsrfRejected
            | Self::HttpsRequired => StatusCode::FORBIDDEN,
            Self::Limited(limited) => limited.status,
            Self::TooManyFailures { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Overloaded
            | Self::IssuerUnavailable { .. }
            | Self::StoreUnavailable
            | Self::Upstream(
                UpstreamError::NoEndpoint
                | UpstreamError::CircuitOpen { .. }
                | UpstreamError::Overflow
                | UpstreamError::Refused,
            ) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream(
                UpstreamError::Timeout | UpstreamError::Stalled | UpstreamError::Deadline { .. },
            ) => StatusCode::GATEWAY_TIMEOUT,
            Self::Upstream(
                UpstreamError::Connect
                | UpstreamError::Tls
                | UpstreamError::TlsAlert(_)
                | UpstreamError::Reset
                | UpstreamError::StreamReset(_)
                | UpstreamError::Truncated { .. }
                | UpstreamError::Invalid(_)
                | UpstreamError::Protocol,
            )
            | Self::SessionTooLarge => StatusCode::BAD_GATEWAY,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Returns the stable name, the last part of the problem's `type`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoRoute => "no-route",
            Self::BadRequest => "bad-request",
            Self::AmbiguousPath => "ambiguous-path",
            Self::AmbiguousField => "ambiguous-field",
            Self::TargetTooLong => "target-too-long",
            Self::UnknownCoding => "unknown-coding",
            Self::UnknownProtocol => "unknown-protocol",
            Self::Method { .. } => "method-not-allowed",
            Self::HeadTooLarge { .. } | Self::Upstream(UpstreamError::HeadTooLarge) => {
                "head-too-large"
            }
            Self::BodyTooLarge => "body-too-large",
            Self::BodyTimeout => "body-timeout",
            Self::Overloaded => "overloaded",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::MalformedCredentials => "malformed-credentials",
            Self::InsufficientScope { .. } => "insufficient-scope",
            Self::InsufficientAuthentication { .. } => "insufficient-user-authentication",
            Self::Forbidden => "forbidden",
            Self::CsrfRejected => "cross-site",
            Self::Limited(_) => "limited",
            Self::TooManyFailures { .. } => "too-many-failures",
            Self::IssuerUnavailable { .. } => "issuer-unavailable",
            Self::StoreUnavailable => "store-unavailable",
            Self::SessionTooLarge => "session-too-large",
            Self::Upstream(UpstreamError::Client) => "body-broken",
            Self::Upstream(UpstreamError::Timeout | UpstreamError::Stalled) => "upstream-timeout",
            Self::Upstream(
                UpstreamError::NoEndpoint
                | UpstreamError::CircuitOpen { .. }
                | UpstreamError::Overflow
                | UpstreamError::Refused,
            ) => "upstream-unavailable",
            Self::DeadlineExceeded | Self::Upstream(UpstreamError::Deadline { .. }) => {
                "deadline-exceeded"
            }
            Self::Upstream(_) => "upstream-failed",
            Self::HttpsRequired => "https-required",
            Self::LoopDetected => "loop",
            Self::Internal => "internal",
        }
    }

    /// Returns the problem's `title`.
    pub const fn title(&self) -> &'static str {
        match self {
            Self::NoRoute => "Not found",
            Self::BadRequest => "The request is ambiguous or malformed",
            Self::AmbiguousPath => "The path is ambiguous",
            Self::AmbiguousField => "A header field is ambiguous",
            Self::TargetTooLong => "The request target is too long",
            Self::UnknownCoding => "The transfer coding is not supported",
            Self::UnknownProtocol => "The protocol of the tunnel is not supported",
            Self::Method { .. } => "The method is not allowed for this path",
            Self::HeadTooLarge { .. } | Self::Upstream(UpstreamError::HeadTooLarge) => {
                "The request head is too large"
            }
            Self::BodyTooLarge => "The request content is too large",
            Self::BodyTimeout => "The request content arrived too slowly",
            Self::Overloaded => "The gateway is overloaded",
            Self::Unauthenticated(Challenge::Missing) => "Credentials are required",
            Self::Unauthenticated(Challenge::InvalidToken(_)) => "The access token is not valid",
            Self::Unauthenticated(Challenge::InvalidCredentials) => {
                "The user name or password is wrong"
            }
            Self::Unauthenticated(Challenge::SessionEnded) => "The session has ended",
            Self::Unauthenticated(Challenge::InvalidProof) => "The DPoP proof is not valid",
            Self::Unauthenticated(Challenge::NonceRequired) => "The DPoP proof needs a nonce",
            Self::MalformedCredentials => "The credentials are malformed",
            Self::InsufficientScope { .. } => "The access token lacks a scope",
            Self::InsufficientAuthentication { .. } => {
                "A stronger or more recent login is required"
            }
            Self::Forbidden => "The credentials do not allow this",
            Self::CsrfRejected => "The request came from another site",
            Self::Limited(_) => "Too many requests",
            Self::TooManyFailures { .. } => "Too many failed logins",
            Self::IssuerUnavailable { .. } | Self::StoreUnavailable => {
                "Credentials cannot be checked at the moment"
            }
            Self::SessionTooLarge => "The session's tokens no longer fit into cookies",
            Self::Upstream(UpstreamError::Client) => "The request content ended early",
            Self::Upstream(UpstreamError::Timeout | UpstreamError::Stalled) => {
                "The upstream server did not respond in time"
            }
            Self::Upstream(
                UpstreamError::NoEndpoint
                | UpstreamError::CircuitOpen { .. }
                | UpstreamError::Overflow
                | UpstreamError::Refused,
            ) => "The upstream server is unavailable",
            Self::DeadlineExceeded | Self::Upstream(UpstreamError::Deadline { .. }) => {
                "The deadline of the call has passed"
            }
            Self::Upstream(_) => "The upstream server failed",
            Self::HttpsRequired => "The connection must be encrypted",
            Self::LoopDetected => "Request loop detected",
            Self::Internal => "Internal gateway error",
        }
    }

    /// Returns the cause for the log; `None` if the name says it all.
    pub fn cause(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Upstream(failure) => failure.cause(),
            Self::Overloaded => Cow::Borrowed("max_requests_in_flight is reached"),
            Self::IssuerUnavailable { .. } => Cow::Borrowed(
                "the authorization server is unavailable; an earlier log line has the cause",
            ),
            Self::StoreUnavailable => {
                Cow::Borrowed("Redis is unavailable; an earlier log line has the cause")
            }
            Self::DeadlineExceeded => {
                Cow::Borrowed("the deadline of the call passed before it was forwarded")
            }
            Self::SessionTooLarge => Cow::Borrowed("the refreshed tokens do not fit into cookies"),
            Self::AmbiguousField => Cow::Borrowed(
                "a field of match_headers or of a limit is there twice, or in another spelling of its name",
            ),
            _ => return None,
        })
    }

    /// Returns the label value for metrics.
    pub const fn reason(&self) -> Rejected {
        match self {
            Self::NoRoute => Rejected::NoRoute,
            Self::BadRequest
            | Self::AmbiguousField
            | Self::UnknownCoding
            | Self::UnknownProtocol
            | Self::Upstream(UpstreamError::Client) => Rejected::BadRequest,
            Self::AmbiguousPath => Rejected::AmbiguousPath,
            Self::TargetTooLong => Rejected::TargetSize,
            Self::Method { .. } => Rejected::Method,
            Self::HeadTooLarge { .. } | Self::Upstream(UpstreamError::HeadTooLarge) => {
                Rejected::HeaderSize
            }
            Self::BodyTooLarge | Self::BodyTimeout => Rejected::BodySize,
            Self::Overloaded => Rejected::Overload,
            Self::Unauthenticated(_)
            | Self::MalformedCredentials
            | Self::InsufficientAuthentication { .. } => Rejected::Auth,
            Self::InsufficientScope { .. } | Self::Forbidden | Self::HttpsRequired => {
                Rejected::Forbidden
            }
            Self::CsrfRejected => Rejected::Csrf,
            Self::Limited(_) | Self::TooManyFailures { .. } => Rejected::Limit,
            Self::IssuerUnavailable { .. } | Self::StoreUnavailable | Self::SessionTooLarge => {
                Rejected::Unavailable
            }
            Self::Upstream(_) | Self::LoopDetected | Self::DeadlineExceeded => Rejected::Upstream,
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
    fn a_rejection_stays_small() {
        assert!(size_of::<Rejection>() <= 64, "{} bytes", size_of::<Rejection>());
    }

    #[test]
    fn a_broken_verifier_is_never_the_clients_fault() {
        assert_eq!(Rejection::IssuerUnavailable { retry_after: 1 }.status(), 503);
    }
}
