//! Freshness of a fetched JWK set, and the retry interval for unknown keys.

use core::time::Duration;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue};

use crate::base::cache_control;

/// Returns the freshness lifetime of a response with `headers`: by `Cache-Control`, between
/// a minute and a day, else `default` (RFC 9111 §4.2.1).
pub(super) fn lifetime(headers: &HeaderMap, default: Duration) -> Duration {
    let forbids = |value: &HeaderValue| {
        let mut directives = value.to_str().unwrap_or_default().split(',').map(str::trim);
        directives.any(|directive| {
            FORBIDDING.iter().any(|forbidding| directive.eq_ignore_ascii_case(forbidding))
        })
    };
    let seconds = if headers.get_all(CACHE_CONTROL).iter().any(forbids) {
        Some(0)
    } else {
        cache_control::seconds(headers, "max-age")
    };
    let lifetime = seconds.map_or(default, |seconds| {
        Duration::from_secs(seconds.saturating_sub(cache_control::age(headers)))
    });
    lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME)
}

/// Returns when to fetch again what is fresh for `lifetime`: well before it ends.
pub(super) fn refresh_after(lifetime: Duration) -> Duration {
    lifetime * 4 / 5
}

/// The name of a token's key among others: its `kid`, or without one the token's signature. Tokens
/// without `kid` do not share an entry: an old one must not delay the key of a new one.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum UnknownKey<'t> {
    Named(&'t str),
    OfSignature(&'t [u8]),
}

impl<'t> UnknownKey<'t> {
    pub(super) fn new(kid: Option<&'t str>, signature: &'t [u8]) -> Self {
        kid.map_or(Self::OfSignature(signature), Self::Named)
    }
}

/// Limits fetches for keys that the issuer does not have. Each may cause another
/// fetch only after a time that doubles, so that a client which keeps sending
/// an old token does not cause constant fetching. Bounded: excess keys are dropped,
/// and the interval between fetches applies anyway.
#[derive(Debug, Default)]
pub(super) struct UnknownKeyLimiter {
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
    pub(super) fn may_fetch(&self, key: UnknownKey<'_>, now: Duration) -> bool {
        self.misses.get(&self.hasher.hash_one(key)).is_none_or(|misses| now >= misses.again_at)
    }

    /// Records a fetch whose JWK set lacks `key`.
    pub(super) fn record_miss(&mut self, key: UnknownKey<'_>, now: Duration, least: Duration) {
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

/// Directives that forbid any use without asking again.
const FORBIDDING: [&str; 2] = ["no-store", "no-cache"];
const MIN_LIFETIME: Duration = Duration::from_secs(60);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest time between fetches for one key.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(600);
const MAX_NAMES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Duration = Duration::from_secs(600);

    #[test]
    fn cache_control_is_respected_within_bounds() {
        let lifetime = |headers: &[(&str, &str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            super::lifetime(&headers, DEFAULT).as_secs()
        };

        assert_eq!(lifetime(&[]), 600);
        assert_eq!(lifetime(&[("cache-control", "public")]), 600);
        assert_eq!(lifetime(&[("cache-control", "public, max-age=3600")]), 3_600);
        assert_eq!(lifetime(&[("cache-control", "Max-Age=\"3600\"")]), 3_600);
        assert_eq!(lifetime(&[("cache-control", "max-age=3600"), ("age", "600")]), 3_000);
        assert_eq!(lifetime(&[("cache-control", "max-age=1")]), 60);
        assert_eq!(lifetime(&[("cache-control", "max-age=99999999")]), 86_400);
        assert_eq!(lifetime(&[("cache-control", "max-age=x")]), 60);
        assert_eq!(lifetime(&[("cache-control", "no-store")]), 60);
        assert_eq!(lifetime(&[("cache-control", "no-cache, max-age=3600")]), 60);
    }

    #[test]
    fn a_refresh_is_due_at_four_fifths_of_the_lifetime() {
        assert_eq!(refresh_after(DEFAULT), Duration::from_secs(480));
    }

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
            unknown.record_miss(UnknownKey::Named(&name.to_string()), Duration::ZERO, DEFAULT);
        }

        assert!(unknown.misses.len() <= MAX_NAMES);
    }
}
