//! Tokens of an OpenID provider for a relying party: ID tokens ("OpenID Connect
//! Core" §3.1.3.7) and logout tokens ("OpenID Connect Back-Channel Logout" §2.6).
//!
//! Signed and verified like other tokens of that issuer, but meant for the
//! client alone, and never valid for access.

use crate::token::validation::MAX_AGE;
use std::sync::Arc;

use serde_json::Value;
use subtle::ConstantTimeEq;

use super::claims::LOGOUT_EVENT;
use super::verify::Unverified;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::issuer::Issuer;
use crate::token::{Audience, Principal, TokenError, ValidationRules, Verifier};

/// The validation rules for ID and logout tokens of one client.
#[derive(Debug)]
pub struct RelyingParty {
    client: Arc<str>,
    /// Further accepted audiences of an ID token: those whose access tokens are accepted here.
    trusted: Box<[Arc<str>]>,
    id: ValidationRules,
    logout: ValidationRules,
}

/// The sessions that a logout token ends. It names a session, a subject, or both.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Logout {
    /// `sid`: one session at the issuer.
    pub session: Option<Arc<str>>,
    /// `sub`: without `session`, all sessions of one subject so far.
    pub subject: Option<Arc<str>>,
    /// `iat`: the time of the logout, by the issuer's clock.
    pub at: Timestamp,
    /// `jti`: the token's identifier. It may be used once.
    pub id: Arc<str>,
}

impl RelyingParty {
    /// Returns the rules for `client`; `like` verifies the issuer's access tokens.
    pub fn new(client: &Arc<str>, like: Option<&Verifier>) -> Self {
        let rules = |types: &[&str], required: &[&str]| {
            let mut rules = ValidationRules::new(Audience::OneOf([Arc::clone(client)].into()));
            if let Some(issuer_verifier) =
                like.and_then(|verifier| verifier.issuer_verifiers().first())
            {
                rules.algorithms.clone_from(&issuer_verifier.rules().algorithms);
                rules.leeway = issuer_verifier.rules().leeway;
                rules.max_token_size = issuer_verifier.rules().max_token_size;
            }
            rules.access_only = false;
            rules.token_types = types.iter().copied().map(Box::from).collect();
            rules.required_claims = required.iter().copied().map(Box::from).collect();
            rules
        };
        let verifiers = like.map(Verifier::issuer_verifiers).unwrap_or_default();
        let trusted = verifiers.iter().filter_map(|issuer_verifier| {
            match &issuer_verifier.rules().audience {
                Audience::OneOf(names) => Some(names.iter().cloned()),
                Audience::Any => None,
            }
        });
        Self {
            client: Arc::clone(client),
            trusted: trusted.flatten().collect(),
            id: rules(&["jwt"], &["iss", "sub", "aud", "exp", "iat"]),
            logout: ValidationRules {
                max_token_age: Some(MAX_AGE),
                // Explicit typing is recommended, not required (Back-Channel Logout §2.4).
                ..rules(&["logout+jwt", "jwt"], &["iss", "aud", "iat", "exp", "jti"])
            },
        }
    }

    /// Verifies the ID token of the login with `nonce`.
    ///
    /// # Errors
    ///
    /// The violated rule; [`TokenError::Claim`] if the token is missing, or belongs to another login.
    pub async fn check_login(
        &self,
        issuer: &Issuer,
        token: Option<&Secret<String>>,
        nonce: &str,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        let token = token.ok_or(TokenError::Claim)?;
        let principal = self.verify(issuer, token, now).await?;
        let found = principal.claims.get("nonce").and_then(Value::as_str);
        let has_nonce = found.is_some_and(|found| found.as_bytes().ct_eq(nonce.as_bytes()).into());
        if has_nonce { Ok(()) } else { Err(TokenError::Claim) }
    }

    /// Verifies an ID token that belongs to no authorization request: that of a refresh ("OpenID Connect Core" §12.2), or
    /// of a password grant. The caller compares the subject of a refresh.
    ///
    /// # Errors
    ///
    /// The violated rule.
    pub async fn verify(
        &self,
        issuer: &Issuer,
        token: &Secret<String>,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let read = Unverified::read_within(token.expose(), self.id.max_token_size)?;
        let (principal, _) = read.verify(issuer, &self.id, now).await?;
        // Several audiences: `azp` must be this client, or all must be trusted (items 3 to 5 there).
        let is_trusted = |name: &str| {
            *name == *self.client || self.trusted.iter().any(|trusted| **trusted == *name)
        };
        let is_for_client = match principal.claims.get("azp").and_then(Value::as_str) {
            Some(party) => principal.has_audience(party) && *party == *self.client,
            None => principal.audience.iter().all(|name| is_trusted(name)),
        };
        if is_for_client { Ok(principal) } else { Err(TokenError::Audience) }
    }

    /// Verifies a logout token and returns its content. The caller checks for replay.
    ///
    /// # Errors
    ///
    /// The violated rule; [`TokenError::Claim`] if it is not about a logout, or names no session or subject.
    pub async fn check_logout(
        &self,
        issuer: &Issuer,
        token: &str,
        now: Timestamp,
    ) -> Result<Logout, TokenError> {
        let read = Unverified::read_within(token, self.logout.max_token_size)?;
        let (principal, _) = read.verify(issuer, &self.logout, now).await?;
        let claims = &principal.claims;
        let is_a_logout = claims
            .get("events")
            .and_then(Value::as_object)
            .is_some_and(|events| events.get(LOGOUT_EVENT).is_some_and(Value::is_object));
        // An ID token has a nonce: it must never pass for a logout token (Back-Channel Logout §2.4).
        if !is_a_logout || claims.contains_key("nonce") {
            return Err(TokenError::Claim);
        }
        let named = |name: Option<Arc<str>>| name.filter(|name| !name.is_empty());
        let (session, subject) = (named(principal.session), named(principal.subject));
        if session.is_none() && subject.is_none() {
            return Err(TokenError::Claim);
        }
        let at = principal.issued.ok_or(TokenError::Claim)?;
        Ok(Logout { session, subject, at, id: principal.id.ok_or(TokenError::Claim)? })
    }
}
