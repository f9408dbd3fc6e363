//! Decides whether a token is older than the revocation of its subject.
//!
//! A token has an `iat` by its issuer's clock, a revocation has a time by the
//! gateway's. An issuer whose clock is ahead issues tokens that seem younger
//! than a revocation which covers them. So clock skew is observed: a token that
//! arrives before its `iat` shows by how much, at the least, its issuer's clock
//! is ahead. Other instances and later processes are told
//! ([`ClockAhead`](super::event::RevocationTarget::ClockAhead)).
//!
//! Tokens that the gateway itself receives from the issuer are dated by the
//! gateway's clock: then neither skew nor a missing `iat` matters.

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;
use crate::token::principal::Principal;

/// Observed clock skew, and times of receipt.
pub(crate) struct TokenAges {
    /// The largest skew of issuers' clocks that are ahead, in seconds, and the time until which it counts.
    ahead: Mutex<HashMap<Arc<str>, (u64, Timestamp)>>,
    /// The time of receipt of tokens, by the digest of the whole token.
    received: Cache<[u8; 32], Timestamp>,
}

/// Whether a revocation of its subject covers a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Coverage {
    /// The token is younger.
    No,
    /// The token is older, or might be.
    Yes,
    /// The token may be older if its issuer's clock is ahead: the revocation's time is moved behind its `iat`, so
    /// that this stays decided.
    IfMovedTo(Timestamp),
}

impl TokenAges {
    pub(crate) fn new() -> Self {
        let received = Cache::builder()
            .max_capacity(MAX_RECEIVED_TOKENS)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(RECEIVED_RETENTION);
        Self { ahead: Mutex::default(), received: received.build() }
    }

    /// Returns by how many seconds `principal`'s token shows its issuer's clock to be ahead, if that is more than was known.
    pub(crate) fn observe(&self, principal: &Principal, now: Timestamp) -> Option<u64> {
        let issued = principal.issued.filter(|issued| now < *issued)?;
        // `iat` is in whole seconds: the fraction was cut off. Whole seconds, so that there are few observations.
        let ahead = (issued.since(now) + ONE_SECOND + ALMOST_A_SECOND).as_secs();
        let is_more = || self.ahead(&principal.issuer, now).is_none_or(|known| known < ahead);
        (ahead <= MAX_CLOCK_SKEW.as_secs() && is_more()).then_some(ahead)
    }

    /// Records until when the clock of `issuer` counts as `ahead` by this many seconds.
    pub(crate) fn record(&self, issuer: &Arc<str>, ahead: u64, until: Timestamp, now: Timestamp) {
        let ahead = ahead.min(MAX_CLOCK_SKEW.as_secs());
        let mut known = self.ahead.lock().ignore_poison();
        let kept = known.entry(Arc::clone(issuer)).or_insert((ahead, until));
        if kept.0 < ahead || kept.1 <= now {
            *kept = (ahead, until);
        } else if kept.0 == ahead {
            kept.1 = until.max(kept.1);
        }
    }

    /// Returns the issuers whose clocks are known to be ahead, with the number of seconds, for what is known for
    /// less long than `until`.
    pub(crate) fn known_for_less_than(&self, until: Timestamp) -> Vec<(Arc<str>, u64)> {
        let known = self.ahead.lock().ignore_poison();
        let shorter = known.iter().filter(|(_, (_, end))| *end < until);
        shorter.map(|(issuer, (ahead, _))| (Arc::clone(issuer), *ahead)).collect()
    }

    /// Records the time at which the gateway received the token of this `digest` from its issuer.
    pub(crate) fn receive(&self, digest: [u8; 32], at: Timestamp) {
        self.received.insert(digest, at);
    }

    /// Returns whether a revocation of its subject `at` that time covers `principal`'s token.
    pub(crate) fn covers(&self, principal: &Principal, at: Timestamp, now: Timestamp) -> Coverage {
        if self.received.get(&principal.digest).is_some_and(|received| at < received) {
            return Coverage::No;
        }
        // An `iat` that no clock could show counts as absent.
        let dated = principal.issued.filter(|issued| issued.since(now) <= MAX_CLOCK_SKEW);
        let Some(issued) = dated else { return Coverage::Yes };
        let ahead = self.ahead(&principal.issuer, now);
        if issued < at.plus_secs(ahead.unwrap_or_default()) {
            return Coverage::Yes;
        }
        if ahead.is_none() && now < issued && issued < at.plus(ASSUMED_CLOCK_SKEW) {
            return Coverage::IfMovedTo(issued.plus(ONE_SECOND));
        }
        Coverage::No
    }

    /// Returns by how many seconds the clock of `issuer` is ahead, if that is known.
    fn ahead(&self, issuer: &str, now: Timestamp) -> Option<u64> {
        let known = self.ahead.lock().ignore_poison();
        known.get(issuer).filter(|(_, until)| now < *until).map(|(ahead, _)| *ahead)
    }
}

impl fmt::Debug for TokenAges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenAges").finish_non_exhaustive()
    }
}

const ONE_SECOND: Duration = Duration::from_secs(1);
const ALMOST_A_SECOND: Duration = Duration::from_nanos(999_999_999);
/// The assumed skew of an unobserved clock.
const ASSUMED_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The maximum skew of any clock: the largest configurable leeway.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
const MAX_RECEIVED_TOKENS: u64 = 100_000;
const RECEIVED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
