//! Verdicts on signed tokens, kept as long as what made them holds.
//!
//! A verdict dies with the token's `exp`, with the signing key that made it
//! (a key that left its issuer's set is retired), and with a revocation. Only
//! good tokens are kept, so that a stream of bad ones evicts nothing.
//!
//! A lookup hashes the token with a fast keyed hash and compares it whole: a
//! third of what SHA-256 would cost, and exact.

use core::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use moka::Expiry;
use moka::sync::Cache;

use super::principal::Principal;
use super::revoked::{Forget, News};
use crate::base::clock::Timestamp;
use crate::issuer::Key;
use crate::observe::metrics::Gauge;

/// Verdicts by token.
pub(crate) struct Verdicts {
    kept: Cache<Token, Verdict, RandomState>,
    entries: Arc<Gauge>,
}

type Token = Box<str>;

#[derive(Clone)]
struct Verdict {
    principal: Arc<Principal>,
    key: Arc<Key>,
    lives: Duration,
}

impl Verdicts {
    /// Keeps about `most` verdicts, fewer if tokens are large. `entries` shows how many there are.
    pub(crate) fn new(most: u64, entries: Arc<Gauge>) -> Self {
        let counted = Arc::clone(&entries);
        let kept = Cache::builder()
            .max_capacity(most)
            .weigher(|token: &Token, verdict: &Verdict| {
                places(token.len() + verdict.principal.size())
            })
            .expire_after(AtExpiry)
            .eviction_listener(move |_, _, _| counted.dec())
            .build_with_hasher(RandomState::default());
        Self { kept, entries }
    }

    /// Who `token` speaks for, if that is known and still holds.
    pub(crate) fn find(&self, token: &str, now: Timestamp) -> Option<Arc<Principal>> {
        let verdict = self.kept.get(token)?;
        if now < verdict.principal.expires && !verdict.key.is_retired() {
            return Some(verdict.principal);
        }
        self.kept.invalidate(token);
        None
    }

    /// Keeps what was verified with `key`, until the token ends.
    pub(crate) fn keep(
        &self,
        token: &str,
        principal: Arc<Principal>,
        key: Arc<Key>,
        now: Timestamp,
    ) {
        let lives = principal.expires.since(now);
        if !lives.is_zero() {
            self.entries.inc();
            self.kept.insert(token.into(), Verdict { principal, key, lives });
        }
    }

    /// Forgets one token.
    pub(crate) fn drop_token(&self, token: &str) {
        self.kept.invalidate(token);
    }
}

impl Forget for Verdicts {
    fn forget(&self, news: &News, revoked: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.is_of_a_visit() {
            return 0;
        }
        let mut forgotten = 0;
        for (token, verdict) in &self.kept {
            if revoked(&verdict.principal) {
                self.kept.invalidate(&**token);
                forgotten += 1;
            }
        }
        forgotten
    }
}

impl fmt::Debug for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdicts").field("entries", &self.entries.value()).finish_non_exhaustive()
    }
}

/// Takes expired verdicts out, by the machine's clock: lookups do not depend on it.
struct AtExpiry;

impl Expiry<Token, Verdict> for AtExpiry {
    fn expire_after_create(&self, _: &Token, verdict: &Verdict, _: Instant) -> Option<Duration> {
        Some(verdict.lives)
    }

    fn expire_after_update(
        &self,
        _: &Token,
        verdict: &Verdict,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(verdict.lives)
    }
}

/// Places that something of this many bytes takes in a cache, so that what is
/// large cannot fill the memory although entries are counted.
pub(crate) fn places(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PLACE)).unwrap_or(u32::MAX).max(1)
}

/// What a usual token with its principal fits into, in bytes.
const PLACE: usize = 8 * 1024;
