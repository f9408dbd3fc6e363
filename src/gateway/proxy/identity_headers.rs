//! Identity headers: the caller's claims, as header fields for the upstream.

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

/// The identity headers of one authentication method.
#[derive(Debug, Default)]
pub(crate) struct IdentityHeaders {
    headers: Box<[IdentityHeader]>,
    /// Equal for equal headers, across reloads.
    fingerprint: [u8; 32],
}

impl IdentityHeaders {
    /// Creates the writer of `headers`, in this order.
    pub(crate) fn new(headers: &[IdentityHeader]) -> Self {
        let named: Vec<_> =
            headers.iter().map(|header| (header.name.as_str(), &header.claim)).collect();
        Self { headers: headers.into(), fingerprint: fingerprint(&named) }
    }

    /// Adds the fields for `principal`. An absent claim leaves no field: the client's own was stripped before.
    ///
    /// Most tokens are used repeatedly, on routes with the same headers: the fields are encoded once and kept with
    /// the principal.
    pub(crate) fn write<'a>(&'a self, fields: &mut ExtraHeaders<'a>, principal: &'a Principal) {
        match principal
            .identity_fields(self.fingerprint, || EncodedFields::new(self.of(principal).map(owned)))
        {
            Some(encoded) => fields.add_encoded(encoded),
            None => self.of(principal).for_each(|(name, value)| fields.add_owned(name, value)),
        }
    }

    fn of(&self, principal: &Principal) -> impl Iterator<Item = (&HeaderName, HeaderValue)> {
        self.headers.iter().filter_map(|IdentityHeader { name, claim }| {
            let text = Statement::about(principal, claim)?.text();
            // The text is visible ASCII here; if it were not, the field would be empty rather than altered.
            Some((name, HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))))
        })
    }
}

fn owned((name, value): (&HeaderName, HeaderValue)) -> (HeaderName, HeaderValue) {
    (name.clone(), value)
}

/// A claim about a principal for the upstream. Identity headers, header edits and identity tokens all take it from
/// [`Statement::about`], so that they agree.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Statement<'a> {
    Text(&'a str),
    Scopes(&'a Scopes),
    Json(&'a Value),
}

impl<'a> Statement<'a> {
    /// Returns the value of `claim` of `principal`; `None` if it has none.
    ///
    /// Subject, client and scopes are those that the gateway derived by the issuer's `client_claim` and
    /// `scope_claim`: a raw claim of that name that was not used is not forwarded, nor any part of it.
    pub(crate) fn about(principal: &'a Principal, claim: &str) -> Option<Self> {
        match claim {
            "sub" => principal.subject.as_deref().map(Self::Text),
            "client_id" => principal.client.as_deref().map(Self::Text),
            "scope" => Some(&*principal.scopes).filter(|s| !s.is_empty()).map(Self::Scopes),
            path => {
                let is_within = |name: &&str| {
                    path.strip_prefix(*name).is_some_and(|rest| rest.starts_with('.'))
                };
                let value = if DERIVED_CLAIMS.iter().any(is_within) {
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

    /// Encodes the claim for a header field: see [`headers::encode_field_value`].
    pub(crate) fn text(self) -> Cow<'a, str> {
        match self {
            Self::Text(text) => headers::encode_field_value(text),
            Self::Scopes(scopes) => headers::encode_list(scopes.iter()).into(),
            Self::Json(value) => {
                headers::encode_field_value(&value.to_string()).into_owned().into()
            }
        }
    }

    /// Returns the claim for a token.
    pub(crate) fn value(self) -> Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Scopes(scopes) => headers::encode_list(scopes.iter()).into(),
            Self::Json(value) => value.clone(),
        }
    }
}

/// The claims that every identity token has, derived from claims that issuers name differently.
pub(crate) const DERIVED_CLAIMS: [&str; 3] = ["sub", "client_id", "scope"];
