//! The verifier of a route or a session.

use core::time::Duration;
use std::sync::Arc;

use memchr::memchr_iter;

use super::TokenError;
use super::binding::confirmation::UnconfirmedPrincipal;
use super::issuer_verifier::IssuerVerifier;
use super::jwt::verify::{Unverified, unverified_issuer};
use super::principal::Principal;
use super::validation::TokenUse;
use crate::base::clock::Timestamp;

/// The kinds of tokens and the issuers that a route or a session accepts.
#[derive(Debug)]
pub struct Verifier {
    kind: TokenUse,
    signed_answers: bool,
    issuers: Box<[Arc<IssuerVerifier>]>,
}

impl Verifier {
    /// Returns a verifier for tokens of `kind`. With several issuers a signed token's `iss`
    /// selects one; an opaque token is introspected at each in turn, until one
    /// reports it as active.
    pub fn new(kind: TokenUse, issuers: impl Into<Box<[Arc<IssuerVerifier>]>>) -> Self {
        Self { kind, signed_answers: false, issuers: issuers.into() }
    }

    /// Requests signed introspection responses in the format that each issuer's
    /// settings name: upstreams get one in place of the opaque token, in
    /// [`Principal::signed`]. Unsigned responses are refused.
    #[must_use]
    pub fn with_signed_answers(self) -> Self {
        Self { signed_answers: true, ..self }
    }

    /// Returns the verifiers of the issuers, in the order of the configuration.
    pub fn issuer_verifiers(&self) -> &[Arc<IssuerVerifier>] {
        &self.issuers
    }

    /// Revokes a token here, at a logout or when its session has ended; every cache removes it at once.
    pub fn revoke(&self, token: &str) {
        for issuer_verifier in &self.issuers {
            issuer_verifier.revoke(token);
        }
    }

    /// Records that the gateway itself received a token from its issuer at that time: it is younger than earlier
    /// revocations, whatever its `iat`. Returns whether that can matter.
    pub(crate) fn received(&self, token: &str, at: Timestamp) -> bool {
        self.issuers.first().is_some_and(|issuer_verifier| issuer_verifier.received(token, at))
    }

    /// Returns the principal of a bearer token at `now`.
    ///
    /// A cached result completes without waiting. `max_staleness` bounds the age of
    /// a cached introspection response; `None` leaves the issuer's own bound, zero
    /// introspects every time.
    ///
    /// # Errors
    ///
    /// The violated rule. A token bound to a key or a
    /// certificate is [`TokenError::Unproven`]: see [`Verifier::verify_bound`].
    pub async fn verify(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let principal = self.find_or_verify(token, now, max_staleness).await?;
        match principal.confirmation {
            None => Ok(principal),
            Some(_) => Err(TokenError::Unproven),
        }
    }

    /// Returns the principal of a token that may be bound; the caller checks the proof of possession.
    ///
    /// # Errors
    ///
    /// As [`Verifier::verify`], except for the binding of the token.
    pub async fn verify_bound(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<UnconfirmedPrincipal, TokenError> {
        self.find_or_verify(token, now, max_staleness).await.map(UnconfirmedPrincipal::new)
    }

    async fn find_or_verify(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        if let Some(result) = self.find(token, now, max_staleness) {
            return result;
        }
        // Rare and large: kept out of the future that every request carries.
        Box::pin(self.verify_uncached(token, now, max_staleness)).await
    }

    /// Returns the principal of a bearer token from the caches, without parsing the token.
    /// [`Verifier::verify`] may know it although this returns `None`.
    pub fn cached(
        &self,
        token: &[u8],
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Arc<Principal>> {
        let signed = |issuer_verifier: &Arc<IssuerVerifier>| {
            issuer_verifier.find_signed(token, now, max_staleness)?.ok()
        };
        let found = match self.kind {
            TokenUse::Introspection => None,
            TokenUse::Jwt | TokenUse::Bearer => self.issuers.iter().find_map(signed),
        };
        let found = found.or_else(|| {
            let token = core::str::from_utf8(token).ok()?;
            self.find(token, now, max_staleness)?.ok()
        });
        found.filter(|principal| principal.confirmation.is_none())
    }

    /// Returns a result that needs no waiting.
    fn find(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        if self.kind != TokenUse::Introspection && is_jwt_shaped(token) {
            let mut issuers = self.issuers.iter();
            return issuers.find_map(|issuer_verifier| {
                issuer_verifier.find_signed(token.as_bytes(), now, max_staleness)
            });
        }
        match (self.kind, &*self.issuers) {
            (TokenUse::Jwt, _) => Some(Err(TokenError::Malformed)),
            (_, [issuer_verifier]) => {
                issuer_verifier.find_reference(token, self.signed_answers, now, max_staleness)
            }
            (_, issuers) => issuers
                .iter()
                .filter_map(|issuer_verifier| {
                    issuer_verifier.find_reference(token, self.signed_answers, now, max_staleness)
                })
                .find(Result::is_ok),
        }
    }

    async fn verify_uncached(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        if self.kind != TokenUse::Introspection && is_jwt_shaped(token) {
            for issuer_verifier in &self.issuers {
                if let Some(result) =
                    issuer_verifier.introspect_again(token, now, max_staleness).await
                {
                    return result;
                }
            }
            let read = Unverified::read(token);
            let named = match &read {
                Ok(read) => read.issuer().and_then(|issuer| self.issuer_verifier_for(issuer)),
                Err(_) => {
                    unverified_issuer(token).and_then(|issuer| self.issuer_verifier_for(&issuer))
                }
            };
            match named {
                Some(issuer_verifier) => {
                    return issuer_verifier.verify_jwt(token, read?, now, max_staleness).await;
                }
                None if self.kind == TokenUse::Jwt => {
                    return Err(read.err().unwrap_or(TokenError::Issuer));
                }
                None => {}
            }
        }
        let mut result = Err(TokenError::Inactive);
        for issuer_verifier in &self.issuers {
            let cached_result =
                issuer_verifier.find_reference(token, self.signed_answers, now, max_staleness);
            let found = match cached_result {
                Some(cached_result) => cached_result,
                None => {
                    issuer_verifier
                        .verify_opaque(token, self.signed_answers, now, max_staleness)
                        .await
                }
            };
            match (found, &result) {
                (Ok(principal), _) => return Ok(principal),
                // An unavailable issuer might have known it; else the most specific reason stays.
                (Err(error @ TokenError::Unavailable { .. }), _)
                | (Err(error), Err(TokenError::Inactive)) => result = Err(error),
                (Err(_), _) => {}
            }
        }
        result
    }

    fn issuer_verifier_for(&self, issuer: &str) -> Option<&Arc<IssuerVerifier>> {
        self.issuers
            .iter()
            .find(|issuer_verifier| *issuer_verifier.issuer().settings().issuer == *issuer)
    }
}

/// Whether the token has three parts; its issuer's verifier checks them.
fn is_jwt_shaped(token: &str) -> bool {
    memchr_iter(b'.', token.as_bytes()).count() == 2
}
