//! Reads single claims with exact types: one of another type is malformed, never absent.

use core::time::Duration;

use serde_json::{Map, Number, Value};

use crate::base::clock::Timestamp;
use crate::base::strict_json::base64url;
use crate::token::TokenError;
use crate::token::principal::Confirmation;

/// Returns a claim that is a string.
pub(super) fn text<'a>(
    claims: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(TokenError::Malformed),
    }
}

/// Returns a claim that is a string, or that is `null` because its issuer writes absent claims so.
pub(super) fn optional_text<'a>(
    claims: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a str>, TokenError> {
    if claims.get(name).is_some_and(Value::is_null) { Ok(None) } else { text(claims, name) }
}

/// One string or many (RFC 7519 §4.1.3).
pub(super) fn texts(value: &Value) -> Result<Box<[Box<str>]>, TokenError> {
    let values = match value {
        Value::String(text) => return Ok([Box::from(&**text)].into()),
        Value::Array(values) => values,
        _ => return Err(TokenError::Malformed),
    };
    values.iter().map(|value| value.as_str().map(Box::from).ok_or(TokenError::Malformed)).collect()
}

/// A `NumericDate`: a JSON number of seconds, fractions allowed (RFC 7519 §2).
pub(crate) fn date(
    claims: &Map<String, Value>,
    name: &str,
) -> Result<Option<Timestamp>, TokenError> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::Number(number)) => seconds(number).map(Some),
        Some(_) => Err(TokenError::Malformed),
    }
}

/// Rejects negative dates, and dates after the year 9999 such as milliseconds.
fn seconds(number: &Number) -> Result<Timestamp, TokenError> {
    if let Some(seconds) = number.as_u64() {
        return if seconds <= LAST_SECOND {
            Ok(Timestamp::from_secs(seconds))
        } else {
            Err(TokenError::Malformed)
        };
    }
    let seconds = number.as_f64().ok_or(TokenError::Malformed)?;
    if seconds.is_sign_negative() || seconds > LAST_SECOND as f64 {
        return Err(TokenError::Malformed);
    }
    Ok(Timestamp::from_secs(seconds as u64).plus(Duration::from_secs_f64(seconds.fract())))
}

/// Reads the confirmation method (RFC 7800 §3.1); several at once are not supported.
pub(super) fn confirmation(claim: Option<&Value>) -> Result<Option<Confirmation>, TokenError> {
    let members = match claim {
        None => return Ok(None),
        Some(Value::Object(members)) => members,
        Some(_) => return Err(TokenError::Malformed),
    };
    let mut members = members.iter();
    let (Some((name, value)), None) = (members.next(), members.next()) else {
        return Ok(Some(Confirmation::Unknown));
    };
    let digest = value
        .as_str()
        .and_then(|text| base64url(text).ok())
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    Ok(Some(match (&**name, digest) {
        ("jkt", Some(digest)) => Confirmation::Key(digest),
        ("x5t#S256", Some(digest)) => Confirmation::Certificate(digest),
        _ => Confirmation::Unknown,
    }))
}

/// Whether the claims declare the token to be for `DPoP`: `token_type` (RFC 9449 §5 and §6.2), or Keycloak's `typ`.
pub(super) fn is_for_dpop(claims: &Map<String, Value>) -> bool {
    ["token_type", "typ"].iter().any(|name| {
        let named = claims.get(*name).and_then(Value::as_str);
        named.is_some_and(|named| named.trim().eq_ignore_ascii_case("DPoP"))
    })
}

/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_date_of_the_wrong_type_is_not_an_absent_one() {
        for bad in [
            json!("1700000100"),
            json!(null),
            json!(true),
            json!([1_700_000_100]),
            json!({}),
            json!(-1),
            json!(-0.0),
            json!(1_700_000_100_000_u64),
            json!(u64::MAX),
            json!(1e300),
        ] {
            let claims = json!({ "exp": bad });
            let read = date(claims.as_object().unwrap(), "exp");
            assert_eq!(read, Err(TokenError::Malformed), "{bad}");
        }
        assert_eq!(date(&Map::new(), "exp"), Ok(None));
    }

    #[test]
    fn every_confirmation_method_is_recognized_or_unknown() {
        let digest = crate::issuer::keys::jwk::to_base64url(&[7; 32]);
        for (cnf, expected) in [
            (json!({ "jkt": digest }), Confirmation::Key([7; 32])),
            (json!({ "x5t#S256": digest }), Confirmation::Certificate([7; 32])),
            (json!({ "jkt": digest, "x5t#S256": digest }), Confirmation::Unknown),
            (json!({ "jkt": "short" }), Confirmation::Unknown),
            (json!({ "jwk": {} }), Confirmation::Unknown),
            (json!({}), Confirmation::Unknown),
        ] {
            assert_eq!(confirmation(Some(&cnf)), Ok(Some(expected)), "{cnf}");
        }
    }

    proptest! {
        #[test]
        fn any_number_is_read_as_a_date_without_panic(number in any::<f64>(), whole in any::<i64>()) {
            for value in [json!(number), json!(whole)] {
                let _ = date(json!({ "exp": value }).as_object().unwrap(), "exp");
            }
        }
    }
}
