//! What is remembered of an issuer's answers: active tokens, and, kept apart, refused ones.

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use foldhash::fast::RandomState;
use moka::Expiry;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::introspection::{CacheKey, Purpose};
use crate::base::clock::Timestamp;
use crate::observe::metrics::Gauge;
use crate::token::TokenError;
use crate::token::jwt::jwt_cache::capacity;
use crate::token::principal::Principal;
use crate::token::revocation::list::{RevocationFeed, RevocationListener};

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
    /// When its issuer was asked.
    pub(crate) asked: Timestamp,
    pub(crate) fresh_until: Timestamp,
    /// How long it may serve while its issuer is away; at least as long as it is fresh.
    pub(crate) stale_until: Timestamp,
}

impl CachedResponse {
    pub(crate) fn is_fresh(&self, now: Timestamp) -> bool {
        now < self.fresh_until
    }

    pub(crate) fn may_serve_stale(&self, now: Timestamp) -> bool {
        now < self.stale_until
    }

    /// Whether it is young enough for a route that takes none older than `most`.
    pub(crate) fn is_within(&self, most: Option<Duration>, now: Timestamp) -> bool {
        is_within(self.asked, most, now)
    }
}

/// A token that is not active, or not good enough.
#[derive(Clone)]
pub(crate) struct InactiveTokens {
    pub(crate) error: TokenError,
    /// When its issuer was asked.
    pub(crate) asked: Timestamp,
    pub(crate) until: Timestamp,
    pub(crate) lives: Duration,
}

impl IntrospectionCache {
    pub(crate) fn new(most: u64, entries: Arc<Gauge>) -> Self {
        let size = |known: &CachedResponse| capacity(known.principal.size());
        let active = cache(most, size, Arc::clone(&entries));
        let refused = cache(most.min(MAX_INACTIVE), |_| 1, Arc::clone(&entries));
        Self { active, refused, entries }
    }

    pub(crate) fn active(&self, question: &CacheKey) -> Option<CachedResponse> {
        self.active.get(question).map(|remembered| remembered.what)
    }

    /// Why a token was refused, if that is known and was asked no longer than `most` ago.
    pub(crate) fn inactive(
        &self,
        question: &CacheKey,
        now: Timestamp,
        most: Option<Duration>,
    ) -> Option<TokenError> {
        let refused = self.refused.get(question)?.what;
        (now < refused.until && is_within(refused.asked, most, now)).then_some(refused.error)
    }

    pub(crate) fn keep(&self, question: CacheKey, known: CachedResponse, now: Timestamp) {
        self.refused.invalidate(&question);
        let lives = known.stale_until.since(now);
        if lives.is_zero() {
            self.active.invalidate(&question);
        } else {
            self.entries.inc();
            self.active.insert(question, CacheEntry { what: known, lives });
        }
    }

    pub(crate) fn refuse(&self, question: CacheKey, refused: InactiveTokens) {
        if !refused.lives.is_zero() {
            self.entries.inc();
            let lives = refused.lives;
            self.refused.insert(question, CacheEntry { what: refused, lives });
        }
    }

    /// Forgets whatever is known about the token of this digest.
    pub(crate) fn drop_token(&self, digest: &[u8; 32]) {
        for purpose in Purpose::ALL {
            self.active.invalidate(&(*digest, purpose));
        }
    }
}

impl RevocationListener for IntrospectionCache {
    fn forget(&self, news: &RevocationFeed, revoked: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.is_of_a_visit() {
            return 0;
        }
        let mut forgotten = 0;
        for (question, remembered) in &self.active {
            if revoked(&remembered.what.principal) {
                self.active.invalidate(&*question);
                forgotten += 1;
            }
        }
        forgotten
    }
}

#[derive(Clone)]
struct CacheEntry<T> {
    what: T,
    lives: Duration,
}

fn cache<T: Clone + Send + Sync + 'static>(
    most: u64,
    size: impl Fn(&T) -> u32 + Send + Sync + 'static,
    entries: Arc<Gauge>,
) -> Cache<CacheKey, CacheEntry<T>, RandomState> {
    Cache::builder()
        .max_capacity(most)
        // Whoever comes last must be remembered: else each of their requests is a question, and they are
        // who is shut out first when the issuer is away.
        .eviction_policy(EvictionPolicy::lru())
        .weigher(move |_: &CacheKey, remembered: &CacheEntry<T>| size(&remembered.what))
        .expire_after(EntryExpiry)
        .eviction_listener(move |_, _, _| entries.dec())
        .build_with_hasher(RandomState::default())
}

/// Takes out what has ended, by the machine's clock: lookups do not depend on it.
struct EntryExpiry;

impl<T> Expiry<CacheKey, CacheEntry<T>> for EntryExpiry {
    fn expire_after_create(
        &self,
        _: &CacheKey,
        remembered: &CacheEntry<T>,
        _: Instant,
    ) -> Option<Duration> {
        Some(remembered.lives)
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        remembered: &CacheEntry<T>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(remembered.lives)
    }
}

fn is_within(asked: Timestamp, most: Option<Duration>, now: Timestamp) -> bool {
    most.is_none_or(|most| now.since(asked) < most)
}

/// Refused tokens remembered at once: each is a call saved for a moment, no more.
const MAX_INACTIVE: u64 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::AcceptedFormat;

    #[test]
    fn a_full_memory_admits_who_comes_last() {
        let kept = IntrospectionCache::new(50, Arc::default());
        let now = Timestamp::from_secs(1_700_000_000);
        let lives = Duration::from_secs(5);
        let question = |number: u8| ([number; 32], Purpose::Meaning(AcceptedFormat::Json));
        let refused = InactiveTokens {
            error: TokenError::Inactive,
            asked: now,
            until: now.plus(lives),
            lives,
        };
        for number in 0..50 {
            kept.refuse(question(number), refused.clone());
        }
        kept.refused.run_pending_tasks();
        for _ in 0..20 {
            assert!((0..50).all(|number| kept.refused.get(&question(number)).is_some()));
        }

        for number in 50..100 {
            kept.refuse(question(number), refused.clone());
            kept.refused.run_pending_tasks();
            assert!(kept.inactive(&question(number), now, None).is_some(), "{number}");
        }
    }

    #[test]
    fn a_stream_of_refused_tokens_does_not_grow_the_memory() {
        let entries = Arc::<Gauge>::default();
        let kept = IntrospectionCache::new(100, Arc::clone(&entries));
        let now = Timestamp::from_secs(1_700_000_000);
        let lives = Duration::from_secs(5);

        for number in 0..100_000_u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&number.to_be_bytes());
            let refused = InactiveTokens {
                error: TokenError::Inactive,
                asked: now,
                until: now.plus(lives),
                lives,
            };
            kept.refuse((digest, Purpose::Meaning(AcceptedFormat::Json)), refused);
        }
        kept.refused.run_pending_tasks();

        assert!(entries.value() <= 100, "{} are remembered", entries.value());
    }
}
