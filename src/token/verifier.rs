//! What a route or a session asks: who does this token speak for?

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

/// The tokens that a route or a session takes: of which kind, of which issuers.
#[derive(Debug)]
pub struct Verifier {
    kind: TokenUse,
    signed_answers: bool,
    judges: Box<[Arc<IssuerVerifier>]>,
}

impl Verifier {
    /// Takes tokens of `kind`. With several judges a signed token's `iss` says
    /// which one it goes to; a reference token goes to each in turn, until one
    /// knows it.
    pub fn new(kind: TokenUse, judges: impl Into<Box<[Arc<IssuerVerifier>]>>) -> Self {
        Self { kind, signed_answers: false, judges: judges.into() }
    }

    /// Asks for a signed answer about reference tokens, of the kind that each
    /// issuer's settings name: services get it in place of the token, in
    /// [`Principal::signed`]. An issuer that answers unsigned is not believed.
    #[must_use]
    pub fn with_signed_answers(self) -> Self {
        Self { signed_answers: true, ..self }
    }

    /// The judges, in the order of the configuration.
    pub fn issuer_verifiers(&self) -> &[Arc<IssuerVerifier>] {
        &self.judges
    }

    /// Ends a token here: it was given back, or its session is over. Every cache forgets it at once.
    pub fn revoke(&self, token: &str) {
        for judge in &self.judges {
            judge.revoke(token);
        }
    }

    /// Says that the gateway itself has received a token at that time from its issuer: it is younger than what was
    /// revoked before, whatever it says of itself. Whether that can matter.
    pub(crate) fn received(&self, token: &str, at: Timestamp) -> bool {
        self.judges.first().is_some_and(|judge| judge.received(token, at))
    }

    /// Who a bearer token speaks for at `now`.
    ///
    /// What is known completes without waiting. `max_staleness` bounds how old
    /// an issuer's answer may be; `None` leaves the issuer's own bound, zero
    /// asks every time.
    ///
    /// # Errors
    ///
    /// The rule that the token breaks. One that is bound to a key or a
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

    /// Who a token speaks for once it is proved that whoever presents it may: it may be bound.
    ///
    /// # Errors
    ///
    /// As [`Verifier::verify`], but for what the token is bound to.
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
        if let Some(verdict) = self.find(token, now, max_staleness) {
            return verdict;
        }
        // Rare, and large: kept out of the future that every request carries.
        Box::pin(self.verify_uncached(token, now, max_staleness)).await
    }

    /// Whoever a bearer token is known to speak for: a look into memory, without a look at the token's form.
    /// What is not known may be known to [`Verifier::verify`].
    pub fn cached(
        &self,
        token: &[u8],
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Arc<Principal>> {
        let signed =
            |judge: &Arc<IssuerVerifier>| judge.find_signed(token, now, max_staleness)?.ok();
        let found = match self.kind {
            TokenUse::Introspection => None,
            TokenUse::Jwt | TokenUse::Bearer => self.judges.iter().find_map(signed),
        };
        let found = found.or_else(|| {
            let token = core::str::from_utf8(token).ok()?;
            self.find(token, now, max_staleness)?.ok()
        });
        found.filter(|principal| principal.confirmation.is_none())
    }

    /// A verdict that needs no waiting.
    fn find(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        if self.kind != TokenUse::Introspection && is_jwt_shaped(token) {
            let mut judges = self.judges.iter();
            return judges
                .find_map(|judge| judge.find_signed(token.as_bytes(), now, max_staleness));
        }
        match (self.kind, &*self.judges) {
            (TokenUse::Jwt, _) => Some(Err(TokenError::Malformed)),
            (_, [judge]) => judge.find_reference(token, self.signed_answers, now, max_staleness),
            (_, judges) => judges
                .iter()
                .filter_map(|judge| {
                    judge.find_reference(token, self.signed_answers, now, max_staleness)
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
            for judge in &self.judges {
                if let Some(verdict) = judge.ask_again(token, now, max_staleness).await {
                    return verdict;
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
                Some(judge) => return judge.verify_jwt(token, read?, now, max_staleness).await,
                None if self.kind == TokenUse::Jwt => {
                    return Err(read.err().unwrap_or(TokenError::Issuer));
                }
                None => {}
            }
        }
        let mut verdict = Err(TokenError::Inactive);
        for judge in &self.judges {
            let known = judge.find_reference(token, self.signed_answers, now, max_staleness);
            let one = match known {
                Some(known) => known,
                None => judge.verify_opaque(token, self.signed_answers, now, max_staleness).await,
            };
            match (one, &verdict) {
                (Ok(principal), _) => return Ok(principal),
                // Somebody who could not be asked might have known it; else the most telling reason stays.
                (Err(error @ TokenError::Unavailable { .. }), _)
                | (Err(error), Err(TokenError::Inactive)) => verdict = Err(error),
                (Err(_), _) => {}
            }
        }
        verdict
    }

    fn issuer_verifier_for(&self, issuer: &str) -> Option<&Arc<IssuerVerifier>> {
        self.judges.iter().find(|judge| *judge.issuer().settings().issuer == *issuer)
    }
}

/// Three parts; whether they are what they look like is for the judge.
fn is_jwt_shaped(token: &str) -> bool {
    memchr_iter(b'.', token.as_bytes()).count() == 2
}
