//! The response of the token endpoint: tokens, a refusal, or a malformed one.
//!
//! The party at fault decides what follows: a user's wrong credentials are counted and
//! reported, an odd response is remembered for the redeemed input, an unavailable server opens the
//! circuit; and none of these logs a user out.

use core::time::Duration;

use http::StatusCode;
use http::header::WWW_AUTHENTICATE;
use serde_json::{Map, Value};

use crate::base::clock::Timestamp;
use crate::base::secret::Secret;
use crate::base::strict_json;
use crate::issuer::calls::call_purpose::Purpose;
use crate::issuer::calls::http_client::{Response, plain};

/// The outcome of a grant.
pub(in crate::issuer) enum GrantOutcome {
    Granted(Box<Tokens>),
    /// The credentials, code or refresh token are invalid; with the error code if it is not `invalid_grant`.
    Refused(Option<String>),
    /// Another refusal, or a malformed response: it reveals nothing
    /// about other grants.
    Unexpected(String),
    /// The server is unavailable.
    Unavailable(String),
}

/// Reads the response to a grant for `purpose`, requested at `received`.
pub(in crate::issuer) fn parse(
    response: &Response,
    purpose: Purpose,
    received: Timestamp,
) -> GrantOutcome {
    // With a typed password, whatever the server refuses is the user's input.
    let typed = purpose == Purpose::Password;
    if response.status == StatusCode::OK {
        return match tokens(&response.body, received) {
            Ok(tokens) => GrantOutcome::Granted(Box::new(tokens)),
            Err(UnusableResponse::Error(error)) if error == "invalid_grant" => {
                GrantOutcome::Refused(None)
            }
            // Some servers refuse with status 200 (GitHub: `bad_refresh_token`).
            Err(why @ UnusableResponse::Error(_)) if is_refusal(&why, purpose) => {
                GrantOutcome::Refused(Some(why.to_string()))
            }
            Err(why) => GrantOutcome::Unexpected(why.to_string()),
        };
    }
    let error = response.error_code();
    if response.is_unavailable() {
        return GrantOutcome::Unavailable(response.refusal());
    }
    if !response.status.is_client_error() || error.as_deref() == Some("invalid_client") {
        return GrantOutcome::Unexpected(response.refusal());
    }
    if purpose == Purpose::Refresh {
        return if refuses_refresh_token(response, error.as_deref()) {
            let unusual = error.as_deref() != Some("invalid_grant");
            GrantOutcome::Refused(unusual.then(|| response.refusal()))
        } else {
            GrantOutcome::Unexpected(response.refusal())
        };
    }
    match (response.status, error.as_deref()) {
        // 400 by the RFC; 401 or 403 from servers that mistake the user for a client.
        (_, Some("invalid_grant")) => GrantOutcome::Refused(None),
        // The request is the same each time except for the typed credentials: whatever the error code, they
        // are what the server refuses. Authlib says `invalid_request`, Glewlwyd nothing at all. Treated as a
        // server error, it would be a guess that is not counted.
        (
            StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN,
            Some(error),
        ) if typed && !is_ours(error) => GrantOutcome::Refused(Some(response.refusal())),
        (StatusCode::FORBIDDEN, None) if typed => GrantOutcome::Refused(Some(response.refusal())),
        _ => GrantOutcome::Unexpected(response.refusal()),
    }
}

/// Whether an error with status 200 refuses what was redeemed.
fn is_refusal(why: &UnusableResponse, purpose: Purpose) -> bool {
    let UnusableResponse::Error(error) = why else { return false };
    match purpose {
        Purpose::Refresh => !SERVERS.contains(&&**error),
        Purpose::Password | Purpose::Code => !is_ours(error),
        _ => false,
    }
}

/// Whether a response with status 4xx says that a refresh token is of no use any more.
///
/// Servers have many words for that besides `invalid_grant`: `interaction_required`, `login_required`,
/// `invalid_request`, `access_denied`, a plain 400; and other statuses, such as 410 or 422. Each time the same request would fail, and a login, which ends
/// the failure or shows its cause, is the only remedy. The other statuses and words come from a server that refuses
/// the gateway, or from a proxy while the server is away: they end no session.
fn refuses_refresh_token(response: &Response, error: Option<&str>) -> bool {
    // Malformed, or a page of a proxy or a firewall in front: the server has perhaps not been asked.
    let is_empty_or_json = || {
        response.body.trim_ascii().is_empty() || strict_json::parse_object(&response.body).is_ok()
    };
    match (response.status, error) {
        (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS, _) => false,
        (_, Some("invalid_grant")) => true,
        (StatusCode::BAD_REQUEST, Some(error)) => !SERVERS.contains(&error),
        // `{"error":"Forbidden"}` is what frameworks and firewalls say.
        (StatusCode::FORBIDDEN, Some(error)) => {
            !SERVERS.contains(&error) && !error.eq_ignore_ascii_case("forbidden")
        }
        (StatusCode::UNAUTHORIZED, None) => {
            !response.headers.contains_key(WWW_AUTHENTICATE) && is_empty_or_json()
        }
        (StatusCode::BAD_REQUEST, None) => is_empty_or_json(),
        (StatusCode::UNAUTHORIZED, Some(error)) => {
            OF_THE_USER.contains(&error) || is_code(error) && !refuses_client(response, error)
        }
        // The statuses of a path or proxy that does not take the request, whatever it carries.
        (
            StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
            | StatusCode::PAYLOAD_TOO_LARGE,
            Some(error),
        ) => OF_THE_USER.contains(&error),
        (_, Some(error)) => is_code(error) && !SERVERS.contains(&error),
        (_, None) => false,
    }
}

/// Whether a refusal with status 401 is about the client, such as a wrong secret (RFC 6749 §5.2). Servers have the words
/// `unauthorized_client` and `access_denied` for that too; `unauthorized` is a blocked user's, unless the server asks
/// for other credentials.
fn refuses_client(response: &Response, error: &str) -> bool {
    SERVERS.contains(&error)
        || error == "access_denied"
        || error == "unauthorized" && response.headers.contains_key(WWW_AUTHENTICATE)
}

/// Whether an error is a code of OAuth, not the words of a framework.
fn is_code(error: &str) -> bool {
    error.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Error codes that are about a refresh token or its user, whatever the status.
const OF_THE_USER: [&str; 5] = [
    "invalid_token",
    "invalid_refresh_token",
    "login_required",
    "interaction_required",
    "consent_required",
];

/// Error codes of a server that has not looked at what was redeemed, or that refuses the client (RFC 6749 §5.2,
/// RFC 8628 §3.5, RFC 9449 §8); GitHub's word for a wrong client secret; and words of servers with too much to do.
pub(in crate::issuer) const SERVERS: [&str; 14] = [
    "invalid_client",
    "unauthorized_client",
    "unsupported_grant_type",
    "slow_down",
    "temporarily_unavailable",
    "server_error",
    "use_dpop_nonce",
    "incorrect_client_credentials",
    "internal_error",
    "internal_failure",
    "rate_limit_exceeded",
    "rate_limited",
    "ratelimited",
    "too_many_requests",
];

/// Whether an error code is about the client, its request or the server, whatever the user has typed (RFC 6749 §5.2,
/// RFC 8707 §2).
fn is_ours(error: &str) -> bool {
    SERVERS.contains(&error) || matches!(error, "invalid_scope" | "invalid_target")
}

/// Reads a token response (RFC 6749 §5.1).
fn tokens(body: &[u8], received: Timestamp) -> Result<Tokens, UnusableResponse> {
    let mut body = strict_json::parse_object(body).map_err(|_| UnusableResponse::NoObject)?;
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
        // Zero is "ends now", as some servers round it; anything that is no lifetime is unusable.
        Some(value) => Some(seconds(value).ok_or(UnusableResponse::Lifetime)?),
    };
    let access_token = text(&mut body, "access_token").ok_or(UnusableResponse::NoToken)?;
    let refresh_token = text(&mut body, "refresh_token");
    let id_token = text(&mut body, "id_token");
    // Visible ASCII, and spaces in refresh tokens (RFC 6749 appendix A.12 and A.17): with anything else, such as a line
    // break, it is not known what the token is.
    let visible = |token: &str| token.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    let printable = |token: &str| token.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    if !visible(&access_token)
        || !refresh_token.as_deref().is_none_or(printable)
        || !id_token.as_deref().is_none_or(visible)
    {
        return Err(UnusableResponse::Characters);
    }
    Ok(Tokens {
        access_token: access_token.into(),
        refresh_token: refresh_token.map(Secret::from),
        id_token: id_token.map(Secret::from),
        expires_in,
        refresh_expires_in: ["refresh_expires_in", "refresh_token_expires_in"]
            .iter()
            .find_map(|name| seconds(body.get(*name)?))
            .filter(|lifetime| !lifetime.is_zero()),
        scope: scope(body.get("scope"))?,
        received,
    })
}

/// The granted scopes; some servers write them as an array. An unreadable value does not count as the requested scope.
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

/// The reason why a response with status 200 has no usable tokens.
#[derive(Debug, thiserror::Error)]
enum UnusableResponse {
    #[error("the response is not a JSON object")]
    NoObject,
    #[error("{0}, with status 200")]
    Error(String),
    #[error("the response has no `access_token`")]
    NoToken,
    #[error("the response has no `token_type`")]
    NoType,
    #[error("the response's `token_type` is not Bearer")]
    Type,
    #[error("the response's `expires_in` is not a number of seconds, 0 or more")]
    Lifetime,
    #[error("a token of the response has characters that no token may have, such as a line break")]
    Characters,
    #[error("the response's `scope` is neither a string nor an array of strings")]
    Scope,
}

/// A lifetime; some servers write the number as a string.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) if text.starts_with(|first: char| first.is_ascii_digit()) => {
            text.parse::<f64>().ok()?
        }
        _ => return None,
    };
    (0.0..=NEVER).contains(&seconds).then(|| Duration::from_secs(seconds.min(MAX_LIFETIME) as u64))
}

/// The lifetime that some servers write for a token that never expires: the largest number of 63 bits. Beyond it is no
/// lifetime.
const NEVER: f64 = i64::MAX as f64;
/// 136 years, in seconds; a longer lifetime counts as this one.
const MAX_LIFETIME: f64 = 4_294_967_295.0;

/// A successful token response (RFC 6749 §5.1).
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The access token.
    pub access_token: Secret<String>,
    /// The refresh token, if present. Without one the old one stays valid.
    pub refresh_token: Option<Secret<String>>,
    /// The ID token, if present (OpenID Connect Core §3.1.3.3).
    pub id_token: Option<Secret<String>>,
    /// The lifetime of the access token from [`Tokens::received`], if reported; zero ends it at once.
    pub expires_in: Option<Duration>,
    /// The lifetime of the refresh token from [`Tokens::received`], if reported.
    pub refresh_expires_in: Option<Duration>,
    /// The granted scopes, if reported.
    pub scope: Option<String>,
    /// The time of the request: a lifetime counts from the earliest moment it can have begun.
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
            ("<html>", "the response is not a JSON object"),
            (r#"{"error":"bad_code"}"#, "bad_code, with status 200"),
            (r#"{"token_type":"Bearer"}"#, "the response has no `access_token`"),
            (r#"{"access_token":"a"}"#, "the response has no `token_type`"),
            (
                r#"{"access_token":"a","token_type":"Bearer","scope":7}"#,
                "the response's `scope` is neither a string nor an array of strings",
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
            json!({ "access_token": "a\nb", "token_type": "Bearer" }),
            json!({ "access_token": "a b", "token_type": "Bearer" }),
            json!({ "access_token": "\u{e9}", "token_type": "Bearer" }),
            json!({ "access_token": "a", "token_type": "Bearer", "refresh_token": "r\r\n" }),
            json!({ "access_token": "a", "token_type": "Bearer", "id_token": "i\n" }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": -1 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": 1e300 }),
            json!({ "access_token": "a", "token_type": "Bearer", "expires_in": "soon" }),
            json!([]),
        ] {
            assert!(tokens(body.to_string().as_bytes(), NOW).is_err(), "{body}");
        }
    }

    #[test]
    fn a_lifetime_without_end_or_written_as_text_counts() {
        let lifetime = |expires_in: Value| {
            let body =
                json!({ "access_token": "a", "token_type": "Bearer", "expires_in": expires_in });
            tokens(body.to_string().as_bytes(), NOW).ok()?.expires_in.map(|life| life.as_secs())
        };

        assert_eq!(lifetime(json!(i64::MAX)), Some(u64::from(u32::MAX)));
        assert_eq!(lifetime(json!("3600.0")), Some(3600));
        for no_lifetime in [json!("-1"), json!("inf"), json!(" 1"), json!("1s"), json!(u64::MAX)] {
            assert_eq!(lifetime(no_lifetime.clone()), None, "{no_lifetime}");
        }
    }

    proptest! {
        #[test]
        fn no_lifetime_is_negative_or_without_end(number in any::<f64>()) {
            let body = json!({ "access_token": "a", "token_type": "Bearer", "expires_in": number });
            let read = tokens(body.to_string().as_bytes(), NOW);
            if let Some(lifetime) = read.ok().and_then(|tokens| tokens.expires_in) {
                prop_assert!(number >= 0.0);
                prop_assert!(lifetime <= Duration::from_secs(u64::from(u32::MAX)));
            }
        }
    }
}
