//! Introspection of opaque tokens, with shared calls and cached responses.
//!
//! Fifty requests with one new token make one call. An active token is cached
//! until its `exp`, or for as long as the operator allows a revocation to go
//! unnoticed; an inactive one for a moment, in a separate cache, so that a
//! stream of bad tokens evicts no valid one. A failed call is never cached; an
//! unusable signed response is, for a second and for its token alone.

use super::introspection_cache::CacheKey;
use super::introspection_cache::IntrospectionPurpose;
use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;
use serde_json::{Map, Value};
use tokio::runtime::Handle;

use super::introspection_cache::{CachedResponse, InactiveTokens, IntrospectionCache};
use super::signed_response;
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::base::single_flight::{LeaderFailed, Role, SingleFlight};
use crate::issuer::{AcceptedFormat, IntrospectionResponse, Issuer, OnUnavailable};
use crate::observe::metrics::{CacheResult, Metrics, TokenCache, TokenCacheMetrics};
use crate::token::TokenError;
use crate::token::jwt::claims::Claims;
use crate::token::jwt::unverified_claims::UnverifiedClaims;
use crate::token::jwt::verify::Unverified;
use crate::token::principal::{Principal, TokenFormat};
use crate::token::revocation::event::RevocationListener;
use crate::token::revocation::list::RevocationList;
use crate::token::token_digests::{TokenDigests, token_digest};
use crate::token::validation::ValidationRules;

/// Introspects tokens at one issuer.
pub(crate) struct IntrospectionVerifier {
    inner: Arc<Inner>,
    flights: SingleFlight<CacheKey, Result<CachedResponse, TokenError>>,
}

/// The part of the verifier that calls under way need.
struct Inner {
    issuer: Arc<Issuer>,
    rules: Arc<ValidationRules>,
    clock: Clock,
    revocations: RevocationList,
    metrics: Arc<TokenCacheMetrics>,
    cache: Arc<IntrospectionCache>,
}

impl IntrospectionVerifier {
    /// Returns a verifier whose responses are cached in `cache`, or in one of its own.
    pub(crate) fn new(
        issuer: Arc<Issuer>,
        rules: Arc<ValidationRules>,
        clock: Clock,
        revocations: RevocationList,
        metrics: &Metrics,
        control: Handle,
        cache: Option<Arc<IntrospectionCache>>,
    ) -> Self {
        let metrics = metrics.token_cache(TokenCache::Introspection);
        let cache = cache.unwrap_or_else(|| {
            let max_entries = issuer.settings().introspection.max_entries;
            let cache = Arc::new(IntrospectionCache::new(max_entries, metrics.entries()));
            let listener: Arc<dyn RevocationListener> = Arc::clone(&cache) as _;
            revocations.subscribe(Arc::downgrade(&listener), rules.holder);
            cache
        });
        let inner = Inner { issuer, rules, clock, revocations, metrics, cache };
        Self { inner: Arc::new(inner), flights: SingleFlight::new(control) }
    }

    /// Returns the cache, for a successor.
    pub(crate) fn cache(&self) -> Arc<IntrospectionCache> {
        Arc::clone(&self.inner.cache)
    }

    /// Lets the next request introspect a token that was refused a moment ago.
    pub(crate) fn forget_refusal(&self, token: &str) {
        self.inner.cache.forget_refusal(&token_digest(token));
    }

    /// Returns the cached result for a token, if it is fresh and no older than `max_staleness`.
    pub(crate) fn find(
        &self,
        key: &CacheKey,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<Arc<Principal>, TokenError>> {
        let found = self.inner.cached(key, now, max_staleness)?;
        self.inner.metrics.looked_up(CacheResult::Hit);
        Some(found.map(|cached| cached.principal))
    }

    /// Returns the principal of `token` by introspection.
    ///
    /// Joins a call that is under way already, even if
    /// `max_staleness` is zero: its response is no older than one call.
    pub(crate) async fn introspect(
        &self,
        token: &str,
        key: CacheKey,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Result<Arc<Principal>, TokenError> {
        let inner = &self.inner;
        let call = || {
            let (inner, token) = (Arc::clone(inner), Secret::from(token));
            async move {
                // Another call may have ended since this caller looked.
                match inner.cached(&key, inner.clock.now(), max_staleness) {
                    Some(known) => known,
                    None => inner.introspect(&token, key).await,
                }
            }
        };
        let response = match self.flights.run(key, call).await {
            Ok((response, joined)) => {
                inner.metrics.looked_up(match joined {
                    Role::Leader => CacheResult::Miss,
                    Role::Shared => CacheResult::Shared,
                });
                response
            }
            Err(LeaderFailed) => Err(TokenError::Unavailable { retry_after: 1 }),
        };
        match response {
            Ok(cached) => Ok(cached.principal),
            Err(error @ TokenError::Unavailable { .. }) => match inner.cache.active(&key) {
                Some(cached)
                    if cached.may_serve_stale(now) && cached.is_within(max_staleness, now) =>
                {
                    inner.metrics.looked_up(CacheResult::Stale);
                    Ok(cached.principal)
                }
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }
}

impl Inner {
    fn cached(
        &self,
        key: &CacheKey,
        now: Timestamp,
        max_staleness: Option<Duration>,
    ) -> Option<Result<CachedResponse, TokenError>> {
        match self.cache.active(key) {
            Some(cached) if cached.is_fresh(now) && cached.is_within(max_staleness, now) => {
                Some(Ok(cached))
            }
            _ => self.cache.inactive(key, now, max_staleness).map(Err),
        }
    }

    async fn introspect(
        &self,
        token: &Secret<String>,
        key: CacheKey,
    ) -> Result<CachedResponse, TokenError> {
        let requested = self.clock.now();
        match self.call_issuer(token, key, requested).await {
            Ok(cached) => {
                self.cache.keep(key, cached.clone(), self.clock.now());
                if self.revocations.is_revoked(&cached.principal, self.rules.holder) {
                    return Err(self.refuse(key, requested, TokenError::Revoked));
                }
                Ok(cached)
            }
            Err(error @ TokenError::Unavailable { .. }) => Err(error),
            Err(error) => Err(self.refuse(key, requested, error)),
        }
    }

    /// Records for a moment that a token is refused; returns the reason.
    fn refuse(&self, key: CacheKey, requested: Timestamp, error: TokenError) -> TokenError {
        self.cache.drop_token(&key.0);
        let lifetime = self.issuer.settings().introspection.negative_cache;
        let until = self.clock.now().plus(lifetime);
        self.cache.refuse(key, InactiveTokens { error, requested, until, lifetime });
        error
    }

    async fn call_issuer(
        &self,
        token: &Secret<String>,
        key: CacheKey,
        requested: Timestamp,
    ) -> Result<CachedResponse, TokenError> {
        let purpose = key.1;
        let names = TokenDigests::of_reference(token.expose());
        let accept = purpose.accept();
        let (claims, signed) = match (self.issuer.introspect(token, accept).await?, accept) {
            (IntrospectionResponse::Inactive, _) => return Err(TokenError::Inactive),
            (IntrospectionResponse::Active(claims), AcceptedFormat::Json) => (claims, None),
            (IntrospectionResponse::Signed(text), AcceptedFormat::SignedResponse) => {
                let response =
                    signed_response::verify(&self.issuer, &self.rules, text.expose(), requested)
                        .await;
                let response =
                    response.map_err(|error| self.record_unusable(key, requested, error))?;
                (response, Some(self.authorization(&text)?))
            }
            (IntrospectionResponse::Signed(text), AcceptedFormat::Jwt) => {
                let principal = self.phantom(text, names, requested).await;
                let principal =
                    principal.map_err(|error| self.record_unusable(key, requested, error))?;
                return Ok(self.cached_response(token, principal, requested));
            }
            (IntrospectionResponse::Active(_), _)
            | (IntrospectionResponse::Signed(_), AcceptedFormat::Json) => {
                tracing::error!(issuer = %self.issuer.name(), "The introspection response is not a signed token; the token was refused.");
                let error = TokenError::Unavailable { retry_after: 1 };
                return Err(self.record_unusable(key, requested, error));
            }
        };
        let principal = self.principal(claims, names, purpose, requested);
        let principal = principal.inspect_err(|error| {
            if *error == TokenError::Malformed {
                // The server is at fault, and the client gets no details.
                tracing::warn!(issuer = %self.issuer.name(), "A claim of an introspection response, such as `exp`, `aud` or `sub`, has another type than RFC 7662 says; the token was not accepted.");
            }
        })?;
        Ok(self.cached_response(token, Principal { signed, ..principal }, requested))
    }

    /// Records for the token of `key` that its signed response was unusable, unless a cached response
    /// may be served stale: otherwise each request with it would make a call.
    fn record_unusable(
        &self,
        key: CacheKey,
        requested: Timestamp,
        error: TokenError,
    ) -> TokenError {
        let now = self.clock.now();
        let may_serve = self.cache.active(&key).is_some_and(|cached| cached.may_serve_stale(now));
        if matches!(error, TokenError::Unavailable { .. }) && !may_serve {
            let refused = InactiveTokens {
                error,
                requested,
                until: now.plus(UNUSABLE_RETENTION),
                lifetime: UNUSABLE_RETENTION,
            };
            self.cache.refuse(key, refused);
        }
        error
    }

    fn principal(
        &self,
        claims: Map<String, Value>,
        names: TokenDigests,
        purpose: IntrospectionPurpose,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let settings = self.issuer.settings();
        let into_principal = |claims: Claims| {
            let name = Arc::clone(self.issuer.name());
            claims.into_principal(TokenFormat::Reference, name, names, &self.rules)
        };
        if purpose == IntrospectionPurpose::Revocation {
            // A token verified by its signature has passed all checks: a claim that cannot be read counts as absent.
            let read = Claims::read(claims).and_then(into_principal);
            return read.or_else(|_| Claims::read(Map::new()).and_then(into_principal));
        }
        let claims = Claims::read(claims)?;
        let lenient = settings.introspection.accept_without_audience;
        claims.check_answer(settings, &self.rules, lenient, now)?;
        into_principal(claims)
    }

    /// Returns the signed token that replaces the opaque token for upstreams:
    /// verified like any other, and cached.
    async fn phantom(
        &self,
        text: Secret<String>,
        names: TokenDigests,
        now: Timestamp,
    ) -> Result<Principal, TokenError> {
        let verified = match Unverified::read_within(text.expose(), self.rules.max_token_size) {
            Ok(token) => token.verify(&self.issuer, &self.rules, now).await,
            Err(error) => Err(error),
        };
        let (principal, _) =
            verified.map_err(|error| signed_response::attribute_error(&self.issuer, error))?;
        let signed = Some(self.authorization(&text)?);
        Ok(Principal {
            form: TokenFormat::Reference,
            digest: names.whole,
            unsigned_digest: names.unsigned,
            signed,
            ..principal
        })
    }

    /// The `Authorization` field with a signed token for upstreams.
    fn authorization(&self, token: &Secret<String>) -> Result<HeaderValue, TokenError> {
        let field = HeaderValue::try_from(format!("Bearer {}", token.expose()));
        let mut field = field
            .map_err(|_| signed_response::attribute_error(&self.issuer, TokenError::Malformed))?;
        field.set_sensitive(true);
        Ok(field)
    }

    fn cached_response(
        &self,
        token: &Secret<String>,
        principal: Principal,
        requested: Timestamp,
    ) -> CachedResponse {
        // A bound token stays bound, although its server does not repeat `cnf` in the response.
        let claimed = || UnverifiedClaims::read(token.expose())?.confirmation();
        let confirmation = principal.confirmation.clone().or_else(claimed);
        let principal = Principal { confirmation, ..principal };
        let settings = self.issuer.settings();
        let ends = principal.accepted_until(requested, self.rules.leeway);
        let fresh_until = requested.plus(settings.introspection.cache).min(ends);
        let stale_until = match settings.on_unavailable {
            OnUnavailable::Deny => fresh_until,
            OnUnavailable::Stale(longer) => fresh_until.plus(longer).min(ends),
        };
        CachedResponse { principal: Arc::new(principal), requested, fresh_until, stale_until }
    }
}

/// The time for which a token with an unusable signed response is not introspected again.
const UNUSABLE_RETENTION: Duration = Duration::from_secs(1);

/// Returns the cache key of a token for a purpose.
pub(crate) fn cache_key(token: &str, purpose: IntrospectionPurpose) -> CacheKey {
    (token_digest(token), purpose)
}

impl fmt::Debug for IntrospectionVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntrospectionVerifier")
            .field("issuer", self.inner.issuer.name())
            .finish_non_exhaustive()
    }
}
