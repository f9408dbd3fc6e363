//! A client's signed word that it is itself: `private_key_jwt` (RFC 7523).

use serde_json::Value;

use super::jwt::Jwt;
use super::{DevIssuer, path};
use crate::base::clock::Timestamp;

/// `client_assertion_type`, the only one.
pub(super) const TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// Whether the holder of one of `keys` said it, of itself, to this issuer, just now, and for the first time.
pub(super) fn proves(issuer: &DevIssuer, assertion: &Jwt, keys: &Value) -> bool {
    let Some(client) = assertion.text("sub") else { return false };
    let Some(name) = assertion.text("jti") else { return false };
    let Some(expires) = assertion.claims["exp"].as_u64().map(Timestamp::from_secs) else {
        return false;
    };
    assertion.text("iss") == Some(client)
        && is_for(issuer, &assertion.claims["aud"])
        && issuer.clock.now() < expires
        && assertion.is_signed_with(keys)
        && issuer.store.first_use(&format!("{client} {name}"))
}

/// The issuer's own name, or its token endpoint's (RFC 7523 §3).
fn is_for(issuer: &DevIssuer, audience: &Value) -> bool {
    let ours = |audience: &Value| {
        let path = audience.as_str().and_then(|audience| audience.strip_prefix(&issuer.url));
        matches!(path, Some("" | path::TOKEN))
    };
    match audience {
        Value::Array(several) => several.iter().any(ours),
        one => ours(one),
    }
}
