//! The authorization server cannot be asked.

use core::time::Duration;

/// The authorization server cannot be asked, or not as we are. Never the
/// client's fault: it is answered with 503.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the authorization server cannot be asked")]
pub struct Unavailable {
    /// Seconds after which it is worth asking again, at least 1.
    pub retry_after: u32,
}

impl Unavailable {
    /// Worth asking again in a second.
    pub(crate) const RETRY_SOON: Self = Self { retry_after: 1 };

    /// Worth asking again after `wait`, rounded up.
    pub(crate) fn after(wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000);
        Self { retry_after: u32::try_from(seconds).unwrap_or(u32::MAX).max(1) }
    }
}
