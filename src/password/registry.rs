//! The counts of failed logins, one for each authorization server; they outlive a reload.

use std::sync::Arc;

use super::throttle::{Counts, Failures, LoginThrottle};
use crate::base::clock::Clock;
use crate::base::weak_map::WeakMap;

/// Failed logins, by the identifier of the authorization server. One per process.
#[derive(Debug, Default)]
pub struct LoginThrottles(WeakMap<Arc<str>, Counts>);

impl LoginThrottles {
    /// Returns a login method for the authorization server `issuer` that allows `allowed` failures, counted together
    /// with those of its other login methods.
    pub(crate) fn throttle(
        &self,
        allowed: Failures,
        issuer: &Arc<str>,
        clock: &Clock,
    ) -> LoginThrottle {
        let counts = self.0.get_or_insert_with(Arc::clone(issuer), || Counts::new(clock.clone()));
        LoginThrottle::new(allowed, counts)
    }
}
