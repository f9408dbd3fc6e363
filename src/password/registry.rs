//! The counts of failed logins, one for each authorization server; they outlive a reload.

use std::sync::Arc;

use url::Url;

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
        let counts = self.0.get_or_insert_with(server(issuer), || Counts::new(clock.clone()));
        LoginThrottle::new(allowed, counts)
    }
}

/// Returns the identifier in one spelling: entries for `https://A.example` and `https://a.example/` are one server, at
/// which an address has one budget.
fn server(issuer: &str) -> Arc<str> {
    match Url::parse(issuer) {
        Ok(url) => url.as_str().trim_end_matches('/').into(),
        Err(_) => issuer.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_issuer_are_one_server() {
        for spelling in ["https://a.example", "https://a.example/", "https://A.example:443"] {
            assert_eq!(&*server(spelling), "https://a.example", "{spelling}");
        }
        assert_ne!(server("https://a.example/x"), server("https://a.example/y"));
        assert_eq!(&*server("not a URL"), "not a URL");
    }
}
