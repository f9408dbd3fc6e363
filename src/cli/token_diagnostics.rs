//! Diagnoses why a token cannot be parsed as a JWT.
//!
//! The gateway refuses such a token with one error code, so that its sender learns nothing. A developer of an issuer
//! needs the details: which part, which member, and what is wrong with it.

use serde_json::{Map, Value};

use crate::base::strict_json;
use crate::token::ValidationRules;
use crate::token::principal::written_claim_at;

/// Returns why `token` is malformed by the `rules` of its issuer; `None` if it can be parsed.
pub(super) fn describe(token: &str, rules: &ValidationRules) -> Option<String> {
    read(token, rules).err()
}

fn read(token: &str, rules: &ValidationRules) -> Result<(), String> {
    if token.len() > rules.max_token_size {
        return Err(format!("it is longer than `max_token_size`, {} bytes", rules.max_token_size));
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, payload, signature] = parts[..] else {
        return Err(match parts.len() {
            5 if rules.decryption.is_none() => {
                "it is encrypted (JWE), and the issuer has no `decryption` keys".to_owned()
            }
            5 => "it is encrypted (JWE), and its content is not a signed token, or a part is malformed".to_owned(),
            1 => "it has 1 part; a signed token has 3".to_owned(),
            count => format!("it has {count} parts; a signed token has 3"),
        });
    };
    let named = |name: &'static str| move |why| format!("its {name} {why}");
    let header = object(header).map_err(named("header"))?;
    let claims = object(payload).map_err(named("payload"))?;
    bytes(signature).map_err(named("signature"))?;
    for name in ["kid", "typ"] {
        must_be("string", name, header.get(name), Value::is_string)?;
    }
    for name in ["iss", "sub"] {
        must_be("string", name, claims.get(name), Value::is_string)?;
    }
    for name in ["sid", "jti"] {
        must_be("string", name, written_claim_at(&claims, name), Value::is_string)?;
    }
    for name in ["exp", "nbf", "iat"] {
        must_be("number of seconds since 1970", name, claims.get(name), is_date)?;
    }
    let names = |value: &Value| match value {
        Value::Array(names) => names.iter().all(Value::is_string),
        value => value.is_string(),
    };
    must_be("string or list of strings", "aud", claims.get("aud"), names)?;
    let written = |path| Some((path, written_claim_at(&claims, path)?));
    let scopes = rules.scope_claim.iter().find_map(|path| written(&**path));
    if let Some((path, value)) =
        scopes.filter(|(path, value)| *path == "scope" || !value.is_object())
    {
        must_be("string or list of strings", path, Some(value), names)?;
    }
    let client = rules.client_claim.iter().find_map(|path| written(&**path));
    if let Some((path, value)) = client {
        must_be("name", path, Some(value), |value| {
            value.as_str().is_some_and(|name| !name.is_empty())
        })?;
    }
    must_be("object", "cnf", claims.get("cnf"), Value::is_object)
}

fn object(part: &str) -> Result<Map<String, Value>, &'static str> {
    let bytes = bytes(part)?;
    if let Ok(object) = strict_json::parse_object(&bytes) {
        return Ok(object);
    }
    Err(match serde_json::from_slice::<Value>(&bytes) {
        _ if core::str::from_utf8(&bytes).is_err() => "is not UTF-8",
        Err(_) => "is not JSON",
        Ok(value) if !value.is_object() => "is no JSON object",
        Ok(value) if depth(&value) > MAX_DEPTH => "nests deeper than 32",
        Ok(_) => "has a member twice",
    })
}

fn bytes(part: &str) -> Result<Vec<u8>, &'static str> {
    strict_json::base64url(part).map_err(|_| {
        if part.contains('=') {
            "is padded with `=`, but base64url in a JWT has no padding"
        } else if part.bytes().any(|b| !(b.is_ascii_alphanumeric() || b == b'-' || b == b'_')) {
            "has a character outside the base64url alphabet"
        } else {
            "has an invalid last base64url character: truncated or edited"
        }
    })
}

fn must_be(
    wanted: &str,
    name: &str,
    value: Option<&Value>,
    is: impl Fn(&Value) -> bool,
) -> Result<(), String> {
    match value {
        Some(value) if !is(value) => {
            let article = if wanted.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
            Err(format!("{name} is {}, not {article} {wanted}", kind(value)))
        }
        _ => Ok(()),
    }
}

/// Returns the kind of a JSON value, without the value, since the output may be shared.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.as_f64().is_some_and(|n| n < 0.0) => "below zero",
        Value::Number(_) => "a number of another kind",
        Value::String(text) if text.is_empty() => "empty",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether `value` is a date before the year 10000: later values count milliseconds, or are nonsense.
fn is_date(value: &Value) -> bool {
    value.as_f64().is_some_and(|seconds| (0.0..LAST_SECOND).contains(&seconds))
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

const MAX_DEPTH: usize = 32;
const LAST_SECOND: f64 = 253_402_300_800.0;

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;
    use crate::token::Audience;
    use crate::token::jwt::verify::Unverified;

    #[test]
    fn a_malformed_token_is_diagnosed() {
        let good = token(r#"{"alg":"ES256"}"#, r#"{"exp":1}"#);
        for (token, words) in [
            ("abc".to_owned(), "it has 1 part; a signed token has 3"),
            (format!("{good}.x"), "it has 4 parts; a signed token has 3"),
            (
                format!("{good}.x.y"),
                "it is encrypted (JWE), and the issuer has no `decryption` keys",
            ),
            ("x".repeat(16_385), "it is longer than `max_token_size`, 16384 bytes"),
            (
                format!("{good}="),
                "its signature is padded with `=`, but base64url in a JWT has no padding",
            ),
            (format!("{good}+"), "its signature has a character outside the base64url alphabet"),
            (
                format!("{good}B"),
                "its signature has an invalid last base64url character: truncated or edited",
            ),
            (token(r#"{"alg":"none","alg":"ES256"}"#, "{}"), "its header has a member twice"),
            (
                token(r#"{"alg":"ES256"}"#, r#"{"a":1,"\u0061":2}"#),
                "its payload has a member twice",
            ),
            (token("[]", "{}"), "its header is no JSON object"),
            (token("{", "{}"), "its header is not JSON"),
            (token(r#"{"alg":"ES256"}"#, r#"{"exp":1}x"#), "its payload is not JSON"),
            (
                token(
                    r#"{"alg":"ES256"}"#,
                    &format!(r#"{{"a":{}{}}}"#, "[".repeat(40), "]".repeat(40)),
                ),
                "its payload nests deeper than 32",
            ),
            (
                token(r#"{"alg":"ES256","kid":7}"#, "{}"),
                "kid is a number of another kind, not a string",
            ),
            (claims(r#"{"exp":"1"}"#), "exp is a string, not a number of seconds since 1970"),
            (claims(r#"{"nbf":-1}"#), "nbf is below zero, not a number of seconds since 1970"),
            (
                claims(r#"{"iat":1700000000000}"#),
                "iat is a number of another kind, not a number of seconds since 1970",
            ),
            (claims(r#"{"aud":["a",1]}"#), "aud is a list, not a string or list of strings"),
            (claims(r#"{"iss":["a"]}"#), "iss is a list, not a string"),
            (claims(r#"{"sub":null}"#), "sub is null, not a string"),
            (
                claims(r#"{"scope":true}"#),
                "scope is true or false, not a string or list of strings",
            ),
            (claims(r#"{"azp":""}"#), "azp is empty, not a name"),
            (claims(r#"{"cnf":"x"}"#), "cnf is a string, not an object"),
        ] {
            assert_eq!(describe(&token, &rules()).as_deref(), Some(words), "{token:.80}");
        }
        assert_eq!(describe(&good, &rules()), None);
    }

    #[test]
    fn a_token_without_diagnosis_is_parsed_by_the_gateway() {
        for claims in ["{}", r#"{"exp":1.5,"aud":[],"cnf":{},"scope":["a"],"client_id":"a"}"#] {
            let token = token(r#"{"alg":"ES256","kid":"a"}"#, claims);
            assert_eq!(describe(&token, &rules()), None);
            assert!(Unverified::read(&token).is_ok());
        }
    }

    fn rules() -> ValidationRules {
        ValidationRules::new(Audience::Any)
    }

    fn claims(claims: &str) -> String {
        token(r#"{"alg":"ES256"}"#, claims)
    }

    fn token(header: &str, claims: &str) -> String {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.AAAA", part(header), part(claims))
    }
}
