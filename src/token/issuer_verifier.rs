//! One issuer's tokens held against one set of rules, with a memory.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::TokenError;
use super::jwt::jwt_cache::JwtCache;
use super::jwt::verify::Unverified;
use super::opaque::introspection::{IntrospectionVerifier, Purpose, question};
use super::principal::Principal;
use super::revocation::list::{RevocationList, RevocationListener};
use super::validation::ValidationRules;
use crate::base::clock::{Clock, Timestamp};
use crate::issuer::{AcceptedFormat, Issuer, Settings};
use crate::observe::metrics::{AuthMethod, CacheResult, Metrics, TokenCache, TokenCacheMetrics};

/// One issuer's tokens held against one set of rules.
///
/// Keep it on a [`Shelf`](crate::base::shelf::Shelf) by [`IssuerVerifier::key`]: as long
/// as issuer and rules are the same, its verdicts hold across reloads.
pub struct IssuerVerifier {
    issuer: Arc<Issuer>,
    rules: Arc<ValidationRules>,
    clock: Clock,
    verdicts: Option<Arc<JwtCache>>,
    answers: IntrospectionVerifier,
    revocations: RevocationList,
    jwt_metrics: Arc<TokenCacheMetrics>,
}

impl IssuerVerifier {
    /// A judge that has seen nothing yet. Questions to the issuer run on `control`.
    pub fn new(
        issuer: Arc<Issuer>,
        rules: ValidationRules,
        revocations: RevocationList,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
    ) -> Self {
        let rules = Arc::new(rules);
        let jwt_metrics = metrics.token_cache(TokenCache::Jwt);
        let most = rules.jwt_cache_max_entries;
        let verdicts = (most > 0).then(|| Arc::new(JwtCache::new(most, jwt_metrics.entries())));
        let answers = IntrospectionVerifier::new(
            Arc::clone(&issuer),
            Arc::clone(&rules),
            clock.clone(),
            revocations.clone(),
            metrics,
            control,
        );
        if let Some(verdicts) = &verdicts {
            let verdicts: Arc<dyn RevocationListener> = Arc::clone(verdicts) as _;
            revocations.subscribe(Arc::downgrade(&verdicts));
        }
        revocations.subscribe(Arc::downgrade(&answers.kept()));
        Self { issuer, rules, clock, verdicts, answers, revocations, jwt_metrics }
    }

    /// What two judges must share to be one: issuer, client and rules.
    pub fn key(issuer: &Settings, rules: &ValidationRules) -> [u8; 32] {
        crate::issuer::settings::fingerprint(&(issuer, rules))
    }

    /// Whose tokens it judges.
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// What it holds them against.
    pub fn rules(&self) -> &ValidationRules {
        &self.rules
    }

    /// Ends one token of this issuer: every cache forgets it at once.
    pub(crate) fn revoke(&self, token: &str) {
        let keys = self.issuer.keys();
        let signed = Unverified::read(token)
            .is_ok_and(|read| keys.is_some_and(|keys| read.is_signed_with(&keys)));
        self.revocations.revoke_token(self.issuer.name(), token, signed);
    }

    /// As [`Verifier::received`](super::Verifier::received).
    pub(crate) fn received(&self, token: &str, at: Timestamp) -> bool {
        self.revocations.receive(token, at)
    }

    /// A verdict on a signed token that needs no waiting.
    pub(crate) fn find_signed(
        &self,
        token: &[u8],
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let principal = self.verdicts.as_ref()?.find(token, now)?;
        if self.rules.revocation_check {
            // What is kept was a token once.
            let question = question(core::str::from_utf8(token).ok()?, Purpose::Revocation);
            if let Err(error) = self.answers.find(&question, now, max_staleness)? {
                return Some(Err(revoked_if_inactive(error)));
            }
        }
        self.jwt_metrics.looked_up(CacheResult::Hit);
        Some(Ok(principal))
    }

    /// A verdict on a reference token that needs no waiting; `signed` wants one that the issuer has signed.
    pub(crate) fn find_reference(
        &self,
        token: &str,
        signed: bool,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        self.answers.find(&question(token, self.meaning(signed)), now, max_staleness)
    }

    /// Who a signed token speaks for that was verified before, if its issuer still says so.
    pub(crate) async fn ask_again(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let principal = self.verdicts.as_ref()?.find(token.as_bytes(), now)?;
        self.jwt_metrics.looked_up(CacheResult::Hit);
        let active = self.check_still_active(token, now, max_staleness).await;
        Some(active.map(|()| principal))
    }

    /// Who a signed token speaks for.
    pub(crate) async fn verify_jwt(
        &self,
        token: &str,
        read: Unverified<'_>,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let principal = self.verify(token, read, now).await?;
        self.check_still_active(token, now, max_staleness).await?;
        Ok(principal)
    }

    /// Who a reference token speaks for, by asking its issuer; `signed` as in [`IssuerVerifier::find_reference`].
    pub(crate) async fn verify_opaque(
        &self,
        token: &str,
        signed: bool,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let started = self.clock.uptime();
        let question = question(token, self.meaning(signed));
        let verdict = self.answers.ask(token, question, now, max_staleness).await;
        let took = self.clock.uptime().saturating_sub(started);
        self.jwt_metrics.verified(AuthMethod::Introspection, false, took);
        verdict
    }

    /// What is asked about a reference token: its meaning, as this issuer signs it or in plain words.
    fn meaning(&self, signed: bool) -> Purpose {
        let accept = self.issuer.settings().introspection.signed_answer;
        Purpose::Meaning(if signed { accept.into() } else { AcceptedFormat::Json })
    }

    async fn verify(
        &self,
        token: &str,
        read: Unverified<'_>,
        now: Timestamp,
    ) -> Result<Arc<Principal>, TokenError> {
        let started = self.clock.uptime();
        let verified = read.verify(&self.issuer, &self.rules, now).await;
        let took = self.clock.uptime().saturating_sub(started);
        self.jwt_metrics.verified(AuthMethod::Jwt, false, took);
        self.jwt_metrics.looked_up(CacheResult::Miss);

        let (principal, key) = verified?;
        let principal = Arc::new(principal);
        if let Some(verdicts) = &self.verdicts {
            verdicts.keep(token, Arc::clone(&principal), key, now);
        }
        // After it is kept: a revocation either finds it there or is found here.
        if self.revocations.is_revoked(&principal) {
            if let Some(verdicts) = &self.verdicts {
                verdicts.drop_token(token);
            }
            return Err(TokenError::Revoked);
        }
        Ok(principal)
    }

    async fn check_still_active(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<(), TokenError> {
        if !self.rules.revocation_check {
            return Ok(());
        }
        let question = question(token, Purpose::Revocation);
        let verdict = match self.answers.find(&question, now, max_staleness) {
            Some(verdict) => verdict,
            None => self.answers.ask(token, question, now, max_staleness).await,
        };
        verdict.map(|_| ()).map_err(revoked_if_inactive)
    }
}

/// A signed token that is not active any more was revoked.
fn revoked_if_inactive(error: TokenError) -> TokenError {
    if error == TokenError::Inactive { TokenError::Revoked } else { error }
}

impl fmt::Debug for IssuerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}
