//! Verification of one JWT (RFC 7519, RFC 8725, RFC 9068), from its text to
//! a [`Principal`].
//!
//! Cheap checks come first: a token that has expired, or is meant for another
//! audience, costs no cryptography and no call to its issuer.

use std::sync::Arc;

use super::claims::Claims;
use super::jws::{DEFAULT_MAX_TOKEN_SIZE, Jws};
use crate::base::clock::Timestamp;
use crate::base::strict_json;
use crate::issuer::{Issuer, Jwks, Key, Settings, Unavailable};
use crate::token::TokenError;
use crate::token::principal::{Principal, TokenFormat};
use crate::token::token_digests::TokenDigests;
use crate::token::validation::ValidationRules;

/// A parsed token whose `iss` can be read. Unverified.
#[expect(missing_debug_implementations, reason = "it holds a token")]
pub struct Unverified<'t> {
    token: &'t str,
    jws: Jws<'t>,
    claims: Claims,
}

impl<'t> Unverified<'t> {
    /// Parses `token` and reads its claims.
    ///
    /// # Errors
    ///
    /// [`TokenError::Malformed`], [`TokenError::Algorithm`], [`TokenError::Critical`]
    /// or [`TokenError::Type`] if no issuer could make it valid.
    pub fn read(token: &'t str) -> Result<Self, TokenError> {
        Self::read_within(token, DEFAULT_MAX_TOKEN_SIZE)
    }

    /// Reads a token of at most `max_size` bytes, as [`Unverified::read`] does.
    ///
    /// # Errors
    ///
    /// As [`Unverified::read`].
    pub(crate) fn read_within(token: &'t str, max_size: usize) -> Result<Self, TokenError> {
        let jws = Jws::parse_within(token, max_size)?;
        let claims = strict_json::parse_object(&jws.payload).map_err(|_| TokenError::Malformed)?;
        Ok(Self { token, jws, claims: Claims::read(claims)? })
    }

    /// Returns the token as if the claim `name` were absent, if it is `null`.
    pub(super) fn without_null(mut self, name: &str) -> Self {
        self.claims.remove_null(name);
        self
    }

    /// Returns the unverified `iss`.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.issuer.as_deref()
    }

    /// Whether one of `keys` verifies its signature; claims are not checked.
    pub(crate) fn is_signed_with(&self, keys: &Jwks) -> bool {
        self.jws.verify(keys, self.issuer()).is_ok()
    }

    /// Returns the principal, and the key that verified the token.
    ///
    /// Waits only if the token names an unknown key, or if no JWK set
    /// has been fetched yet. Caches nothing: see [`IssuerVerifier`](crate::token::IssuerVerifier) for tokens
    /// that are used repeatedly.
    ///
    /// # Errors
    ///
    /// The violated rule; [`TokenError::Unavailable`] if the
    /// issuer's JWK set cannot be fetched.
    pub async fn verify(
        self,
        issuer: &Issuer,
        rules: &ValidationRules,
        now: Timestamp,
    ) -> Result<(Principal, Arc<Key>), TokenError> {
        self.check(issuer.settings(), rules, now)?;
        let key = signing_key(issuer, &self.jws, self.issuer()).await?;
        let (name, names) = (Arc::clone(issuer.name()), TokenDigests::of_signed(self.token));
        Ok((self.claims.into_principal(TokenFormat::Signed, name, names, rules)?, key))
    }

    /// Returns the principal without verifying the signature: for explanations, never to grant access.
    ///
    /// # Errors
    ///
    /// The rule that it violates under any signature.
    pub(crate) fn unverified_principal(
        self,
        issuer: &Settings,
        rules: &ValidationRules,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        self.check(issuer, rules, now)?;
        let (name, names) = (Arc::clone(&issuer.name), TokenDigests::of_signed(self.token));
        self.claims.into_principal(TokenFormat::Signed, name, names, rules)
    }

    /// Checks the rules that need no key.
    fn check(
        &self,
        issuer: &Settings,
        rules: &ValidationRules,
        now: Timestamp,
    ) -> Result<(), TokenError> {
        if self.token.len() > rules.max_token_size {
            return Err(TokenError::TooLarge);
        }
        if !rules.token_types.iter().any(|accepted| **accepted == *self.jws.typ) {
            return Err(TokenError::Type);
        }
        if !rules.algorithms.contains(&self.jws.algorithm) {
            return Err(TokenError::Algorithm);
        }
        self.claims.check_signed(issuer, rules, &self.jws.typ, now)
    }
}

/// Returns the key that signed `jws`, which says `iss`; fetches the issuer's JWK set if it may have a new key.
///
/// A wrong signature may be the sign of a rotation as well: a token without `kid` cannot show that its key is new, and some
/// issuers replace a key under its `kid`.
///
/// # Errors
///
/// As [`Jws::verify`], and [`TokenError::Unavailable`] if the JWK set cannot be fetched.
pub(crate) async fn signing_key(
    issuer: &Issuer,
    jws: &Jws<'_>,
    iss: Option<&str>,
) -> Result<Arc<Key>, TokenError> {
    let kid = jws.kid.as_deref();
    let Some(keys) = issuer.keys() else {
        return jws.verify(&*issuer.keys_for(kid, jws.signature()).await?, iss);
    };
    let verified = jws.verify(&keys, iss);
    let newer = match verified {
        Err(TokenError::UnknownKey) if kid.is_none() || !keys.knows(kid) => {
            issuer.keys_for(kid, jws.signature()).await?
        }
        Err(TokenError::Signature) if kid.is_none() => {
            issuer.keys_for(None, jws.signature()).await?
        }
        // A key has that `kid`: unless the issuer publishes another set, its result is final.
        Err(TokenError::Signature) => match issuer.keys_for(None, jws.signature()).await {
            Ok(newer) => newer,
            Err(Unavailable { .. }) => return verified,
        },
        _ => return verified,
    };
    if Arc::ptr_eq(&newer, &keys) { verified } else { jws.verify(&newer, iss) }
}
