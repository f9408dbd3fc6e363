//! The retry interval for keys that a JWK set does not have.

use core::time::Duration;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// The name of a token's key among others: its `kid`, or without one the token's signature. Tokens
/// without `kid` do not share an entry: an old one must not delay the key of a new one.
#[derive(Clone, Copy, Debug, Hash)]
pub(in crate::issuer) enum UnknownKey<'t> {
    Named(&'t str),
    OfSignature(&'t [u8]),
}

impl<'t> UnknownKey<'t> {
    pub(in crate::issuer) fn new(kid: Option<&'t str>, signature: &'t [u8]) -> Self {
        kid.map_or(Self::OfSignature(signature), Self::Named)
    }
}

/// Limits fetches for keys that the issuer does not have. Each may cause another
/// fetch only after a time that doubles, so that a client which keeps sending
/// an old token does not cause constant fetching. Bounded: excess keys are dropped,
/// and the interval between fetches applies anyway.
#[derive(Debug, Default)]
pub(in crate::issuer) struct UnknownKeyLimiter {
    /// By a keyed hash: a `kid` may be as long as a token.
    misses: HashMap<u64, MissRecord>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct MissRecord {
    again_at: Duration,
    wait: Duration,
}

impl UnknownKeyLimiter {
    /// Whether a fetch for `key` at uptime `now` is allowed.
    pub(in crate::issuer) fn may_fetch(&self, key: UnknownKey<'_>, now: Duration) -> bool {
        self.misses.get(&self.hasher.hash_one(key)).is_none_or(|misses| now >= misses.again_at)
    }

    /// Records a fetch whose JWK set lacks `key`.
    pub(in crate::issuer) fn record_miss(
        &mut self,
        key: UnknownKey<'_>,
        now: Duration,
        least: Duration,
    ) {
        let hash = self.hasher.hash_one(key);
        let wait =
            self.misses.get(&hash).map_or(least, |misses| misses.wait * 2).min(MAX_RETRY_INTERVAL);
        if self.misses.len() >= MAX_NAMES && !self.misses.contains_key(&hash) {
            self.misses.retain(|_, misses| now < misses.again_at);
            if self.misses.len() >= MAX_NAMES {
                return;
            }
        }
        self.misses.insert(hash, MissRecord { again_at: now + wait, wait });
    }
}

/// The longest time between fetches for one key.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(600);
const MAX_NAMES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_for_an_unknown_kid_doubles() {
        let mut unknown = UnknownKeyLimiter::default();
        let least = Duration::from_secs(30);
        let mut now = Duration::ZERO;
        assert!(unknown.may_fetch(UnknownKey::Named("a"), now));

        for seconds in [30, 60, 120, 240, 480, 600, 600] {
            unknown.record_miss(UnknownKey::Named("a"), now, least);
            assert!(
                !unknown.may_fetch(UnknownKey::Named("a"), now + Duration::from_secs(seconds - 1))
            );
            now += Duration::from_secs(seconds);
            assert!(unknown.may_fetch(UnknownKey::Named("a"), now));
        }
        assert!(unknown.may_fetch(UnknownKey::Named("b"), Duration::ZERO));
        assert!(unknown.may_fetch(UnknownKey::OfSignature(b"a"), Duration::ZERO));
    }

    #[test]
    fn a_flood_of_kids_uses_bounded_memory() {
        let mut unknown = UnknownKeyLimiter::default();
        for name in 0..100_000 {
            unknown.record_miss(
                UnknownKey::Named(&name.to_string()),
                Duration::ZERO,
                Duration::from_secs(600),
            );
        }

        assert!(unknown.misses.len() <= MAX_NAMES);
    }
}
