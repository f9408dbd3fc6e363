//! The cache of introspection responses: active tokens, and, apart from them, refused ones.

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::base::clock::Timestamp;
use crate::issuer::AcceptedFormat;
use crate::observe::metrics::Gauge;
use crate::token::TokenError;
use crate::token::jwt::jwt_cache::capacity;
use crate::token::principal::Principal;
use crate::token::revocation::event::{RevocationEvent, RevocationListener};

/// Active and refused tokens, by the digest of the whole token.
pub(crate) struct IntrospectionCache {
    active: Cache<CacheKey, CacheEntry<CachedResponse>, RandomState>,
    refused: Cache<CacheKey, CacheEntry<InactiveTokens>, RandomState>,
    entries: Arc<Gauge>,
}

/// An active token.
#[derive(Clone)]
pub(crate) struct CachedResponse {
    pub(crate) principal: Arc<Principal>,
    /// The time of introspection.
    pub(crate) requested: Timestamp,
    pub(crate) fresh_until: Timestamp,
    /// The end of the time it may serve while its issuer is unavailable; not before `fresh_until`.
    pub(crate) stale_until: Timestamp,
}

impl CachedResponse {
    pub(crate) fn is_fresh(&self, now: Timestamp) -> bool {
        now < self.fresh_until
    }

    pub(crate) fn may_serve_stale(&self, now: Timestamp) -> bool {
        now < self.stale_until
    }

    /// Whether it is no older than `max`.
    pub(crate) fn is_within(&self, max: Option<Duration>, now: Timestamp) -> bool {
        is_within(self.requested, max, now)
    }
}

/// A token that is not active, or violates a rule.
#[derive(Clone)]
pub(crate) struct InactiveTokens {
    pub(crate) error: TokenError,
    /// The time of introspection.
    pub(crate) requested: Timestamp,
    pub(crate) until: Timestamp,
    pub(crate) lifetime: Duration,
}

impl IntrospectionCache {
    pub(crate) fn new(max: u64, entries: Arc<Gauge>) -> Self {
        let size = |response: &CachedResponse| capacity(response.principal.size());
        let active = cache(max, size, Arc::clone(&entries));
        let refused = cache(max.min(MAX_INACTIVE), |_| 1, Arc::clone(&entries));
        Self { active, refused, entries }
    }

    pub(crate) fn active(&self, key: &CacheKey) -> Option<CachedResponse> {
        self.active.get(key).map(|entry| entry.value)
    }

    /// Returns why a token was refused, if that is cached and no older than `max`.
    pub(crate) fn inactive(
        &self,
        key: &CacheKey,
        now: Timestamp,
        max: Option<Duration>,
    ) -> Option<TokenError> {
        let refused = self.refused.get(key)?.value;
        (now < refused.until && is_within(refused.requested, max, now)).then_some(refused.error)
    }

    pub(crate) fn keep(&self, key: CacheKey, response: CachedResponse, now: Timestamp) {
        self.refused.invalidate(&key);
        let lifetime = response.stale_until.since(now);
        if lifetime.is_zero() {
            self.active.invalidate(&key);
        } else {
            self.entries.inc();
            self.active.insert(key, CacheEntry { value: response, lifetime });
        }
    }

    pub(crate) fn refuse(&self, key: CacheKey, refused: InactiveTokens) {
        if !refused.lifetime.is_zero() {
            self.entries.inc();
            let lifetime = refused.lifetime;
            self.refused.insert(key, CacheEntry { value: refused, lifetime });
        }
    }

    /// Removes the refusals of the token of this digest.
    pub(crate) fn forget_refusal(&self, digest: &[u8; 32]) {
        for purpose in IntrospectionPurpose::ALL {
            self.refused.invalidate(&(*digest, purpose));
        }
    }

    /// Removes the responses for the token of this digest.
    pub(crate) fn drop_token(&self, digest: &[u8; 32]) {
        for purpose in IntrospectionPurpose::ALL {
            self.active.invalidate(&(*digest, purpose));
        }
    }
}

impl RevocationListener for IntrospectionCache {
    fn forget(&self, news: &RevocationEvent, revoked: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.is_of_gateway_session() {
            return 0;
        }
        let mut forgotten = 0;
        for (key, entry) in &self.active {
            if revoked(&entry.value.principal) {
                self.active.invalidate(&*key);
                forgotten += 1;
            }
        }
        forgotten
    }
}

#[derive(Clone)]
struct CacheEntry<T> {
    value: T,
    lifetime: Duration,
}

fn cache<T: Clone + Send + Sync + 'static>(
    max: u64,
    size: impl Fn(&T) -> u32 + Send + Sync + 'static,
    entries: Arc<Gauge>,
) -> Cache<CacheKey, CacheEntry<T>, RandomState> {
    Cache::builder()
        .max_capacity(max)
        // The newest must be admitted: otherwise each of its requests makes a call, and its client is
        // the first to fail when the issuer is unavailable.
        .eviction_policy(EvictionPolicy::lru())
        .weigher(move |_: &CacheKey, entry: &CacheEntry<T>| size(&entry.value))
        .expire_after(EntryExpiry)
        .eviction_listener(move |_, _, _| entries.dec())
        .build_with_hasher(RandomState::default())
}

/// Removes expired entries by the machine's clock: lookups do not depend on it.
struct EntryExpiry;

impl<T> Expiry<CacheKey, CacheEntry<T>> for EntryExpiry {
    fn expire_after_create(
        &self,
        _: &CacheKey,
        entry: &CacheEntry<T>,
        _: Instant,
    ) -> Option<Duration> {
        Some(entry.lifetime)
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        entry: &CacheEntry<T>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.lifetime)
    }
}

fn is_within(requested: Timestamp, max: Option<Duration>, now: Timestamp) -> bool {
    max.is_none_or(|max| now.since(requested) < max)
}

/// Refused tokens cached at once: each saves a call for a moment.
const MAX_INACTIVE: u64 = 10_000;

/// A token, by the digest of the whole of it, and the purpose of introspection.
///
/// The key of cached results and of calls under way, all of one issuer and one set of rules. Both
/// grant, so that no part of the token may be left out.
pub(crate) type CacheKey = ([u8; 32], IntrospectionPurpose);

/// The purpose of introspecting a token.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum IntrospectionPurpose {
    /// To learn the principal of an opaque token.
    Meaning(AcceptedFormat),
    /// To learn whether a signed token, verified already, is still active.
    Revocation,
}

impl IntrospectionPurpose {
    /// All purposes for one token.
    pub(crate) const ALL: [Self; 4] = [
        Self::Meaning(AcceptedFormat::Json),
        Self::Meaning(AcceptedFormat::Jwt),
        Self::Meaning(AcceptedFormat::SignedResponse),
        Self::Revocation,
    ];

    pub(super) const fn accept(self) -> AcceptedFormat {
        match self {
            Self::Meaning(accept) => accept,
            Self::Revocation => AcceptedFormat::Json,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::AcceptedFormat;

    #[test]
    fn a_full_cache_admits_the_newest_token() {
        let cache = IntrospectionCache::new(50, Arc::default());
        let now = Timestamp::from_secs(1_700_000_000);
        let lifetime = Duration::from_secs(5);
        let key = |number: u8| ([number; 32], IntrospectionPurpose::Meaning(AcceptedFormat::Json));
        let refused = InactiveTokens {
            error: TokenError::Inactive,
            requested: now,
            until: now.plus(lifetime),
            lifetime,
        };
        for number in 0..50 {
            cache.refuse(key(number), refused.clone());
        }
        cache.refused.run_pending_tasks();
        for _ in 0..20 {
            assert!((0..50).all(|number| cache.refused.get(&key(number)).is_some()));
        }

        for number in 50..100 {
            cache.refuse(key(number), refused.clone());
            cache.refused.run_pending_tasks();
            assert!(cache.inactive(&key(number), now, None).is_some(), "{number}");
        }
    }

    #[test]
    fn a_stream_of_refused_tokens_uses_bounded_memory() {
        let entries = Arc::<Gauge>::default();
        let cache = IntrospectionCache::new(100, Arc::clone(&entries));
        let now = Timestamp::from_secs(1_700_000_000);
        let lifetime = Duration::from_secs(5);

        for number in 0..100_000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&number.to_be_bytes());
            let refused = InactiveTokens {
                error: TokenError::Inactive,
                requested: now,
                until: now.plus(lifetime),
                lifetime,
            };
            cache.refuse((digest, IntrospectionPurpose::Meaning(AcceptedFormat::Json)), refused);
        }
        cache.refused.run_pending_tasks();

        assert!(entries.value() <= 100, "{} are remembered", entries.value());
    }
}
