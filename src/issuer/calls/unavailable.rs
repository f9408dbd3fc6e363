//! The error that an authorization server is unavailable.

use core::time::Duration;

/// The authorization server is unavailable, or refuses the gateway's client. Never the
/// user agent's fault: the response is 503.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the authorization server is unavailable")]
pub struct Unavailable {
    /// Seconds after which to try again, at least 1.
    pub retry_after: u32,
}

impl Unavailable {
    /// Try again in a second.
    pub(crate) const RETRY_SOON: Self = Self { retry_after: 1 };

    /// Try again after `wait`, rounded up.
    pub(crate) fn after(wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000);
        Self { retry_after: u32::try_from(seconds).unwrap_or(u32::MAX).max(1) }
    }
}
