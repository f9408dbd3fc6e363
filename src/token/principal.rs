//! The principal of a verified token.

use core::time::Duration;
use std::sync::{Arc, OnceLock};

use http::HeaderValue;
use serde_json::{Map, Value};

use crate::base::clock::Timestamp;
use crate::base::encoded_fields::EncodedFields;
use crate::base::scopes::Scopes;

/// The subject of a verified token and its claims. One value is used by limits, identity headers, metrics
/// and the log, so that they cannot disagree about `sub`.
///
/// The fields that every request reads come first, because they have mostly left the
/// processor's caches since the last one.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Principal {
    /// The end of the token: its expiry, or that of the `max_token_age` of its issuer if it comes first; [`Timestamp::MAX`] if it
    /// has neither.
    pub expires: Timestamp,
    /// The key or certificate of which the client must prove possession.
    pub confirmation: Option<Confirmation>,
    /// The encoded header fields for upstreams: see [`Principal::identity_fields`].
    pub identity: IdentityFields,
    /// How the token was verified.
    pub form: TokenFormat,
    /// The configured name of the issuer, as in metrics and the log.
    pub issuer: Arc<str>,
    /// The issuer within which `sub`, `client_id` and `sid` are unique: its configured name, or the verified `iss` if
    /// that is one of several tenants, or if several configured issuers share it.
    pub namespace: Arc<str>,
    /// `sub`: the user or client that the token represents.
    pub subject: Option<Arc<str>>,
    /// The client that the token was issued to, from the configured claim.
    pub client: Option<Arc<str>>,
    /// `sid`: the session at the issuer (OpenID Connect Back-Channel Logout §2.1).
    pub session: Option<Arc<str>>,
    /// `jti`: the token's identifier.
    pub id: Option<Arc<str>>,
    /// The granted scopes.
    pub scopes: Arc<Scopes>,
    /// `aud`, one or many.
    pub audience: Box<[Box<str>]>,
    /// `iat`: the time of issue, if present.
    pub issued: Option<Timestamp>,
    /// Identifies exactly this token without storing it: see [`token_digest`](super::token_digest).
    pub digest: [u8; 32],
    /// Identifies this token under any signature, only for refusal: see [`TokenDigests`](super::TokenDigests).
    pub unsigned_digest: Option<[u8; 32]>,
    /// The `Authorization` field that upstreams get in place of an opaque token: a signed token.
    pub signed: Option<HeaderValue>,
    /// All verified claims.
    pub claims: Map<String, Value>,
}

/// Encoded identity header fields, written by the first request and reused by later ones.
#[derive(Clone, Debug, Default)]
pub struct IdentityFields(OnceLock<([u8; 32], EncodedFields)>);

impl Principal {
    /// Returns the claim at `path`, member names joined by dots: `realm_access.roles`.
    ///
    /// A name that itself contains dots, such as `https://example.com/roles`,
    /// is found as well; the longest name wins.
    pub fn claim(&self, path: &str) -> Option<&Value> {
        claim_at(&self.claims, path)
    }

    /// Returns `iss`, if the token or its introspection response has one: it stays when the configuration renames an issuer.
    pub fn iss(&self) -> Option<&str> {
        self.claims.get("iss")?.as_str()
    }

    /// Returns the subject, with its namespace if that is not the name of its issuer: users of two tenants who have one
    /// `sub` are two users.
    pub fn qualified_subject(&self) -> Option<Arc<str>> {
        let subject = self.subject.as_ref()?;
        if self.namespace == self.issuer {
            return Some(Arc::clone(subject));
        }
        Some(format!("{}\0{subject}", self.namespace).into())
    }

    /// Returns the identity header fields of the kind with this `mark`, a digest of all settings that
    /// decide about them; `write` encodes them the first time.
    ///
    /// Only the first kind requested is stored; `None` for any other.
    pub fn identity_fields(
        &self,
        mark: [u8; 32],
        write: impl FnOnce() -> EncodedFields,
    ) -> Option<&EncodedFields> {
        let (written_mark, written) = self.identity.0.get_or_init(|| (mark, write()));
        (*written_mark == mark).then_some(written)
    }

    /// Returns the time until which a token that is accepted at `now` stays so: its end, or, for one accepted after it,
    /// the end of the `leeway` of its issuer.
    pub fn accepted_until(&self, now: Timestamp, leeway: Duration) -> Timestamp {
        if now < self.expires { self.expires } else { self.expires.plus(leeway) }
    }

    /// Returns the approximate size in memory, in bytes.
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + members(&self.claims) + self.signed.as_ref().map_or(0, HeaderValue::len)
    }

    /// Whether `aud` contains `audience`, exactly.
    pub fn has_audience(&self, audience: &str) -> bool {
        self.audience.iter().any(|named| **named == *audience)
    }
}

/// The way in which a token was verified.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TokenFormat {
    /// By its signature.
    Signed,
    /// By introspection.
    Reference,
}

/// The confirmation method of a sender-constrained token (RFC 7800 `cnf`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Confirmation {
    /// A key's thumbprint, `jkt`, proved by `DPoP` (RFC 9449 §6.1).
    Key([u8; 32]),
    /// A certificate's SHA-256, `x5t#S256`, proved by mutual TLS (RFC 8705 §3.1).
    Certificate([u8; 32]),
    /// An unsupported method: the token is never accepted.
    Unknown,
}

/// Returns the names that an object stands for as a set, such as Zitadel's roles: those of its members, except
/// for members that are `null` or `false`.
pub(crate) fn names(members: &Map<String, Value>) -> impl Iterator<Item = &String> {
    let counts = |value: &Value| !matches!(value, Value::Null | Value::Bool(false));
    members.iter().filter(move |(_, value)| counts(value)).map(|(name, _)| name)
}

/// Whether a claim has this value: it is the value itself, a list with it, or an object as a set with its name. Some
/// servers write `true` and `false` as texts.
pub(crate) fn has_value(claim: &Value, wanted: &Value) -> bool {
    match claim {
        Value::Array(values) => values.contains(wanted),
        Value::Object(members) => {
            wanted.as_str().is_some_and(|wanted| names(members).any(|name| name == wanted))
        }
        Value::String(text) if wanted.is_boolean() => wanted.as_bool() == text.parse().ok(),
        single => single == wanted,
    }
}

/// Returns the member at `path` under `claims`: the longest name first, then shorter ones.
pub(crate) fn claim_at<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(path) {
        return Some(value);
    }
    path.rmatch_indices('.').find_map(|(dot, _)| {
        let inner = claims.get(&path[..dot])?.as_object()?;
        claim_at(inner, &path[dot + 1..])
    })
}

/// Returns the claim at `path`, as [`claim_at`] does, unless it is `null`: some issuers write absent claims so.
pub(crate) fn written_claim_at<'a>(
    claims: &'a Map<String, Value>,
    path: &str,
) -> Option<&'a Value> {
    claim_at(claims, path).filter(|claim| !claim.is_null())
}

/// The approximate size of an object's members, in bytes: a map reserves more slots than it uses.
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

/// The overhead of a member: name, value, their share of a node, and of the allocator.
const CLAIM_OVERHEAD_BYTES: usize = 112;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn truth_may_be_written_as_a_text() {
        for (claim, wanted, is_it) in [
            (json!("true"), true, true),
            (json!("false"), false, true),
            (json!("false"), true, false),
            (json!("True"), true, false),
            (json!(["true"]), true, false),
            (json!(1), true, false),
        ] {
            assert_eq!(has_value(&claim, &wanted.into()), is_it, "{claim}");
        }
    }

    #[test]
    fn claims_are_found_in_objects_and_under_names_with_dots() {
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
