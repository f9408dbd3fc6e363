//! The gateway's own access token, for introspection endpoints that require one.

use core::fmt;
use core::sync::atomic::AtomicU64;

use tokio::sync::Mutex;

use crate::base::clock::Timestamp;
use crate::base::secret::Secret;

/// The state of introspection between calls.
#[derive(Default)]
pub(super) struct Introspector {
    /// The gateway's own access token, if the endpoint requires one.
    pub(super) own: Mutex<Option<IntrospectionToken>>,
    /// Requests for one that have failed: callers that waited for one of them share its failure.
    pub(super) failures: AtomicU64,
}

pub(super) struct IntrospectionToken {
    pub(super) token: Secret<String>,
    /// The time from which a new one is requested.
    pub(super) renew_at: Timestamp,
}

impl fmt::Debug for Introspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspector").finish_non_exhaustive()
    }
}
