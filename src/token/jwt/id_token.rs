//! Tokens of an OpenID provider for a relying party: ID tokens ("OpenID Connect
//! Core" §3.1.3.7), logout tokens ("OpenID Connect Back-Channel Logout" §2.6) and
//! signed userinfo responses ("OpenID Connect Core" §5.3.2).
//!
//! Signed and verified like other tokens of that issuer, within a JWE if it has keys for that, but meant for the
//! client alone, and never valid for access.

use crate::token::validation::MAX_AGE;
use std::sync::Arc;

use serde_json::{Map, Value};
use subtle::ConstantTimeEq;

use super::claims::LOGOUT_EVENT;
use super::jws::Jws;
use super::verify::{Unverified, signing_key};
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::issuer::Issuer;
use crate::token::jwe::{DecryptionKeys, is_encrypted};
use crate::token::received_tokens::payload;
use crate::token::{Audience, Principal, TokenError, ValidationRules, Verifier};

/// The validation rules for ID and logout tokens of one client.
#[derive(Debug)]
pub struct RelyingParty {
    client: Arc<str>,
    /// Further accepted audiences of an ID token: those whose access tokens are accepted here.
    trusted: Box<[Arc<str>]>,
    /// The keys that open encrypted tokens of the issuer; `None` if it has none.
    decryption: Option<Arc<DecryptionKeys>>,
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
    /// The issuer within which both are unique: see [`Principal::namespace`].
    pub namespace: Arc<str>,
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
                rules.namespace.clone_from(&issuer_verifier.rules().namespace);
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
            decryption: verifiers.first().and_then(|verifier| verifier.rules().decryption.clone()),
            id: rules(&["jwt"], &ID_TOKEN_CLAIMS),
            logout: ValidationRules {
                max_token_age: Some(MAX_AGE),
                // Explicit typing is recommended, not required (Back-Channel Logout §2.4).
                ..rules(&["logout+jwt", "jwt"], &["iss", "aud", "iat", "exp", "jti"])
            },
        }
    }

    /// Returns the signed token inside an encrypted one; any other, and one that the issuer's keys do not open, as it is.
    ///
    /// The signed token stays in the place of the encrypted one: an `id_token_hint` must be decrypted ("OpenID Connect
    /// RP-Initiated Logout" §2), and upstreams do not have the key.
    pub(crate) fn opened(&self, token: Secret<String>) -> Secret<String> {
        let is_encrypted = is_encrypted(token.expose()) && token.expose().len() <= self.max_size();
        let ring = self.decryption.as_ref().filter(|_| is_encrypted);
        ring.and_then(|ring| ring.open(token.expose()).ok()).unwrap_or(token)
    }

    fn max_size(&self) -> usize {
        self.id.max_token_size
    }

    /// Returns the names of the claims that every ID token has and this one lacks, separated by spaces, for the log; `None`
    /// if it lacks none or cannot be read.
    pub(crate) fn lacking(token: &Secret<String>) -> Option<String> {
        let claims = payload(token)?;
        let lacks = |name: &&str| claims.get(*name).is_none_or(Value::is_null);
        let lacking: Vec<_> = ID_TOKEN_CLAIMS.into_iter().filter(lacks).collect();
        (!lacking.is_empty()).then(|| lacking.join(" "))
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
        let token = self.opened(token.into());
        let read = Unverified::read_within(token.expose(), self.logout.max_token_size)?;
        // `sub` may be absent beside `sid` (Back-Channel Logout §2.4), and `null` is absent.
        let (principal, _) = read.without_null("sub").verify(issuer, &self.logout, now).await?;
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
        let id = principal.id.ok_or(TokenError::Claim)?;
        Ok(Logout { session, subject, namespace: principal.namespace, at, id })
    }

    /// Verifies a signed userinfo response, and returns its claims about the user. It has `iss` and `aud`, and need not
    /// have `exp` ("OpenID Connect Core" §5.3.2).
    ///
    /// # Errors
    ///
    /// The violated rule.
    pub(crate) async fn check_userinfo(
        &self,
        issuer: &Issuer,
        response: Secret<String>,
        now: Timestamp,
    ) -> Result<Map<String, Value>, TokenError> {
        let response = self.opened(response);
        let jws = Jws::parse_within(response.expose(), self.max_size())?;
        if !self.id.algorithms.contains(&jws.algorithm) {
            return Err(TokenError::Algorithm);
        }
        let claims = strict_json::parse_object(&jws.payload);
        let mut claims = claims.map_err(|_| TokenError::Malformed)?;
        let iss = claims.get("iss").and_then(Value::as_str);
        if !iss.is_some_and(|iss| issuer.settings().is_named(iss)) {
            return Err(TokenError::Issuer);
        }
        let is_for_client = match claims.get("aud") {
            Some(Value::String(name)) => **name == *self.client,
            Some(Value::Array(names)) => names.iter().any(|name| *name == *self.client),
            _ => false,
        };
        if !is_for_client {
            return Err(TokenError::Audience);
        }
        if let Some(exp) = claims.get("exp") {
            let exp = exp.as_f64().filter(|exp| *exp >= 0.0).ok_or(TokenError::Malformed)?;
            if now >= Timestamp::from_secs(exp as u64).plus(self.id.leeway) {
                return Err(TokenError::Expired);
            }
        }
        signing_key(issuer, &jws, iss).await?;
        for name in ABOUT_THE_RESPONSE {
            claims.remove(name);
        }
        Ok(claims)
    }
}

/// Claims of a signed userinfo response that describe the response, and not the user.
const ABOUT_THE_RESPONSE: [&str; 6] = ["iss", "aud", "exp", "iat", "nbf", "jti"];
/// Claims that every ID token has ("OpenID Connect Core" §2).
const ID_TOKEN_CLAIMS: [&str; 5] = ["iss", "sub", "aud", "exp", "iat"];
