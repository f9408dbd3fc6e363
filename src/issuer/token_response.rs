//! What the token endpoint says to a grant: tokens, a refusal, or something that makes no sense.
//!
//! Whose fault a refusal is decides what happens next: the person's is counted
//! and told, what is odd is remembered for what was redeemed, the server's absence opens the circuit,
//! and for none of these is anybody logged out.

use core::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value};

use super::http_client::{Response, plain};
use super::json;
use crate::base::clock::Timestamp;
use crate::base::secret::Secret;

/// What became of a grant.
pub(super) enum GrantOutcome {
    Granted(Box<Tokens>),
    /// What was redeemed is not good; with the server's words where they are not those of the RFC.
    Refused(Option<String>),
    /// A refusal of something else, or what makes no sense: whoever is to blame for it, it says nothing
    /// about other grants.
    Odd(String),
    /// The server is away.
    Away(String),
}

pub(super) fn parse(reply: &Response, typed: bool, received: Timestamp) -> GrantOutcome {
    if reply.status == StatusCode::OK {
        return match tokens(&reply.body, received) {
            Ok(tokens) => GrantOutcome::Granted(Box::new(tokens)),
            Err(why) => GrantOutcome::Odd(why.to_string()),
        };
    }
    let error = reply.error_code();
    if reply.says_away() {
        return GrantOutcome::Away(reply.refusal());
    }
    if !reply.status.is_client_error() || error.as_deref() == Some("invalid_client") {
        return GrantOutcome::Odd(reply.refusal());
    }
    match (reply.status, error.as_deref()) {
        // With 400 by the book, with 401 or 403 from servers that take the person for a client.
        (_, Some("invalid_grant")) => GrantOutcome::Refused(None),
        // Ours is the same request each time, but for what was typed: whatever the server calls it, that is
        // what it does not like. Authlib says `invalid_request`, Glewlwyd nothing at all. Called the server's
        // trouble, it would be a guess that nobody counts.
        (
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN,
            Some(error),
        ) if typed && !OURS.contains(&error) => GrantOutcome::Refused(Some(reply.refusal())),
        (StatusCode::FORBIDDEN, None) if typed => GrantOutcome::Refused(Some(reply.refusal())),
        _ => GrantOutcome::Odd(reply.refusal()),
    }
}

/// What is said of the client, its request or the server, whatever a person has typed in (RFC 6749 §5.2, RFC 8707 §2,
/// RFC 8628 §3.5, RFC 9449 §8).
const OURS: [&str; 9] = [
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "slow_down",
    "temporarily_unavailable",
    "server_error",
    "use_dpop_nonce",
];

/// Reads a token response (RFC 6749 §5.1).
fn tokens(body: &[u8], received: Timestamp) -> Result<Tokens, UnusableResponse> {
    let mut body = json::parse_object(body).map_err(|_| UnusableResponse::NoObject)?;
    if let Some(error) = body.get("error").and_then(Value::as_str).and_then(plain) {
        return Err(UnusableResponse::Error(error));
    }
    let bearer = body.get("token_type").and_then(Value::as_str).ok_or(UnusableResponse::NoType)?;
    if !bearer.eq_ignore_ascii_case("Bearer") {
        return Err(UnusableResponse::Type);
    }
    let text = |body: &mut Map<String, Value>, name| match body.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    };
    let expires_in = match body.get("expires_in") {
        None | Some(Value::Null) => None,
        // Kept without end in other gateways' caches: unusable here.
        Some(value) => {
            let lifetime = seconds(value).filter(|lifetime| !lifetime.is_zero());
            Some(lifetime.ok_or(UnusableResponse::Lifetime)?)
        }
    };
    Ok(Tokens {
        access_token: text(&mut body, "access_token").ok_or(UnusableResponse::NoToken)?.into(),
        refresh_token: text(&mut body, "refresh_token").map(Secret::from),
        id_token: text(&mut body, "id_token").map(Secret::from),
        expires_in,
        refresh_expires_in: ["refresh_expires_in", "refresh_token_expires_in"]
            .iter()
            .find_map(|name| seconds(body.get(*name)?))
            .filter(|lifetime| !lifetime.is_zero()),
        scope: scope(body.get("scope"))?,
        received,
    })
}

/// The scopes granted; some servers write them as an array. What cannot be read is not taken for all that was asked for.
fn scope(value: Option<&Value>) -> Result<Option<String>, UnusableResponse> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(list)) => Ok(Some(list.clone())),
        Some(Value::Array(list)) => {
            let list: Option<Vec<_>> = list.iter().map(Value::as_str).collect();
            list.map(|list| Some(list.join(" "))).ok_or(UnusableResponse::Scope)
        }
        Some(_) => Err(UnusableResponse::Scope),
    }
}

/// Why an answer with status 200 brings no tokens.
#[derive(Debug, thiserror::Error)]
enum UnusableResponse {
    #[error("the answer is not a JSON object")]
    NoObject,
    #[error("{0}, with status 200")]
    Error(String),
    #[error("the answer has no `access_token`")]
    NoToken,
    #[error("the answer has no `token_type`")]
    NoType,
    #[error("the answer's `token_type` is not Bearer")]
    Type,
    #[error("the answer's `expires_in` is no number of seconds above 0")]
    Lifetime,
    #[error("the answer's `scope` is neither a text nor an array of texts")]
    Scope,
}

/// A lifetime; some servers write the number as a string.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => f64::from(text.parse::<u32>().ok()?),
        _ => return None,
    };
    (0.0..=MAX_LIFETIME).contains(&seconds).then(|| Duration::from_secs(seconds as u64))
}

/// 136 years: what a server says beyond that is nonsense.
const MAX_LIFETIME: f64 = 4_294_967_295.0;

/// What the token endpoint answered (RFC 6749 §5.1).
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The access token.
    pub access_token: Secret<String>,
    /// The refresh token, if one came. An answer without it leaves the old one good.
    pub refresh_token: Option<Secret<String>>,
    /// The ID token, if one came (OpenID Connect Core §3.1.3.3).
    pub id_token: Option<Secret<String>>,
    /// How long the access token lives from [`Tokens::received`]; at least 1 s, if the server says so.
    pub expires_in: Option<Duration>,
    /// How long the refresh token lives from [`Tokens::received`], if the server says so.
    pub refresh_expires_in: Option<Duration>,
    /// The scopes granted, if the server names them.
    pub scope: Option<String>,
    /// When the answer was asked for: a lifetime counts from the earliest moment it can have begun.
    pub received: Timestamp,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    #[test]
    fn an_answer_without_usable_tokens_says_what_is_wrong() {
        for (body, why) in [
            ("<html>", "the answer is not a JSON object"),
            (r#"{"error":"bad_code"}"#, "bad_code, with status 200"),
            (r#"{"token_type":"Bearer"}"#, "the answer has no `access_token`"),
            (r#"{"access_token":"a"}"#, "the answer has no `token_type`"),
            (
                r#"{"access_token":"a","token_type":"Bearer","scope":7}"#,
                "the answer's `scope` is neither a text nor an array of texts",
            ),
        ] {
            assert_eq!(tokens(body.as_bytes(), NOW).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn scopes_that_are_none_are_not_taken_for_all_that_was_asked_for() {
        let scope = |scope: Value| {
            let body = json!({ "access_token": "a", "token_type": "BEARER", "scope": scope });
            tokens(body.to_string().as_bytes(), NOW).map(|tokens| tokens.scope)
        };

        assert_eq!(scope(json!("b a")).unwrap().as_deref(), Some("b a"));
        assert_eq!(scope(json!(["b", "a"])).unwrap().as_deref(), Some("b a"));
        assert_eq!(scope(json!("")).unwrap().as_deref(), Some(""));
        assert_eq!(scope(json!([])).unwrap().as_deref(), Some(""));
        assert_eq!(scope(json!(null)).unwrap(), None);
        assert!(scope(json!({})).is_err() && scope(json!([1])).is_err());
    }

    #[test]
    fn an_answer_without_usable_tokens_is_refused() {
        for body in [
            json!({ "token_type": "Bearer" }),
            json!({ "access_token": "", "token_type": "Bearer" }),
            json!({ "access_token": 1, "token_type": "Bearer" }),
            json!({ "access_token": "a" }),
            json!({ "access_token": "a", "token_type": "mac" }),
            json!({ "access_token": "a", "token_type": "DPoP" }),
            json!({ "access_token": "a", "token_type": ["Bearer"] }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 0 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": -1 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 1e300 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": "soon" }),
            json!([]),
        ] {
            assert!(tokens(body.to_string().as_bytes(), NOW).is_err(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_lifetime_is_zero_negative_or_without_end(number in any::<f64>()) {
            let body = json!({ "access_token": "a", "token_type": "Bearer", "expires_in": number });
            let read = tokens(body.to_string().as_bytes(), NOW);
            if let Some(lifetime) = read.ok().and_then(|tokens| tokens.expires_in) {
                prop_assert!(lifetime >= Duration::from_secs(1));
                prop_assert!(lifetime <= Duration::from_secs(u64::from(u32::MAX)));
            }
        }
    }
}
