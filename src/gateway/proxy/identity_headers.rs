//! What a service learns about the caller, as fields.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};
use serde_json::Value;

use crate::base::encoded_fields::EncodedFields;
use crate::base::scopes::Scopes;
use crate::config::auth::IdentityHeader;
use crate::gateway::request::headers;
use crate::issuer::settings::fingerprint;
use crate::token::Principal;
use crate::upstream::ExtraHeaders;

/// The identity headers of one way in.
#[derive(Debug, Default)]
pub(crate) struct IdentityHeaders {
    headers: Box<[IdentityHeader]>,
    /// The same for the same headers, before a reload and after.
    mark: [u8; 32],
}

impl IdentityHeaders {
    /// These headers, in this order.
    pub(crate) fn new(headers: &[IdentityHeader]) -> Self {
        let named: Vec<_> =
            headers.iter().map(|header| (header.name.as_str(), &header.claim)).collect();
        Self { headers: headers.into(), mark: fingerprint(&named) }
    }

    /// Says who `principal` is. An absent claim leaves no field: the client's own was taken away before.
    ///
    /// A token comes again and again, mostly to routes that say the same: that is written once and kept with its principal.
    pub(crate) fn write<'a>(&'a self, fields: &mut ExtraHeaders<'a>, principal: &'a Principal) {
        match principal
            .identity_fields(self.mark, || EncodedFields::new(self.of(principal).map(owned)))
        {
            Some(told) => fields.add_encoded(told),
            None => self.of(principal).for_each(|(name, value)| fields.add_owned(name, value)),
        }
    }

    fn of(&self, principal: &Principal) -> impl Iterator<Item = (&HeaderName, HeaderValue)> {
        self.headers.iter().filter_map(|IdentityHeader { name, claim }| {
            let text = Statement::about(principal, claim)?.text();
            // Whatever it says is plain now; were it not, the field would say nothing rather than something else.
            Some((name, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))))
        })
    }
}

fn owned((name, value): (&HeaderName, HeaderValue)) -> (HeaderName, HeaderValue) {
    (name.clone(), value)
}

/// What services are told about a principal, in whichever way: identity headers, header edits and identity tokens
/// all take it from [`Statement::about`], so that none of them says what another does not.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Statement<'a> {
    Text(&'a str),
    Scopes(&'a Scopes),
    Json(&'a Value),
}

impl<'a> Statement<'a> {
    /// What `claim` of `principal` says; `None` if it says nothing.
    ///
    /// Subject, client and scopes are what the gateway believes, by the issuer's `client_claim` and `scope_claim`: a
    /// raw claim of that name that was not believed is not passed on, nor what stands in it.
    pub(crate) fn about(principal: &'a Principal, claim: &str) -> Option<Self> {
        match claim {
            "sub" => principal.subject.as_deref().map(Self::Text),
            "client_id" => principal.client.as_deref().map(Self::Text),
            "scope" => Some(&*principal.scopes).filter(|s| !s.is_empty()).map(Self::Scopes),
            path => {
                let is_within = |name: &&str| {
                    path.strip_prefix(*name).is_some_and(|rest| rest.starts_with('.'))
                };
                let value = if BELIEVED.iter().any(is_within) {
                    principal.claims.get(path)?
                } else {
                    principal.claim(path)?
                };
                match value {
                    Value::Null => None,
                    Value::String(text) => Some(Self::Text(text)),
                    other => Some(Self::Json(other)),
                }
            }
        }
    }

    /// As it can stand in a field: see [`headers::encode_field_value`].
    pub(crate) fn text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => headers::encode_field_value(text),
            Self::Scopes(scopes) => headers::encode_list(scopes.iter()).into(),
            Self::Json(value) => {
                headers::encode_field_value(&value.to_string()).into_owned().into()
            }
        }
    }

    /// As a claim of a token.
    pub(crate) fn value(self) -> Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Scopes(scopes) => headers::encode_list(scopes.iter()).into(),
            Self::Json(value) => value.clone(),
        }
    }
}

/// What every identity token says, and what issuers call by different names.
pub(crate) const BELIEVED: [&str; 3] = ["sub", "client_id", "scope"];
