//! Tokens as received from the token endpoint: their source is trusted, nothing of them is verified.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use serde_json::{Map, Value};

use super::principal::{IdentityFields, Principal, TokenFormat};
use super::token_digests::TokenDigests;
use crate::base::clock::Timestamp;
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;

/// Returns the principal of a token that was received, not verified; `person` has the claims of its ID token. Its
/// namespace is the name of the issuer: see [`Verifier::name_within`](super::Verifier::name_within).
pub(crate) fn received_principal(
    token: &Secret<String>,
    issuer: &Arc<str>,
    client: &Arc<str>,
    scopes: Scopes,
    person: Map<String, Value>,
    received: Timestamp,
    expires: Timestamp,
) -> Principal {
    let text = |claim| Some(Arc::from(person.get(claim)?.as_str()?));
    let names = TokenDigests::of_reference(token.expose());
    let mut principal = Principal {
        form: TokenFormat::Reference,
        issuer: Arc::clone(issuer),
        namespace: Arc::clone(issuer),
        subject: text("sub"),
        client: Some(Arc::clone(client)),
        session: text("sid"),
        id: None,
        // The audience of the ID token is this client; that of the access token is unknown.
        audience: Box::default(),
        expires,
        issued: Some(received),
        confirmation: None,
        claims: person,
        digest: names.whole,
        unsigned_digest: names.unsigned,
        signed: None,
        scopes: Arc::new(scopes),
        identity: IdentityFields::default(),
    };
    principal.claims.insert("client_id".into(), Value::from(&**client));
    principal.claims.insert("scope".into(), Value::from(principal.scopes.to_string()));
    principal
}

/// Returns the `Authorization` field for `token`; `None` if it contains characters not allowed there (RFC 6750 §2.1).
pub(crate) fn bearer(token: &Secret<String>) -> Option<HeaderValue> {
    let mut field = HeaderValue::try_from(format!("Bearer {}", token.expose())).ok()?;
    field.set_sensitive(true);
    Some(field)
}

/// Returns the claims of a JWT, unverified: only for tokens from a trusted source.
pub(crate) fn payload(token: &Secret<String>) -> Option<Map<String, Value>> {
    let payload = token.expose().split('.').nth(1)?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}
