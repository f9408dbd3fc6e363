//! The demands of a route on a login (RFC 9470), as they travel in the URL of the login and in its cookie.

use core::time::Duration;
use std::sync::Arc;

use super::deferred_forms::FormId;
use crate::base::clock::Timestamp;
use crate::token::Principal;
use crate::token::authentication_level::AuthenticationLevel;

/// The demands of a route that a login has to meet, and the form that waits for it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct StepUp {
    pub(crate) level: AuthenticationLevel,
    pub(crate) form: Option<FormId>,
}

impl StepUp {
    /// Whether a login that has just happened meets the demands. Clocks may differ: the route decides in the end.
    pub(crate) fn is_met_by(&self, principal: &Principal, now: Timestamp) -> bool {
        let max_age = self.level.max_age.map(|age| age + CLOCK_SKEW);
        let level = AuthenticationLevel { max_age, ..self.level.clone() };
        level.is_met_by(principal, now)
    }

    /// Whether a login that has happened at `since` counted as one that meets the demands, and the route has refused it all
    /// the same: by its clock it was too old at once.
    pub(crate) fn was_met_in_vain(&self, principal: &Principal, since: Timestamp) -> bool {
        self.is_met_by(principal, since) && !self.level.is_met_by(principal, since)
    }

    /// Returns the first claim that the demands need and `principal` lacks; `None` if it has all, with whatever values.
    pub(crate) fn lacking(&self, principal: &Principal) -> Option<&'static str> {
        let needed =
            [("acr", !self.level.acr.is_empty()), ("auth_time", self.level.max_age.is_some())];
        let lacks =
            |(name, is_needed): &(&str, bool)| *is_needed && !principal.claims.contains_key(*name);
        needed.into_iter().find(lacks).map(|(name, _)| name)
    }

    /// Encodes it for sealing.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let max_age = self.level.max_age.map_or(u64::MAX, |age| age.as_secs());
        let mut bytes = max_age.to_be_bytes().to_vec();
        bytes.push(u8::from(self.form.is_some()));
        bytes.extend_from_slice(&self.form.unwrap_or_default());
        bytes.extend_from_slice(self.level.acr_values().as_bytes());
        bytes
    }

    /// Decodes the output of [`StepUp::to_bytes`]; `None` for other bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (max_age, rest) = bytes.split_first_chunk()?;
        let (has_form, rest) = rest.split_first()?;
        let (form, acr) = rest.split_first_chunk()?;
        let max_age = u64::from_be_bytes(*max_age);
        let acr = core::str::from_utf8(acr).ok()?;
        let values = acr.split(' ').filter(|value| !value.is_empty());
        let level = AuthenticationLevel {
            acr: values.map(Arc::from).collect(),
            max_age: (max_age < u64::MAX).then(|| Duration::from_secs(max_age)),
        };
        let form = match has_form {
            0 => None,
            1 => Some(*form),
            _ => return None,
        };
        let read = Self { level, form };
        // Only the canonical encoding is accepted.
        (read.to_bytes() == bytes).then_some(read)
    }
}

/// The difference between the clocks of issuer and gateway that does not make a login look too old.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_encoded_login_requirement_decodes() {
        for (acr, max_age, form) in [
            (vec!["gold", "mfa"], None, None),
            (vec![], Some(0), Some([7; 16])),
            (vec!["urn:a"], Some(300), None),
        ] {
            let acr = acr.into_iter().map(Arc::from).collect();
            let level = AuthenticationLevel { acr, max_age: max_age.map(Duration::from_secs) };
            let step_up = StepUp { level, form };
            assert_eq!(StepUp::from_bytes(&step_up.to_bytes()), Some(step_up));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_rejected(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Some(step_up) = StepUp::from_bytes(&bytes) {
                prop_assert_eq!(step_up.to_bytes(), bytes);
            }
        }
    }
}
