//! Who may use a route, as the operator says it.

use core::time::Duration;
use std::sync::Arc;

use http::HeaderName;

use crate::base::scopes::Scopes;

/// Who may use a route. There is no default: a route without it is a fault.
#[derive(Clone, Debug)]
pub enum Auth {
    /// Everybody; what the client sends as `Authorization` passes untouched.
    None,
    /// Whoever presents one of these credentials and fits its rules.
    Ways {
        /// Never empty. The first whose credential is present decides.
        ways: Vec<AuthMethod>,
        /// Lets requests pass that present no credential at all; a bad one is still refused.
        optional: bool,
    },
}

/// One way to be let in.
#[derive(Clone, Debug)]
pub struct AuthMethod {
    /// What the client presents.
    pub credential: Credential,
    /// Scopes the token must all have; else 403.
    pub scopes: Scopes,
    /// Scopes of which the token must have one, if there are any; else 403.
    pub any_scope: Scopes,
    /// Audiences of which the token must name one, narrowing the issuer's; empty leaves those.
    pub audience: Vec<Arc<str>>,
    /// What the claims must say; else 403.
    pub claims: Vec<ClaimRule>,
    /// Clients that may call; empty lets all. Else 403.
    pub clients: Vec<Arc<str>>,
    /// What the token must be bound to, so that nobody else can use it; `None` takes tokens that are not bound too.
    pub bound_to: Option<TokenBinding>,
    /// How old a kept verdict may be; `None` is the issuer's bound, zero asks every time.
    pub max_staleness: Option<Duration>,
    /// What the service learns about the caller.
    pub identity_headers: Vec<IdentityHeader>,
    /// Whether the service gets the gateway's own token that says who the caller is. Default no.
    pub identity_token: bool,
    /// Which access token travels on to the service. Default the one that was presented.
    pub forward_token: ForwardToken,
}

/// Which access token the service receives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ForwardToken {
    /// None.
    No,
    /// The one that the request came with, or was exchanged for.
    Presented,
    /// In place of a reference token, what its issuer has signed about it; a signed token as it is.
    Signed,
}

/// What the client presents, and who vouches for it. Issuers and sessions by name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credential {
    /// A signed token of one of these issuers; its `iss` says which.
    Jwt(Vec<Arc<str>>),
    /// A token that only its issuer understands (RFC 7662).
    Introspection(Vec<Arc<str>>),
    /// Either, by the token's shape.
    Bearer(Vec<Arc<str>>),
    /// HTTP Basic credentials, exchanged by the password grant.
    Basic(Arc<str>),
    /// A session's cookies.
    Session(Arc<str>),
}

/// What a token must be bound to, and its client prove to have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenBinding {
    /// `dpop`: a key, proved request by request (RFC 9449).
    Key,
    /// `mtls`: a certificate, shown in the handshake (RFC 8705).
    Certificate,
}

/// What one claim must say.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimRule {
    /// Where the claim is: member names joined by dots.
    pub path: Box<str>,
    /// What it must say.
    pub expected: Expected,
}

/// What a claim must say.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// One of these values, exactly.
    OneOf(Vec<serde_json::Value>),
    /// It is an array with this among its values.
    Contains(serde_json::Value),
}

/// A claim that the service receives as a field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityHeader {
    /// The field; removed from what clients send, on every route.
    pub name: HeaderName,
    /// Where the claim is: member names joined by dots.
    pub claim: Box<str>,
}
