//! Strict JSON: one value, no duplicate members, bounded depth.
//!
//! Two parsers that disagree about a document with two `sub`s are a security
//! hole (RFC 7519 §4, RFC 8725 §2.4), and so is one that ignores what follows
//! the closing brace. All input from issuers and clients is parsed here.

use core::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses one JSON object: UTF-8, no duplicate member at any depth, at most 32 deep, nothing after it.
///
/// # Errors
///
/// [`MalformedJson`] for everything else.
pub fn parse_object(text: &[u8]) -> Result<Map<String, Value>, MalformedJson> {
    read(text, DuplicateMember::Refused)
}

/// Parses one JSON object as [`parse_object`] does, but an inner object with a duplicate
/// member becomes `null`: in a list of independent objects, such as a JWK set,
/// a bad one must not affect the others.
///
/// # Errors
///
/// [`MalformedJson`] if the outer object is.
pub fn parse_object_lenient(text: &[u8]) -> Result<Map<String, Value>, MalformedJson> {
    read(text, DuplicateMember::Null)
}

/// Decodes base64url without padding, in its canonical spelling (RFC 7515 §2).
///
/// # Errors
///
/// [`MalformedJson`] for padding, white space, foreign characters, and trailing
/// bits that are not zero: two spellings of one token would be two cache keys.
pub fn base64url(text: &str) -> Result<Vec<u8>, MalformedJson> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| MalformedJson)
}

/// The text is malformed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed JSON or base64url")]
pub struct MalformedJson;

fn read(text: &[u8], duplicates: DuplicateMember) -> Result<Map<String, Value>, MalformedJson> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let value = Strict { depth: MAX_DEPTH, duplicates, outermost: true }
        .deserialize(&mut reader)
        .map_err(|_| MalformedJson)?;
    reader.end().map_err(|_| MalformedJson)?;
    match value {
        Value::Object(members) => Ok(members),
        _ => Err(MalformedJson),
    }
}

/// The treatment of an object with a duplicate member.
#[derive(Clone, Copy)]
enum DuplicateMember {
    Refused,
    /// `null`, unless it is the outermost.
    Null,
}

/// Deserializes a value that may nest `depth` deep.
#[derive(Clone, Copy)]
struct Strict {
    depth: u8,
    duplicates: DuplicateMember,
    outermost: bool,
}

impl Strict {
    fn inner<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| E::custom("too deep"))?;
        Ok(Self { depth, outermost: false, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut values = Map::new();
        let mut duplicates = false;
        while let Some(name) = members.next_key::<String>()? {
            duplicates |= values.insert(name, members.next_value_seed(inner)?).is_some();
        }
        match (duplicates, self.duplicates) {
            (false, _) => Ok(Value::Object(values)),
            (true, DuplicateMember::Null) if !self.outermost => Ok(Value::Null),
            (true, _) => Err(A::Error::custom("a member twice")),
        }
    }
}

/// Nested objects and arrays, including the outermost.
const MAX_DEPTH: u8 = 32;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn one_object_is_parsed() {
        let read = parse_object(br#" {"a":[1,-2,1.5,"x",null,true,{"b":{}}]} "#).unwrap();

        assert_eq!(Value::Object(read), json!({"a": [1, -2, 1.5, "x", null, true, {"b": {}}]}));
    }

    #[test]
    fn a_duplicate_member_is_refused_at_any_depth() {
        for text in [
            r#"{"sub":"a","sub":"a"}"#,
            r#"{"sub":"a","\u0073ub":"b"}"#,
            r#"{"x":[{"y":{"a":1,"a":2}}]}"#,
        ] {
            assert_eq!(parse_object(text.as_bytes()), Err(MalformedJson), "{text}");
        }
    }

    #[test]
    fn a_duplicate_member_nulls_only_its_own_object_in_a_list() {
        let read = parse_object_lenient(br#"{"keys":[{"a":1,"a":2},{"b":3}]}"#).unwrap();

        assert_eq!(Value::Object(read), json!({"keys": [null, {"b": 3}]}));
        assert_eq!(parse_object_lenient(br#"{"keys":[],"keys":[]}"#), Err(MalformedJson));
    }

    #[test]
    fn everything_but_exactly_one_object_is_refused() {
        for text in [
            &b"[]"[..],
            b"1",
            b"\"a\"",
            b"null",
            b"",
            b"{",
            b"{}{}",
            b"{} x",
            b"{\"a\":1,}",
            b"{'a':1}",
            b"{\"a\":01}",
            b"{\"a\":1e999}",
            b"{\"a\":NaN}",
            b"{\"a\":\"\xff\"}",
            b"\xef\xbb\xbf{}",
            b"{\"a\":\"\\ud800\"}",
            b"{\"a\":\"\n\"}",
        ] {
            assert_eq!(parse_object(text), Err(MalformedJson), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn nesting_deeper_than_32_is_refused() {
        let nested = |depth: usize| {
            format!("{}{}{}", "{\"a\":".repeat(depth - 1), "{}", "}".repeat(depth - 1))
        };

        assert!(parse_object(nested(32).as_bytes()).is_ok());
        assert_eq!(parse_object(nested(33).as_bytes()), Err(MalformedJson));
        assert_eq!(parse_object(nested(100_000).as_bytes()), Err(MalformedJson));
    }

    #[test]
    fn base64url_has_one_spelling() {
        assert_eq!(base64url("YQ"), Ok(b"a".to_vec()));
        for text in ["YQ==", "YQ=", "YR", "Y", "Y Q", "YQ\n", "+w", "/w", "YQ.", "é"] {
            assert_eq!(base64url(text), Err(MalformedJson), "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsed_objects_equal_those_of_serde_json(text in r#"[\{\}\[\]",:0-9a-c\\u \.eE+-]{0,40}"#) {
            if let Ok(read) = parse_object(text.as_bytes()) {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::Object(read));
            }
        }

        #[test]
        fn decoded_base64url_encodes_to_the_same_text(text in "[A-Za-z0-9_=+/-]{0,30}") {
            if let Ok(bytes) = base64url(&text) {
                prop_assert_eq!(URL_SAFE_NO_PAD.encode(bytes), text);
            }
        }
    }
}
