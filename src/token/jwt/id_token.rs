//! What an OpenID provider tells one of its clients: that somebody has logged
//! in (ID tokens, "OpenID Connect Core" §3.1.3.7), and that they have left
//! (logout tokens, "OpenID Connect Back-Channel Logout" §2.6).
//!
//! Signed and judged like every other token of that issuer, but meant for the
//! client alone, and never good for access.

use core::time::Duration;
use std::sync::Arc;

use serde_json::Value;
use subtle::ConstantTimeEq;

use super::verify::Unverified;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::issuer::Issuer;
use crate::token::{Audience, TokenError, ValidationRules, Verifier};

/// What an issuer's tokens for one client must satisfy.
#[derive(Debug)]
pub struct RelyingParty {
    client: Arc<str>,
    /// Whom else an ID token may be meant for: those whose access tokens are taken here.
    trusted: Box<[Arc<str>]>,
    id: ValidationRules,
    logout: ValidationRules,
}

/// What a logout token says has ended. It names a session, a person, or both.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Logout {
    /// `sid`: one session at the issuer.
    pub session: Option<Arc<str>>,
    /// `sub`: without `session`, everything of one person so far.
    pub subject: Option<Arc<str>>,
    /// `iat`: when it was said, by the issuer's clock.
    pub at: Timestamp,
    /// `jti`: the token's own name. It may be heeded once.
    pub id: Arc<str>,
}

impl RelyingParty {
    /// The rules for `client`; `like` is how the issuer's access tokens are judged.
    pub fn new(client: &Arc<str>, like: Option<&Verifier>) -> Self {
        let rules = |types: &[&str], required: &[&str]| {
            let mut rules = ValidationRules::new(Audience::OneOf([Arc::clone(client)].into()));
            if let Some(judge) = like.and_then(|verifier| verifier.issuer_verifiers().first()) {
                rules.algorithms.clone_from(&judge.rules().algorithms);
                rules.leeway = judge.rules().leeway;
            }
            rules.token_types = types.iter().copied().map(Box::from).collect();
            rules.required_claims = required.iter().copied().map(Box::from).collect();
            rules
        };
        let judges = like.map(Verifier::issuer_verifiers).unwrap_or_default();
        let trusted = judges.iter().filter_map(|judge| match &judge.rules().audience {
            Audience::OneOf(names) => Some(names.iter().cloned()),
            Audience::Any => None,
        });
        Self {
            client: Arc::clone(client),
            trusted: trusted.flatten().collect(),
            id: rules(&["jwt"], &["iss", "sub", "aud", "exp", "iat"]),
            logout: ValidationRules {
                max_token_age: Some(MAX_AGE),
                // Explicit typing is recommended, not required (§2.4 there).
                ..rules(&["logout+jwt", "jwt"], &["iss", "aud", "iat", "exp", "jti"])
            },
        }
    }

    /// Checks the ID token that answers the login with `nonce`.
    ///
    /// # Errors
    ///
    /// The rule that it breaks; [`TokenError::Claim`] if there is none, or if it answers another login.
    pub async fn check_login(
        &self,
        issuer: &Issuer,
        token: Option<&Secret<String>>,
        nonce: &str,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        let token = token.ok_or(TokenError::Claim)?;
        let read = Unverified::read(token.expose())?;
        let (principal, _) = read.verify(issuer, &self.id, now).await?;
        let text = |claim| principal.claims.get(claim).and_then(Value::as_str);
        let answers =
            text("nonce").is_some_and(|found| found.as_bytes().ct_eq(nonce.as_bytes()).into());
        if !answers {
            return Err(TokenError::Claim);
        }
        // Meant for several: either it says that it was issued to us, or we know them all (items 3 to 5 there).
        let known = |name: &str| {
            *name == *self.client || self.trusted.iter().any(|trusted| **trusted == *name)
        };
        match text("azp") {
            Some(party) if principal.has_audience(party) && *party == *self.client => Ok(()),
            None if principal.audience.iter().all(|name| known(name)) => Ok(()),
            _ => Err(TokenError::Audience),
        }
    }

    /// Checks a logout token, and says what it ends. Whether it came before is the caller's to know.
    ///
    /// # Errors
    ///
    /// The rule that it breaks; [`TokenError::Claim`] if it is not about a logout, or about nobody's.
    pub async fn check_logout(
        &self,
        issuer: &Issuer,
        token: &str,
        now: Timestamp,
    ) -> Result<Logout, TokenError> {
        let read = Unverified::read(token)?;
        let (principal, _) = read.verify(issuer, &self.logout, now).await?;
        let claims = &principal.claims;
        let is_a_logout = claims
            .get("events")
            .and_then(Value::as_object)
            .is_some_and(|events| events.get(EVENT).is_some_and(Value::is_object));
        // An ID token has a nonce: it must never pass for a logout token (§2.4 there).
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

/// How long ago a logout may have been said: a token that is told again later is not told by its issuer.
pub const MAX_AGE: Duration = Duration::from_secs(10 * 60);
/// How long a logout token could come again, clocks that differ as far as can be configured included.
pub(crate) const REPLAY_WINDOW: Duration = MAX_AGE.saturating_add(Duration::from_secs(20 * 60));
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";
