//! The gateway's own access token, for introspection endpoints that want one.

use core::fmt;

use tokio::sync::Mutex;

use crate::base::clock::Timestamp;
use crate::base::secret::Secret;

/// What introspection needs between calls.
#[derive(Default)]
pub(super) struct Introspector {
    /// The gateway's own access token, where the endpoint wants one.
    pub(super) own: Mutex<Option<OwnToken>>,
}

pub(super) struct OwnToken {
    pub(super) token: Secret<String>,
    /// From here on a new one is got before this one ends.
    pub(super) renew_at: Timestamp,
}

impl fmt::Debug for Introspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspector").finish_non_exhaustive()
    }
}
