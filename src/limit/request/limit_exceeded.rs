//! Refusals by limits: their reasons, and the responses that they ask for.

use core::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::base::random::random;
use crate::limit::limiter::{Balance, Limiter, seconds};

/// The reason why a request may not pass.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LimitExceeded {
    /// A limit is exceeded.
    Limited(Limited),
    /// A limit has no key for the request, and its `on_missing` is `reject`: 400.
    KeyMissing,
    /// The request has the key in several readings: a header field is there twice, or in another spelling of its name.
    KeyAmbiguous,
    /// The content costs more than a quota ever allows at once: 413, since no wait helps.
    TooLarge,
    /// The caller has no plan of a limit that has no default: 403.
    NoPlan,
}

/// A limit that is exceeded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limited {
    /// Seconds until a retry may succeed, rounded up, at least 1: the maximum of all limits that refused.
    pub retry_after: u64,
    /// 429 or 503.
    pub status: StatusCode,
    /// The index of the first limit that refused among its route's.
    pub(in crate::limit) limit_index: u16,
    /// The balance of that limit, if it has header fields: a smaller request may be admitted.
    pub(in crate::limit) announced: Option<Balance>,
}

impl Limited {
    /// Returns the value of `Retry-After` (RFC 9110 §10.2.3), unless the limit has no header fields.
    pub fn retry_after_value(&self) -> Option<HeaderValue> {
        self.announced.map(|_| self.retry_after.into())
    }
}

/// Returns the refusal of a limit with this balance, which is computed if responses report it.
pub(in crate::limit) fn refuse(
    limiter: &Limiter,
    limit_index: usize,
    wait: u64,
    balance: impl FnOnce() -> Balance,
) -> Limited {
    let settings = limiter.settings();
    Limited {
        retry_after: seconds(wait).max(1) + jitter(settings.retry_jitter),
        status: settings.status.into(),
        limit_index: limit_index as u16,
        announced: settings.headers.then(balance),
    }
}

/// Returns a random number of seconds, at most `longest`.
fn jitter(longest: Duration) -> u64 {
    match longest.as_secs() {
        0 => 0,
        longest => u64::from_ne_bytes(random()) % (longest + 1),
    }
}

/// Combines two refusals: the first in the file, with the longer wait.
pub(in crate::limit) fn first(one: Option<Limited>, other: Limited) -> Limited {
    let Some(one) = one else { return other };
    let retry_after = one.retry_after.max(other.retry_after);
    Limited { retry_after, ..if one.limit_index < other.limit_index { one } else { other } }
}
