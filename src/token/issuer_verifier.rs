//! The verifier for one issuer and one set of rules, with its caches.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::TokenError;
use super::jwe::is_encrypted;
use super::jwt::jwt_cache::JwtCache;
use super::jwt::verify::Unverified;
use super::opaque::introspection_cache::IntrospectionPurpose;
use super::opaque::introspection_verifier::{IntrospectionVerifier, cache_key};
use super::principal::Principal;
use super::revocation::event::RevocationListener;
use super::revocation::list::RevocationList;
use super::token_digests::token_digest;
use super::validation::ValidationRules;
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::issuer::{AcceptedFormat, Issuer, Settings};
use crate::observe::metrics::{AuthLabel, CacheResult, Metrics, TokenCache, TokenCacheMetrics};

/// The verifier for one issuer and one set of rules.
///
/// Registered by [`IssuerVerifier::key`]: while issuer and rules stay the same, its
/// caches survive reloads.
pub struct IssuerVerifier {
    issuer: Arc<Issuer>,
    rules: Arc<ValidationRules>,
    clock: Clock,
    jwt_cache: Option<Arc<JwtCache>>,
    introspection: IntrospectionVerifier,
    revocations: RevocationList,
    jwt_metrics: Arc<TokenCacheMetrics>,
}

impl IssuerVerifier {
    /// Returns a verifier with empty caches. Calls to the issuer run on `control`.
    pub fn new(
        issuer: Arc<Issuer>,
        rules: ValidationRules,
        revocations: RevocationList,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
    ) -> Self {
        Self::succeeding(&[], issuer, rules, revocations, clock, metrics, control)
    }

    /// As [`IssuerVerifier::new`], after settings or rules have changed: has the introspection responses that one of
    /// `predecessors` has cached, if nothing has changed that decides about them.
    pub fn succeeding(
        predecessors: &[Arc<Self>],
        issuer: Arc<Issuer>,
        rules: ValidationRules,
        revocations: RevocationList,
        clock: Clock,
        metrics: &Metrics,
        control: Handle,
    ) -> Self {
        let rules = Arc::new(rules);
        let deciding = (issuer.settings().of_introspection(), rules.of_introspection());
        let predecessor = predecessors.iter().find(|other| {
            let settings = other.issuer.settings();
            settings.name == deciding.0.name
                && (settings.of_introspection(), other.rules.of_introspection()) == deciding
        });
        let cached = predecessor.map(|predecessor| predecessor.introspection.cache());
        let jwt_metrics = metrics.token_cache(TokenCache::Jwt);
        let max = rules.jwt_cache_max_entries;
        let jwt_cache = (max > 0).then(|| Arc::new(JwtCache::new(max, jwt_metrics.entries())));
        let holder = rules.holder;
        let introspection = IntrospectionVerifier::new(
            Arc::clone(&issuer),
            Arc::clone(&rules),
            clock.clone(),
            revocations.clone(),
            metrics,
            control,
            cached,
        );
        if let Some(jwt_cache) = &jwt_cache {
            let jwt_cache: Arc<dyn RevocationListener> = Arc::clone(jwt_cache) as _;
            revocations.subscribe(Arc::downgrade(&jwt_cache), holder);
        }
        Self { issuer, rules, clock, jwt_cache, introspection, revocations, jwt_metrics }
    }

    /// Returns the fingerprint of issuer, client and rules, under which verifiers are shared.
    pub fn key(issuer: &Settings, rules: &ValidationRules) -> [u8; 32] {
        crate::issuer::settings::fingerprint(&(issuer, rules))
    }

    /// Returns the issuer.
    pub fn issuer(&self) -> &Arc<Issuer> {
        &self.issuer
    }

    /// Returns the validation rules.
    pub fn rules(&self) -> &ValidationRules {
        &self.rules
    }

    /// Whether a key at hand verifies the token's signature; claims are not checked.
    pub(crate) fn has_key_of(&self, token: &Unverified<'_>) -> bool {
        self.issuer.keys().is_some_and(|keys| token.is_signed_with(&keys))
    }

    /// Withdraws the token of a session that has ended: every cache of clients' tokens removes it at once.
    pub(crate) fn withdraw(&self, token: &str) {
        self.each_form(token, |form, signed| self.revocations.withdraw_token(form, signed));
    }

    /// Revokes a token that was withdrawn, also for other sessions: its issuer has revoked it.
    pub(crate) fn revoke_withdrawn(&self, token: &str) {
        if self.revocations.is_withdrawn(token) {
            self.each_form(token, |form, signed| self.revocations.revoke_token(form, signed));
        }
    }

    /// Calls `act` with a token and with the one that it encrypts, which is the same encrypted again, and with whether
    /// its signature is that of a key at hand.
    fn each_form(&self, token: &str, act: impl Fn(&str, bool)) {
        let is_signed = |token: &str| {
            Unverified::read_within(token, self.rules.max_token_size)
                .is_ok_and(|read| self.has_key_of(&read))
        };
        if let Some(inner) = self.open(token) {
            act(inner.expose(), is_signed(inner.expose()));
        }
        act(token, is_signed(token));
    }

    /// Returns the signed token inside an encrypted one, unverified; `None` if there is none for this issuer's keys.
    pub(crate) fn open(&self, token: &str) -> Option<Secret<String>> {
        let ring = self.rules.decryption.as_ref().filter(|_| is_encrypted(token))?;
        ring.open(token).ok()
    }

    /// Records the receipt of a token: see [`Verifier::received`](super::Verifier::received).
    pub(crate) fn received(&self, token: &str, at: Timestamp) -> bool {
        let counts = self.revocations.receive(token, at);
        if counts {
            // Refused a moment ago, it may be younger than what had revoked it.
            self.introspection.forget_refusal(token);
        }
        counts
    }

    /// Returns a result for a signed token that needs no waiting.
    pub(crate) fn find_signed(
        &self,
        token: &[u8],
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let principal = self.jwt_cache.as_ref()?.find(token, now)?;
        if self.rules.revocation_check {
            // A cached token was well-formed.
            let key =
                cache_key(core::str::from_utf8(token).ok()?, IntrospectionPurpose::Revocation);
            if let Err(error) = self.introspection.find(&key, now, max_staleness)? {
                return Some(Err(revoked_if_inactive(error)));
            }
        }
        self.jwt_metrics.looked_up(CacheResult::Hit);
        Some(Ok(principal))
    }

    /// Returns a result for an opaque token that needs no waiting; `signed` requires a signed introspection response.
    pub(crate) fn find_reference(
        &self,
        token: &str,
        signed: bool,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        self.introspection.find(&cache_key(token, self.meaning(signed)), now, max_staleness)
    }

    /// Introspects a signed token that was verified before, and returns its principal if it is still active.
    pub(crate) async fn introspect_again(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let principal = self.jwt_cache.as_ref()?.find(token.as_bytes(), now)?;
        self.jwt_metrics.looked_up(CacheResult::Hit);
        let active = self.check_still_active(token, now, max_staleness).await;
        Some(active.map(|()| principal))
    }

    /// Opens an encrypted token, verifies the signed token inside as [`IssuerVerifier::verify`] does and returns its
    /// principal; `None` if it is not encrypted for this issuer's keys.
    pub(crate) async fn verify_encrypted(
        &self,
        token: &str,
        now: Timestamp,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let ring = self.rules.decryption.as_ref()?;
        if token.len() > self.rules.max_token_size {
            return Some(Err(TokenError::TooLarge));
        }
        let inner = match ring.open(token) {
            Ok(inner) => inner,
            Err(TokenError::UnknownKey | TokenError::Algorithm) => return None,
            Err(error) => return Some(Err(error)),
        };
        Some(match Unverified::read_within(inner.expose(), self.rules.max_token_size) {
            Ok(read) => self.verify(token, read, now).await,
            Err(error) => Err(error),
        })
    }

    /// Introspects an opaque token and returns its principal; `signed` as in [`IssuerVerifier::find_reference`].
    pub(crate) async fn verify_opaque(
        &self,
        token: &str,
        signed: bool,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let started = self.clock.uptime();
        let key = cache_key(token, self.meaning(signed));
        let verdict = self.introspection.introspect(token, key, now, max_staleness).await;
        let took = self.clock.uptime().saturating_sub(started);
        self.jwt_metrics.verified(AuthLabel::Introspection, false, took);
        verdict
    }

    /// The purpose of introspecting an opaque token: its meaning, in a signed or an unsigned response.
    fn meaning(&self, signed: bool) -> IntrospectionPurpose {
        let accept = self.issuer.settings().introspection.signed_answer;
        IntrospectionPurpose::Meaning(if signed { accept.into() } else { AcceptedFormat::Json })
    }

    /// Verifies a signed token and returns its principal; whether its issuer has revoked it is
    /// [another question](IssuerVerifier::check_still_active).
    pub(crate) async fn verify(
        &self,
        token: &str,
        read: Unverified<'_>,
        now: Timestamp,
    ) -> Result<Arc<Principal>, TokenError> {
        let started = self.clock.uptime();
        let verified = read.verify(&self.issuer, &self.rules, now).await;
        let took = self.clock.uptime().saturating_sub(started);
        self.jwt_metrics.verified(AuthLabel::Jwt, false, took);
        self.jwt_metrics.looked_up(CacheResult::Miss);

        let (principal, key) = verified?;
        // An encrypted token is identified by its outer form, as the client presents it.
        let digest = if is_encrypted(token) { token_digest(token) } else { principal.digest };
        let principal = Arc::new(Principal { digest, ..principal });
        if let Some(jwt_cache) = &self.jwt_cache {
            jwt_cache.keep(token, Arc::clone(&principal), key, now);
        }
        // After it is cached: a concurrent revocation either finds it there or is found here.
        if self.revocations.is_revoked(&principal, self.rules.holder) {
            if let Some(jwt_cache) = &self.jwt_cache {
                jwt_cache.drop_token(token);
            }
            return Err(TokenError::Revoked);
        }
        Ok(principal)
    }

    /// Introspects a token that is verified by its signature, where the rules want that.
    pub(crate) async fn check_still_active(
        &self,
        token: &str,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<(), TokenError> {
        if !self.rules.revocation_check {
            return Ok(());
        }
        let key = cache_key(token, IntrospectionPurpose::Revocation);
        let verdict = match self.introspection.find(&key, now, max_staleness) {
            Some(verdict) => verdict,
            None => self.introspection.introspect(token, key, now, max_staleness).await,
        };
        verdict.map(|_| ()).map_err(revoked_if_inactive)
    }
}

/// A signed token that is no longer active was revoked.
fn revoked_if_inactive(error: TokenError) -> TokenError {
    if error == TokenError::Inactive { TokenError::Revoked } else { error }
}

impl fmt::Debug for IssuerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerVerifier").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}
