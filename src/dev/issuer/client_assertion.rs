//! Client authentication by a signed JWT: `private_key_jwt` (RFC 7523).

use serde_json::Value;

use super::jwt::Jwt;
use super::{DevIssuer, paths};
use crate::base::clock::Timestamp;

/// The only supported `client_assertion_type`.
pub(super) const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Verifies that `assertion` is signed with one of `keys`, by and about the same client, meant
/// for this issuer, not expired, and not used before.
pub(super) fn verify(issuer: &DevIssuer, assertion: &Jwt, keys: &Value) -> bool {
    let Some(client) = assertion.text("sub") else { return false };
    let Some(jti) = assertion.text("jti") else { return false };
    let Some(expires) = assertion.claims["exp"].as_u64().map(Timestamp::from_secs) else {
        return false;
    };
    assertion.text("iss") == Some(client)
        && is_audience(issuer, &assertion.claims["aud"])
        && issuer.clock.now() < expires
        && assertion.is_signed_with(keys)
        && issuer.store.record_assertion(&format!("{client} {jti}"))
}

/// Whether `audience` names the issuer or its token endpoint (RFC 7523 §3).
fn is_audience(issuer: &DevIssuer, audience: &Value) -> bool {
    let names_issuer = |audience: &Value| {
        let path = audience.as_str().and_then(|audience| audience.strip_prefix(&issuer.url));
        matches!(path, Some("" | paths::TOKEN))
    };
    match audience {
        Value::Array(several) => several.iter().any(names_issuer),
        one => names_issuer(one),
    }
}
