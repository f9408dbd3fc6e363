//! What a service learns about the caller, as fields.

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use super::headers;
use crate::base::written::Written;
use crate::config::auth::IdentityHeader;
use crate::issuer::settings::fingerprint;
use crate::token::Principal;
use crate::upstream::Fields;

/// The identity headers of one way in.
#[derive(Debug, Default)]
pub(super) struct Identity {
    headers: Box<[IdentityHeader]>,
    /// The same for the same headers, before a reload and after.
    mark: [u8; 32],
}

impl Identity {
    /// These headers, in this order.
    pub(super) fn new(headers: &[IdentityHeader]) -> Self {
        let named: Vec<_> =
            headers.iter().map(|header| (header.name.as_str(), &header.claim)).collect();
        Self { headers: headers.into(), mark: fingerprint(&named) }
    }

    /// Says who `principal` is. An absent claim leaves no field: the client's own was taken away before.
    ///
    /// A token comes again and again, mostly to routes that say the same: that is written once and kept with its principal.
    pub(super) fn write<'a>(&'a self, fields: &mut Fields<'a>, principal: &'a Principal) {
        match principal.told(self.mark, || Written::new(self.of(principal).map(owned))) {
            Some(told) => fields.add_written(told),
            None => self.of(principal).for_each(|(name, value)| fields.add_owned(name, value)),
        }
    }

    fn of(&self, principal: &Principal) -> impl Iterator<Item = (&HeaderName, HeaderValue)> {
        self.headers.iter().filter_map(|IdentityHeader { name, claim }| {
            value_of(principal, claim).map(|value| (name, value))
        })
    }
}

fn owned((name, value): (&HeaderName, HeaderValue)) -> (HeaderName, HeaderValue) {
    (name.clone(), value)
}

fn value_of(principal: &Principal, claim: &str) -> Option<HeaderValue> {
    let text = |text: &str| headers::safe_value(text);
    match claim {
        // These three are named differently by different issuers; the principal knows what they mean.
        "sub" => principal.subject.as_deref().map(text),
        "client_id" => principal.client.as_deref().map(text),
        "scope" => {
            (!principal.scopes.is_empty()).then(|| headers::safe_words(principal.scopes.iter()))
        }
        claim => match principal.claim(claim)? {
            Value::Null => None,
            Value::String(value) => Some(text(value)),
            other => Some(text(&other.to_string())),
        },
    }
}
