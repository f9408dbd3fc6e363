//! Who was verified, and what was verified about them.

use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use serde_json::{Map, Value};

use crate::base::clock::Timestamp;
use crate::base::encoded_fields::EncodedFields;
use crate::base::scopes::Scopes;

/// Who a request speaks for. One value feeds limits, identity headers, metrics
/// and the log, so that they cannot disagree about `sub`.
///
/// What every request looks at stands together at the front, because it has mostly left the
/// processor's caches since the last one.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Principal {
    /// When the token ends; [`Timestamp::MAX`] if its issuer does not say.
    pub expires: Timestamp,
    /// The key or certificate that whoever presents the token must prove to have.
    pub confirmation: Option<Confirmation>,
    /// What services are told about them: see [`Principal::identity_fields`].
    pub told: IdentityFields,
    /// How the token was verified.
    pub form: TokenFormat,
    /// The configured name of the issuer, as metrics and the log know it.
    pub issuer: Arc<str>,
    /// `sub`: the person or client that the token speaks for.
    pub subject: Option<Arc<str>>,
    /// The client that the token was issued to, from the configured claim.
    pub client: Option<Arc<str>>,
    /// `sid`: the session at the issuer (OpenID Connect Back-Channel Logout §2.1).
    pub session: Option<Arc<str>>,
    /// `jti`: the token's own name.
    pub id: Option<Arc<str>>,
    /// What the token may be used for.
    pub scopes: Arc<Scopes>,
    /// `aud`, one or many.
    pub audience: Box<[Box<str>]>,
    /// `iat`: when it was issued, if it says so.
    pub issued: Option<Timestamp>,
    /// Exactly this token, without keeping it: see [`token_digest`](super::token_digest).
    pub digest: [u8; 32],
    /// This token with whatever signature, for refusing alone: see [`TokenDigests`](super::TokenNames).
    pub unsigned_digest: Option<[u8; 32]>,
    /// The `Authorization` that services get in place of the reference token that was presented: a signed one.
    pub signed: Option<HeaderValue>,
    /// Every claim, as it was verified.
    pub claims: Map<String, Value>,
}

/// Fields that say who somebody is, written at the first request and kept for the next.
#[derive(Clone, Debug, Default)]
pub struct IdentityFields(OnceLock<([u8; 32], EncodedFields)>);

impl Principal {
    /// The claim at `path`, member names joined by dots: `realm_access.roles`.
    ///
    /// A name that itself contains dots, such as `https://example.com/roles`,
    /// is found too; the longest name wins.
    pub fn claim(&self, path: &str) -> Option<&Value> {
        claim_at(&self.claims, path)
    }

    /// The fields that say who this is, of the kind with this `mark`, a digest of all that decides
    /// about them: made by `write` the first time.
    ///
    /// One kind is kept, the first that was asked for; `None` for any other.
    pub fn identity_fields(
        &self,
        mark: [u8; 32],
        write: impl FnOnce() -> EncodedFields,
    ) -> Option<&EncodedFields> {
        let (kept, written) = self.told.0.get_or_init(|| (mark, write()));
        (*kept == mark).then_some(written)
    }

    /// About how many bytes it takes in memory.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + members(&self.claims) + self.signed.as_ref().map_or(0, HeaderValue::len)
    }

    /// Whether the token names `audience` in `aud`, exactly.
    pub fn has_audience(&self, audience: &str) -> bool {
        self.audience.iter().any(|named| **named == *audience)
    }
}

/// How a token was verified.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TokenFormat {
    /// By its signature.
    Signed,
    /// By asking its issuer.
    Reference,
}

/// What a token is bound to (RFC 7800).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Confirmation {
    /// A key's thumbprint, `jkt`, proved by `DPoP` (RFC 9449 §6.1).
    Key([u8; 32]),
    /// A certificate's SHA-256, `x5t#S256`, proved by mutual TLS (RFC 8705 §3.1).
    Certificate([u8; 32]),
    /// Something that we cannot check: the token is never accepted.
    Unknown,
}

/// The member at `path` under `claims`: the whole rest of the path as one name first, then shorter ones.
pub(crate) fn claim_at<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    path.rmatch_indices('.').find_map(|(dot, _)| {
        let inner = claims.get(&path[..dot])?.as_object()?;
        claim_at(inner, &path[dot + 1..])
    })
}

/// About how many bytes an object's members take: a map reserves places for more than it has.
fn members(object: &Map<String, Value>) -> usize {
    object.iter().map(|(name, value)| CLAIM_OVERHEAD_BYTES + name.len() + bytes(value)).sum()
}

fn bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(values) => values.iter().map(|value| size_of::<Value>() + bytes(value)).sum(),
        Value::Object(object) => members(object),
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
    }
}

/// A name, a value, their share of a node, and what the allocator adds.
const CLAIM_OVERHEAD_BYTES: usize = 112;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finds_claims_in_objects_and_names_with_dots() {
        let Value::Object(claims) = json!({
            "sub": "alice",
            "realm_access": { "roles": ["admin"] },
            "https://example.com/roles": ["user"],
            "a.b": { "c": 1 },
        }) else {
            unreachable!()
        };
        let at = |path| claim_at(&claims, path);

        assert_eq!(at("sub"), Some(&json!("alice")));
        assert_eq!(at("realm_access.roles"), Some(&json!(["admin"])));
        assert_eq!(at("https://example.com/roles"), Some(&json!(["user"])));
        assert_eq!(at("a.b.c"), Some(&json!(1)));
        assert_eq!(at("realm_access.groups"), None);
        assert_eq!(at("sub.name"), None);
        assert_eq!(at(""), None);
    }
}
