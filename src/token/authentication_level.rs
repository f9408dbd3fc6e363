//! The strength and the age of a user's authentication that a route demands (RFC 9470).

use core::time::Duration;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::principal::Principal;
use crate::base::clock::Timestamp;

/// The demands of a route on the login of its user; never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AuthenticationLevel {
    /// Values of `acr` of which the token must have one ("OpenID Connect Core" §2); none if any is good.
    pub acr: Box<[Arc<str>]>,
    /// The time since the login, by `auth_time`; `None` if any is good.
    pub max_age: Option<Duration>,
}

impl AuthenticationLevel {
    /// Whether the login that `principal`'s claims describe satisfies the level at `now`; `false` if they describe
    /// none.
    pub fn is_met_by(&self, principal: &Principal, now: Timestamp) -> bool {
        self.is_met_by_claims(&principal.claims, now)
    }

    /// Whether the login that these verified claims describe satisfies the level at `now`.
    pub(crate) fn is_met_by_claims(&self, claims: &Map<String, Value>, now: Timestamp) -> bool {
        let text = |claim| claims.get(claim).and_then(Value::as_str);
        let is_strong = self.acr.is_empty()
            || text("acr").is_some_and(|acr| self.acr.iter().any(|wanted| **wanted == *acr));
        let is_young = self.max_age.is_none_or(|max_age| {
            let login = claims.get("auth_time").and_then(Value::as_f64);
            let login = login.filter(|seconds| *seconds >= 0.0);
            let login = login.map(|seconds| Timestamp::from_secs(seconds as u64));
            // An `auth_time` in the future, such as milliseconds, is no evidence of when the login was.
            login.is_some_and(|login| {
                login <= now.plus(MAX_CLOCK_SKEW) && now.since(login) <= max_age
            })
        });
        is_strong && is_young
    }

    /// Returns the values of `acr`, separated by spaces, as in challenges and requests.
    pub fn acr_values(&self) -> String {
        self.acr.join(" ")
    }
}

/// How far the clock of an issuer may be ahead: the largest configurable leeway.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::scopes::Scopes;
    use crate::base::secret::Secret;
    use crate::token::received_tokens::received_principal;

    const NOON: Timestamp = Timestamp::from_secs(1_700_049_600);

    fn principal(claims: Value) -> Principal {
        let claims: Map<_, _> = claims.as_object().unwrap().clone();
        let (issuer, client) = ("main".into(), "web".into());
        let token = Secret::from("t");
        received_principal(&token, &issuer, &client, Scopes::default(), claims, NOON, NOON)
    }

    #[test]
    fn a_login_must_be_strong_and_young_enough() {
        let level = AuthenticationLevel {
            acr: ["gold".into(), "mfa".into()].into(),
            max_age: Some(Duration::from_secs(300)),
        };
        let meets = |claims| level.is_met_by(&principal(claims), NOON);
        let at = |ago: u64| NOON.as_secs() - ago;

        assert!(meets(json!({ "acr": "mfa", "auth_time": at(300) })));
        assert!(meets(json!({ "acr": "gold", "auth_time": at(0) as f64 })));
        assert!(meets(json!({ "acr": "gold", "auth_time": at(0) + 30 })), "its clock is ahead");
        for claims in [
            json!({ "acr": "silver", "auth_time": at(0) }),
            json!({ "acr": ["mfa"], "auth_time": at(0) }),
            json!({ "auth_time": at(0) }),
            json!({ "acr": "mfa", "auth_time": at(301) }),
            json!({ "acr": "mfa", "auth_time": at(0).to_string() }),
            json!({ "acr": "mfa", "auth_time": -1 }),
            json!({ "acr": "mfa", "auth_time": at(0) + 301 }),
            json!({ "acr": "mfa", "auth_time": at(0) * 1000 }),
            json!({ "acr": "mfa", "auth_time": 1e300 }),
            json!({ "acr": "mfa" }),
        ] {
            assert!(!meets(claims.clone()), "{claims}");
        }
    }
}
