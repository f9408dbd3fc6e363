//! The kinds of credentials that routes accept, described once for checks, commands, pages and metrics.

use std::sync::Arc;

use crate::observe::metrics::AuthLabel;
use crate::token::TokenUse;

/// A kind of credential and its issuers or session, by name.
///
/// Code that asks about a credential uses these methods and not the variants, so that a new kind is described here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Credential {
    /// An access token of one of these issuers.
    Token {
        /// The forms of tokens that are accepted, and so how they are verified.
        accepts: TokenUse,
        /// The issuers; that of a JWT is selected by `iss`.
        issuers: Vec<Arc<str>>,
    },
    /// HTTP Basic credentials, exchanged by the resource owner password credentials grant.
    Basic(Arc<str>),
    /// The cookies of a session.
    Session(Arc<str>),
}

impl Credential {
    /// Returns the key of this kind under a route's `auth`, by which commands and pages name it too.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Token { accepts: TokenUse::Jwt, .. } => "jwt",
            Self::Token { accepts: TokenUse::Introspection, .. } => "introspection",
            Self::Token { accepts: TokenUse::Bearer, .. } => "bearer",
            Self::Basic(_) => "basic",
            Self::Session(_) => "session",
        }
    }

    /// Returns what a client presents, in a few words and without names.
    pub fn description(&self) -> &'static str {
        match self {
            Self::Token { accepts: TokenUse::Jwt, .. } => "a signed token",
            Self::Token { accepts: TokenUse::Introspection, .. } => "a reference token",
            Self::Token { accepts: TokenUse::Bearer, .. } => "a token of either kind",
            Self::Basic(_) => "user name and password",
            Self::Session(_) => "a session",
        }
    }

    /// Returns what a client presents, and of which issuers or session.
    pub fn description_with_names(&self) -> String {
        let names = self.names().join(" or ");
        match self {
            Self::Token { accepts: TokenUse::Jwt, .. } => {
                format!("a signed token (JWT) of {names}")
            }
            Self::Token { accepts: TokenUse::Introspection, .. } => {
                format!("a token introspected at {names}")
            }
            Self::Token { accepts: TokenUse::Bearer, .. } => {
                format!("a token of {names}, a JWT or an opaque one")
            }
            Self::Basic(_) => format!("a user name and password of {names} (Basic)"),
            Self::Session(_) => format!("the cookies of session {names}"),
        }
    }

    /// Returns the part of a request that carries the credential, unless the method places it elsewhere.
    pub(super) fn carrier(&self) -> String {
        match self {
            Self::Token { .. } => "a Bearer token".to_owned(),
            Self::Basic(_) => "HTTP Basic".to_owned(),
            Self::Session(name) => format!("the cookie of session `{name}`"),
        }
    }

    /// Returns the credential of `northgate dev`, by its name in the page, that a route with this kind accepts.
    pub fn sample(&self) -> &'static str {
        match self {
            Self::Token { accepts: TokenUse::Introspection, .. } => "reference",
            Self::Token { .. } => "signed",
            Self::Basic(_) => "basic",
            Self::Session(_) => "session",
        }
    }

    /// Returns the kind in metrics and log, for signed tokens if both formats are accepted.
    pub fn label(&self) -> AuthLabel {
        match self {
            Self::Token { accepts: TokenUse::Jwt | TokenUse::Bearer, .. } => AuthLabel::Jwt,
            Self::Token { accepts: TokenUse::Introspection, .. } => AuthLabel::Introspection,
            Self::Basic(_) => AuthLabel::Basic,
            Self::Session(_) => AuthLabel::Session,
        }
    }

    /// Returns the names under that key: of issuers, or of a session.
    pub fn names(&self) -> &[Arc<str>] {
        match self {
            Self::Token { issuers, .. } => issuers,
            Self::Basic(name) | Self::Session(name) => core::slice::from_ref(name),
        }
    }

    /// Returns the issuers of the tokens, presented or obtained by a password grant; none for a session, which names its own.
    pub fn issuers(&self) -> &[Arc<str>] {
        if self.session().is_some() { &[] } else { self.names() }
    }

    /// Returns the accepted forms of tokens, if a client presents an access token; else the gateway obtains it.
    pub fn token_use(&self) -> Option<TokenUse> {
        if let Self::Token { accepts, .. } = self { Some(*accepts) } else { None }
    }

    /// Whether a client presents an access token; else the gateway obtains it.
    pub fn takes_tokens(&self) -> bool {
        matches!(self, Self::Token { .. })
    }

    /// Returns the issuers whose access tokens a client presents; none if it presents another credential.
    pub fn token_issuers(&self) -> &[Arc<str>] {
        if self.takes_tokens() { self.names() } else { &[] }
    }

    /// Returns the issuers whose JWTs a client may present.
    pub fn jwt_issuers(&self) -> &[Arc<str>] {
        match self {
            Self::Token { accepts: TokenUse::Jwt | TokenUse::Bearer, issuers } => issuers,
            _ => &[],
        }
    }

    /// Returns the issuers that introspect the tokens that a client presents.
    pub fn introspecting_issuers(&self) -> &[Arc<str>] {
        match self {
            Self::Token { accepts: TokenUse::Introspection | TokenUse::Bearer, issuers } => issuers,
            _ => &[],
        }
    }

    /// Returns the issuer at which HTTP Basic credentials are exchanged, if these are such.
    pub fn password_issuer(&self) -> Option<&Arc<str>> {
        if let Self::Basic(issuer) = self { Some(issuer) } else { None }
    }

    /// Returns the session whose cookies these are, if they are.
    pub fn session(&self) -> Option<&Arc<str>> {
        if let Self::Session(session) = self { Some(session) } else { None }
    }
}
