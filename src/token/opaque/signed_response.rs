//! Signed introspection responses (RFC 9701), and the attribution of their errors.

use serde_json::{Map, Value};

use crate::base::clock::Timestamp;
use crate::base::strict_json;
use crate::issuer::Issuer;
use crate::token::TokenError;
use crate::token::jwt::claim_types::date;
use crate::token::jwt::jws::Jws;
use crate::token::jwt::verify::signing_key;
use crate::token::validation::ValidationRules;

/// Returns the claims of the token that a signed response reports as active.
///
/// # Errors
///
/// [`TokenError::Inactive`] if the response says so;
/// [`TokenError::Unavailable`] if the response itself is invalid, which is
/// never the client's fault.
pub(crate) async fn verify(
    issuer: &Issuer,
    rules: &ValidationRules,
    text: &str,
    now: Timestamp,
) -> Result<Map<String, Value>, TokenError> {
    let read = read(issuer, rules, text, now).await;
    match read.map_err(|error| attribute_error(issuer, error))?.remove("token_introspection") {
        Some(Value::Object(mut response)) => match response.remove("active") {
            Some(Value::Bool(true)) => Ok(response),
            Some(Value::Bool(false)) => Err(TokenError::Inactive),
            _ => Err(attribute_error(issuer, TokenError::Malformed)),
        },
        _ => Err(attribute_error(issuer, TokenError::Malformed)),
    }
}

/// Attributes an error of a signed response: a wrong audience or expiry is the token's
/// fault; all else is the server's.
pub(crate) fn attribute_error(issuer: &Issuer, error: TokenError) -> TokenError {
    match error {
        TokenError::Audience
        | TokenError::Expired
        | TokenError::NotYetValid
        | TokenError::Claim
        | TokenError::Unavailable { .. } => error,
        _ => {
            tracing::warn!(issuer = %issuer.name(), %error, "Refused a signed introspection response; the token was not accepted.");
            TokenError::Unavailable { retry_after: 1 }
        }
    }
}

/// Verifies the response: signed by the issuer, for this client, and of its own type.
async fn read(
    issuer: &Issuer,
    rules: &ValidationRules,
    text: &str,
    now: Timestamp,
) -> Result<Map<String, Value>, TokenError> {
    let jws = Jws::parse_within(text, rules.max_token_size)?;
    if jws.typ != "token-introspection+jwt" {
        return Err(TokenError::Type);
    }
    if !rules.algorithms.contains(&jws.algorithm) {
        return Err(TokenError::Algorithm);
    }
    let claims = strict_json::parse_object(&jws.payload).map_err(|_| TokenError::Malformed)?;
    let iss = claims.get("iss").and_then(Value::as_str);
    signing_key(issuer, &jws, iss).await?;
    let settings = issuer.settings();
    if !iss.is_some_and(|iss| settings.is_named(iss)) {
        return Err(TokenError::Issuer);
    }
    let us = settings.client.as_ref().map(|client| &*client.id);
    let meant = match claims.get("aud") {
        Some(Value::String(audience)) => us == Some(audience),
        Some(Value::Array(audience)) => audience.iter().any(|name| name.as_str() == us),
        _ => false,
    };
    let recent = date(&claims, "iat")?.is_some_and(|made| {
        made <= now.plus(rules.leeway) && now.since(made) <= MAX_AGE + rules.leeway
    });
    // Not the token's audience: the response was made for another resource server, or long ago.
    if meant && recent { Ok(claims) } else { Err(TokenError::Malformed) }
}

/// The maximum age of a response: it was requested a moment ago.
const MAX_AGE: core::time::Duration = core::time::Duration::from_secs(60);
