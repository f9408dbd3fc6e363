//! The gateway's own access token, for introspection endpoints that require one.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64};

use tokio::sync::Mutex;

use crate::base::clock::Timestamp;
use crate::base::secret::Secret;

/// The state of introspection between calls.
#[derive(Default)]
pub(in crate::issuer) struct Introspector {
    /// The gateway's own access token, if the endpoint requires one.
    pub(in crate::issuer) own: Mutex<Option<IntrospectionToken>>,
    /// Requests for one that have failed: callers that waited for one of them share its failure.
    pub(in crate::issuer) failures: AtomicU64,
    /// Whether the endpoint, when it last responded, refused the gateway's client whatever the token.
    pub(in crate::issuer) refuses_client: AtomicBool,
}

pub(in crate::issuer) struct IntrospectionToken {
    pub(in crate::issuer) token: Secret<String>,
    /// The time from which a new one is requested.
    pub(in crate::issuer) renew_at: Timestamp,
}

impl fmt::Debug for Introspector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspector").finish_non_exhaustive()
    }
}
