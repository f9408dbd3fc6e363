//! Authentication and authorization settings of a route.

use core::time::Duration;
use std::sync::Arc;

use http::HeaderName;

pub use super::credential::Credential;
use crate::base::scopes::Scopes;
use crate::token::authentication_level::AuthenticationLevel;

/// The authentication that a route requires. There is no default: a route without `auth` is a fault.
#[derive(Clone, Debug)]
pub enum Auth {
    /// No authentication: every client passes, and its `Authorization` is forwarded untouched.
    None,
    /// One of these credentials, subject to its rules.
    AnyOf {
        /// Accepted credentials, never empty. The first whose credential is present decides.
        methods: Vec<AuthMethod>,
        /// Lets requests without any credential pass; an invalid credential is still refused. Default false.
        optional: bool,
    },
}

impl Auth {
    /// Returns the accepted credentials; none if every client passes.
    pub fn methods(&self) -> &[AuthMethod] {
        match self {
            Self::None => &[],
            Self::AnyOf { methods, .. } => methods,
        }
    }

    /// Whether requests without any credential pass.
    pub fn is_optional(&self) -> bool {
        match self {
            Self::None => true,
            Self::AnyOf { optional, .. } => *optional,
        }
    }
}

/// One accepted credential, with the rules for its token.
#[derive(Clone, Debug)]
pub struct AuthMethod {
    /// The credential that the client presents.
    pub credential: Credential,
    /// The place of the token in a request. Default `Authorization`.
    pub token_from: TokenSource,
    /// Scopes the token must all have; else 403.
    pub scopes: Scopes,
    /// Scopes of which the token must have one, if there are any; else 403.
    pub any_scope: Scopes,
    /// Accepted audiences, narrowing the issuer's; the token must name one. Empty: the issuer's apply.
    pub audience: Vec<Arc<str>>,
    /// Rules for claims, all of which must hold; else 403.
    pub claims: Vec<ClaimRule>,
    /// Clients that may call; empty allows all. Else 403.
    pub clients: Vec<Arc<str>>,
    /// Required token binding; `None` accepts unbound tokens too.
    pub bound_to: Option<TokenBinding>,
    /// The strength and age of the user's login; weaker or older ones are asked to log in again (RFC 9470). Default none.
    pub level: Option<AuthenticationLevel>,
    /// Maximum age of a cached introspection result; `None` is the issuer's setting, zero introspects every time.
    pub max_staleness: Option<Duration>,
    /// Header fields with claims that the upstream receives.
    pub identity_headers: Vec<IdentityHeader>,
    /// Sends the upstream an identity token signed by the gateway. Default false.
    pub identity_token: bool,
    /// The access token that is forwarded to the upstream. Default the presented one.
    pub forward_token: ForwardToken,
}

impl AuthMethod {
    /// Returns the part of a request that carries the credential: two in the same part cannot be distinguished by
    /// presence.
    pub(super) fn carrier(&self) -> String {
        match &self.token_from {
            TokenSource::Header(name) => format!("the field `{name}`"),
            TokenSource::Cookie(name) => format!("the cookie `{name}`"),
            TokenSource::Authorization => self.credential.carrier(),
        }
    }

    /// Whether browsers send the credential in cookies.
    pub(super) fn is_in_cookies(&self) -> bool {
        self.credential.session().is_some() || matches!(self.token_from, TokenSource::Cookie(_))
    }
}

/// The place of an access token in a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum TokenSource {
    /// `Authorization`, as Bearer or with a `DPoP` proof (RFC 6750 §2.1, RFC 9449 §7.1).
    #[default]
    Authorization,
    /// A header field of this name, with or without `Bearer` in front. Upstreams never see it.
    Header(HeaderName),
    /// A cookie of this name. Upstreams never see it; unsafe methods must come from a page of the same origin.
    Cookie(Box<str>),
}

/// The access token that the upstream receives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ForwardToken {
    /// None.
    No,
    /// The one that the request came with, or was exchanged for.
    Presented,
    /// The issuer's signed introspection response in place of an opaque token (RFC 9701); a JWT unchanged.
    Signed,
}

/// The proof of possession that a bound token requires.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenBinding {
    /// `dpop`: a key, proved with each request (RFC 9449).
    Key,
    /// `mtls`: the client certificate of the TLS connection (RFC 8705).
    Certificate,
}

/// A rule for the value of one claim.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimRule {
    /// Path of the claim: member names joined by dots.
    pub path: Box<str>,
    /// The values that satisfy the rule.
    pub expected: Expected,
}

/// The values that satisfy a claim rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// One of these values, exactly.
    OneOf(Vec<serde_json::Value>),
    /// It is an array with this among its values.
    Contains(serde_json::Value),
}

impl Expected {
    /// Returns the values, of which one is enough.
    pub fn values(&self) -> &[serde_json::Value] {
        match self {
            Self::Contains(value) => core::slice::from_ref(value),
            Self::OneOf(values) => values,
        }
    }
}

/// A claim that the upstream receives as a header field.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IdentityHeader {
    /// Field name; removed from client requests on every route.
    pub name: HeaderName,
    /// Path of the claim: member names joined by dots.
    pub claim: Box<str>,
}
