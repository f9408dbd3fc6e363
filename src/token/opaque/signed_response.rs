//! Signed introspection responses (RFC 9701), and who is to blame for a bad one.

use serde_json::{Map, Value};

use crate::base::clock::Timestamp;
use crate::issuer::{Issuer, json};
use crate::token::TokenError;
use crate::token::jwt::jws::Jws;
use crate::token::jwt::verify::signing_key;
use crate::token::validation::ValidationRules;

/// The claims of the token that a signed response says is active.
///
/// # Errors
///
/// [`TokenError::Inactive`] if it says that the token is not;
/// [`TokenError::Unavailable`] if the response itself is no good, which is
/// never the client's fault.
pub(crate) async fn verify(
    issuer: &Issuer,
    rules: &ValidationRules,
    text: &str,
    now: Timestamp,
) -> Result<Map<String, Value>, TokenError> {
    let read = read(issuer, rules, text, now).await;
    match read.map_err(|error| attribute_error(issuer, error))?.remove("token_introspection") {
        Some(Value::Object(mut answer)) => match answer.remove("active") {
            Some(Value::Bool(true)) => Ok(answer),
            Some(Value::Bool(false)) => Err(TokenError::Inactive),
            _ => Err(attribute_error(issuer, TokenError::Malformed)),
        },
        _ => Err(attribute_error(issuer, TokenError::Malformed)),
    }
}

/// What a signed answer's fault means for the token that was asked about: that
/// it is not for us, or has ended, is the token's fault; all else the server's.
pub(crate) fn attribute_error(issuer: &Issuer, error: TokenError) -> TokenError {
    match error {
        TokenError::Audience
        | TokenError::Expired
        | TokenError::NotYetValid
        | TokenError::Claim
        | TokenError::Unavailable { .. } => error,
        _ => {
            tracing::warn!(issuer = %issuer.name(), %error, "A signed introspection answer was refused.");
            TokenError::Unavailable { retry_after: 1 }
        }
    }
}

/// The response's own claims, signed by the issuer for us and meant for nothing else.
async fn read(
    issuer: &Issuer,
    rules: &ValidationRules,
    text: &str,
    now: Timestamp,
) -> Result<Map<String, Value>, TokenError> {
    let jws = Jws::parse(text)?;
    if jws.typ != "token-introspection+jwt" {
        return Err(TokenError::Type);
    }
    if !rules.algorithms.contains(&jws.algorithm) {
        return Err(TokenError::Algorithm);
    }
    signing_key(issuer, &jws).await?;
    let claims = json::parse_object(&jws.payload).map_err(|_| TokenError::Malformed)?;
    let settings = issuer.settings();
    if claims.get("iss").and_then(Value::as_str) != Some(&*settings.issuer) {
        return Err(TokenError::Issuer);
    }
    let us = settings.client.as_ref().map(|client| &*client.id);
    let meant = match claims.get("aud") {
        Some(Value::String(audience)) => us == Some(audience),
        Some(Value::Array(audience)) => audience.iter().any(|name| name.as_str() == us),
        _ => false,
    };
    let made = claims.get("iat").and_then(Value::as_u64).map(Timestamp::from_secs);
    let recent = made.is_some_and(|made| {
        made <= now.plus(rules.leeway) && now.since(made) <= MAX_AGE + rules.leeway
    });
    // Not the token's audience: this answer was made for another resource server, or long ago.
    if meant && recent { Ok(claims) } else { Err(TokenError::Malformed) }
}

/// How old a response may be: it was asked for a moment ago.
const MAX_AGE: core::time::Duration = core::time::Duration::from_secs(60);
