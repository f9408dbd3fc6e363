//! By which clock a token is older than the revocation of its subject.
//!
//! A token says when it was issued by its issuer's clock, a revocation when it
//! was made by ours. An issuer whose clock is ahead issues tokens that seem
//! younger than a revocation which they do not survive. So what is seen of its
//! clock is remembered: a token that comes before the moment it claims to be
//! from says by how much, at the least, the clock that issued it is ahead.
//!
//! What the gateway itself has received from the issuer, it dates by its own
//! clock: then no other one counts, nor does it matter that a token has no `iat`.

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use crate::base::clock::Timestamp;
use crate::token::principal::Principal;

/// What is known of clocks and tokens.
pub(crate) struct TokenAges {
    /// By how much the clocks of issuers were ahead lately, and when that was seen.
    ahead: Mutex<HashMap<Arc<str>, (Duration, Timestamp)>>,
    /// When tokens were received, by the digest of the whole token.
    received: Cache<[u8; 32], Timestamp>,
}

/// Whether a revocation of its subject ends a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Coverage {
    /// The token is younger.
    No,
    /// It is older, or it cannot be told that it is not.
    Yes,
    /// It may be older by a clock that is ahead for all that is known: the mark is moved behind it, so that it
    /// stays so.
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

    /// Notes what `principal`'s token says of its issuer's clock.
    pub(crate) fn observe(&self, principal: &Principal, now: Timestamp) {
        let Some(issued) = principal.issued.filter(|issued| now < *issued) else { return };
        // It counts in whole seconds: what is left of one was cut off.
        let ahead = issued.since(now) + ONE_SECOND;
        if ahead > MAX_CLOCK_SKEW {
            return;
        }
        let mut known = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = known.entry(Arc::clone(&principal.issuer)).or_insert((ahead, now));
        if ahead >= kept.0 || now.since(kept.1) > OBSERVATION_RETENTION {
            *kept = (ahead, now);
        }
    }

    /// Notes that the gateway has received the token of this `digest` from its issuer itself.
    pub(crate) fn receive(&self, digest: [u8; 32], at: Timestamp) {
        self.received.insert(digest, at);
    }

    /// Whether `principal`'s token is ended by a revocation of its subject that was made `at` that time.
    pub(crate) fn covers(&self, principal: &Principal, at: Timestamp, now: Timestamp) -> Coverage {
        if self.received.get(&principal.digest).is_some_and(|received| at < received) {
            return Coverage::No;
        }
        // A moment that no clock could be at says as little as none.
        let dated = principal.issued.filter(|issued| issued.since(now) <= MAX_CLOCK_SKEW);
        let Some(issued) = dated else { return Coverage::Yes };
        let ahead = self.ahead(&principal.issuer);
        if issued < at.plus(ahead.unwrap_or_default()) {
            return Coverage::Yes;
        }
        if ahead.is_none() && now < issued && issued < at.plus(ASSUMED_CLOCK_SKEW) {
            return Coverage::IfMovedTo(issued.plus(ONE_SECOND));
        }
        Coverage::No
    }

    fn ahead(&self, issuer: &str) -> Option<Duration> {
        let known = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(issuer).map(|(ahead, _)| *ahead)
    }
}

impl fmt::Debug for TokenAges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dating").finish_non_exhaustive()
    }
}

const ONE_SECOND: Duration = Duration::from_secs(1);
/// By how much a clock of which nothing is known may be ahead.
const ASSUMED_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// By how much any clock may be: the largest leeway that can be configured.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
/// How long the largest difference counts before a smaller one takes its place.
const OBSERVATION_RETENTION: Duration = Duration::from_secs(60 * 60);
const MAX_RECEIVED_TOKENS: u64 = 100_000;
const RECEIVED_RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
