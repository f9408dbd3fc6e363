//! The verifier of a route or a session.

use core::time::Duration;
use std::sync::Arc;

use memchr::memchr_iter;
use serde_json::Value;

use super::TokenError;
use super::binding::confirmation::UnconfirmedPrincipal;
use super::issuer_verifier::IssuerVerifier;
use super::jwe::is_encrypted;
use super::jwt::unverified_claims::UnverifiedClaims;
use super::jwt::verify::Unverified;
use super::principal::{Principal, TokenFormat};
use super::validation::TokenUse;
use crate::base::clock::Timestamp;
use crate::issuer::Issuer;

/// The kinds of tokens and the issuers that a route or a session accepts.
#[derive(Debug)]
pub struct Verifier {
    kind: TokenUse,
    signed_answers: bool,
    issuers: Box<[Arc<IssuerVerifier>]>,
    /// All configured issuers, as far as that matters.
    configured: Box<[Arc<Issuer>]>,
}

impl Verifier {
    /// Returns a verifier for tokens of `kind`. With several issuers a signed token's `iss`
    /// selects one, or several of one name, which are tried in turn; an opaque token is introspected at each in turn, until one
    /// reports it as active.
    pub fn new(kind: TokenUse, issuers: impl Into<Box<[Arc<IssuerVerifier>]>>) -> Self {
        Self { kind, signed_answers: false, issuers: issuers.into(), configured: Box::default() }
    }

    /// Requests signed introspection responses in the format that each issuer's
    /// settings name: upstreams get one in place of the opaque token, in
    /// [`Principal::signed`]. Unsigned responses are refused.
    #[must_use]
    pub fn with_signed_responses(self) -> Self {
        Self { signed_answers: true, ..self }
    }

    /// Refuses signed tokens of other `configured` issuers, instead of introspecting them: their `iss` names their
    /// issuer, and no other issuer receives them or is trusted about them.
    #[must_use]
    pub fn among(self, configured: impl IntoIterator<Item = Arc<Issuer>>) -> Self {
        Self { configured: configured.into_iter().collect(), ..self }
    }

    /// Whether tokens are verified by their signature or by introspection, as each is.
    pub(crate) fn takes_both(&self) -> bool {
        self.kind == TokenUse::Bearer
    }

    /// Whether tokens may be introspected: those have the form that their issuer chose.
    pub(crate) fn introspects(&self) -> bool {
        self.kind != TokenUse::Jwt
    }

    /// Returns how a token of this form is verified, if an issuer knows it.
    pub(crate) fn format_of(&self, token: &str) -> TokenFormat {
        if self.reads(token) { TokenFormat::Signed } else { TokenFormat::Reference }
    }

    /// Returns the verifiers of the issuers, in the order of the configuration.
    pub fn issuer_verifiers(&self) -> &[Arc<IssuerVerifier>] {
        &self.issuers
    }

    /// Sets the namespace of a principal that was received, not verified, by the `iss` of its ID token.
    pub(crate) fn name_within(&self, principal: &mut Principal) {
        if let Some(verifier) = self.issuers.first() {
            let settings = verifier.issuer().settings();
            let iss = principal.claims.get("iss").and_then(Value::as_str);
            let iss = iss.filter(|iss| settings.is_named(iss));
            principal.namespace = verifier.rules().namespace(&principal.issuer, iss);
        }
    }

    /// Withdraws the token of a session that has ended; every cache of clients' tokens removes it at once.
    pub fn withdraw(&self, token: &str) {
        for issuer_verifier in &self.issuers {
            issuer_verifier.withdraw(token);
        }
    }

    /// Revokes a token that was withdrawn, also for other sessions: its issuer has revoked it.
    pub(crate) fn revoke_withdrawn(&self, token: &str) {
        for issuer_verifier in &self.issuers {
            issuer_verifier.revoke_withdrawn(token);
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
        if self.reads(token) {
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
            let sizes = self.issuers.iter().map(|issuer| issuer.rules().max_token_size);
            let max_size = sizes.max().unwrap_or_default();
            let read = || Unverified::read_within(token, max_size);
            let first = read();
            // A token of a named issuer is never introspected as an opaque one, be it malformed or too large.
            let claims = match &first {
                Err(_) if self.kind == TokenUse::Bearer || token.len() <= max_size => {
                    UnverifiedClaims::read(token)
                }
                _ => None,
            };
            let iss = match &first {
                Ok(read) => read.issuer(),
                Err(_) => claims.as_ref().and_then(UnverifiedClaims::issuer),
            };
            let is_named = |issuer: &&Arc<IssuerVerifier>| {
                iss.is_some_and(|iss| issuer.issuer().settings().is_named(iss))
            };
            let mut named: Vec<_> = self.issuers.iter().filter(is_named).collect();
            if let (Ok(first), [_, _, ..]) = (&first, &*named) {
                // Several issuers of one name, with keys of their own: first the one that has the key at hand.
                named.sort_by_cached_key(|issuer| !issuer.has_key_of(first));
            }
            let is_of_another = named.is_empty() && iss.is_some_and(|iss| self.is_of_another(iss));
            let mut first = Some(first);
            let mut refused = None;
            for issuer in named {
                let unverified = first.take().unwrap_or_else(read)?;
                match issuer.verify(token, unverified, now).await {
                    // The first whose key and rules accept it decides, also about its revocation.
                    Ok(principal) => {
                        let active = issuer.check_still_active(token, now, max_staleness).await;
                        return active.map(|()| principal);
                    }
                    Err(TokenError::Revoked) => return Err(TokenError::Revoked),
                    Err(error) => refused = Some(the_more_telling(refused, error)),
                }
            }
            if let Some(error) = refused {
                return Err(error);
            }
            if self.kind == TokenUse::Jwt || is_of_another {
                return Err(first.and_then(Result::err).unwrap_or(TokenError::Issuer));
            }
        } else if self.reads(token) {
            if let Some(result) = self.verify_encrypted(token, now, max_staleness).await {
                return result;
            }
            if self.kind == TokenUse::Jwt {
                return Err(TokenError::UnknownKey);
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
}

impl Verifier {
    /// Verifies an encrypted token with the first issuer that has its key; `None` if no issuer has.
    async fn verify_encrypted(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let mut refused = None;
        for issuer in &self.issuers {
            if let Some(found) = issuer.introspect_again(token, now, max_staleness).await {
                return Some(found);
            }
            match issuer.verify_encrypted(token, now).await {
                None => {}
                Some(Ok(principal)) => {
                    let active = issuer.check_still_active(token, now, max_staleness).await;
                    return Some(active.map(|()| principal));
                }
                Some(Err(TokenError::Revoked)) => return Some(Err(TokenError::Revoked)),
                Some(Err(error)) => refused = Some(the_more_telling(refused, error)),
            }
        }
        refused.map(Err)
    }

    /// Whether this `iss` is that of a configured issuer whose tokens are not accepted here.
    fn is_of_another(&self, iss: &str) -> bool {
        self.configured.iter().any(|issuer| issuer.settings().is_named(iss))
    }

    /// Whether the token is read here, rather than introspected: it has the form of a signed token, or of an
    /// encrypted one, and there are keys to open it.
    fn reads(&self, token: &str) -> bool {
        self.kind != TokenUse::Introspection
            && (is_jwt_shaped(token)
                || (is_encrypted(token)
                    && self.issuers.iter().any(|issuer| issuer.rules().decryption.is_some())))
    }
}

/// Returns which of two issuers' errors is reported: an issuer that is unavailable might have known the token;
/// else that of the issuer whose key it is.
fn the_more_telling(first: Option<TokenError>, second: TokenError) -> TokenError {
    let Some(first) = first else { return second };
    let rank = |error: TokenError| match error {
        TokenError::Unavailable { .. } => 0,
        TokenError::UnknownKey | TokenError::Algorithm => 2,
        _ => 1,
    };
    if rank(second) < rank(first) { second } else { first }
}

/// Whether the token has three parts; its issuer's verifier checks them.
fn is_jwt_shaped(token: &str) -> bool {
    memchr_iter(b'.', token.as_bytes()).count() == 2
}
