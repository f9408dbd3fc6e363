//! JWS compact serialization: parsing and signature verification (RFC 7515 §3.1).
//!
//! The token cannot supply its key: `jwk`, `jku`, `x5c` and `x5u` are ignored like every
//! other header parameter that is not understood (RFC 7515 §4), and `alg` only selects
//! among what the issuer's rules and the key allow. Only `crit` can demand more.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::base::strict_json;
use crate::issuer::{Algorithm, Jwks, Key, KeySelectionError};
use crate::token::TokenError;

/// A token in the compact serialization. Unverified until [`Jws::verify`].
pub(crate) struct Jws<'t> {
    /// `alg`: the declared algorithm.
    pub(crate) algorithm: Algorithm,
    /// `kid`: the identifier of the issuer's key.
    pub(crate) kid: Option<String>,
    /// `typ` in lower case, without `application/`; `jwt` if there is none.
    pub(crate) typ: String,
    /// The whole header.
    pub(crate) header: Map<String, Value>,
    /// The decoded payload.
    pub(crate) payload: Vec<u8>,
    signed: &'t str,
    signature: Vec<u8>,
}

impl<'t> Jws<'t> {
    /// Parses `token`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Malformed`] if it is not three parts of canonical base64url
    /// with a JSON object in front;
    /// [`TokenError::TooLarge`] if it is larger than 16 KiB;
    /// [`TokenError::Algorithm`] if `alg` is not a supported algorithm;
    /// [`TokenError::Critical`] if it requires an extension.
    pub(crate) fn parse(token: &'t str) -> Result<Self, TokenError> {
        Self::parse_within(token, DEFAULT_MAX_TOKEN_SIZE)
    }

    /// Parses `token`, as [`Jws::parse`] does, if it has at most `max_size` bytes.
    ///
    /// # Errors
    ///
    /// As [`Jws::parse`].
    pub(crate) fn parse_within(token: &'t str, max_size: usize) -> Result<Self, TokenError> {
        // Before anything is decoded.
        if token.len() > max_size {
            return Err(TokenError::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        // A fourth dot is outside the alphabet, so that three parts are exactly three.
        let header = decode(header)?;
        let mut header = strict_json::parse_object(&header).map_err(|_| TokenError::Malformed)?;
        let payload = decode(payload)?;
        let signature = decode(signature)?;

        if changes_meaning(&header) {
            return Err(TokenError::Critical);
        }
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => name.parse().map_err(|_| TokenError::Algorithm)?,
            _ => return Err(TokenError::Algorithm),
        };
        let kid = match header.remove("kid") {
            None => None,
            // Some servers write an empty `kid`, which names no key.
            Some(Value::String(kid)) if kid.is_empty() => None,
            Some(Value::String(kid)) => Some(kid),
            Some(_) => return Err(TokenError::Malformed),
        };
        let typ = match header.get("typ") {
            None => "jwt".to_owned(),
            Some(Value::String(typ)) => media_type(typ),
            Some(_) => return Err(TokenError::Malformed),
        };
        Ok(Self { algorithm, kid, typ, header, payload, signed, signature })
    }

    /// Verifies the signature with the issuer's key that this token names and that may sign for its `iss`, and returns
    /// the key.
    ///
    /// # Errors
    ///
    /// [`TokenError::UnknownKey`] if there is no such key,
    /// [`TokenError::Algorithm`] if the key is not for this algorithm,
    /// [`TokenError::Signature`] if no such key verifies the signature.
    pub(crate) fn verify(&self, keys: &Jwks, iss: Option<&str>) -> Result<Arc<Key>, TokenError> {
        let verifies = |key: &Key| key.may_sign_for(iss) && self.verify_with(key).is_ok();
        match keys.select(self.kid.as_deref(), self.algorithm, verifies) {
            Ok(key) => Ok(Arc::clone(key)),
            Err(KeySelectionError::Unfit) => Err(TokenError::Algorithm),
            Err(KeySelectionError::Unknown) => Err(TokenError::UnknownKey),
            Err(KeySelectionError::NoneVerifies) => Err(TokenError::Signature),
        }
    }

    /// Returns the signature.
    pub(crate) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// Verifies the signature with `key`.
    ///
    /// # Errors
    ///
    /// [`TokenError::Signature`] if it is wrong.
    pub(crate) fn verify_with(&self, key: &Key) -> Result<(), TokenError> {
        key.verify(self.algorithm, self.signed.as_bytes(), &self.signature)
            .map_err(|_| TokenError::Signature)
    }
}

fn decode(part: &str) -> Result<Vec<u8>, TokenError> {
    strict_json::base64url(part).map_err(|_| TokenError::Malformed)
}

/// Normalizes `typ` for comparison (RFC 7515 §4.1.9).
fn media_type(typ: &str) -> String {
    let typ = typ.to_ascii_lowercase();
    typ.strip_prefix("application/").map(str::to_owned).unwrap_or(typ)
}

/// Whether the header says that the rest is to be read otherwise: extensions marked critical (none is supported),
/// `b64` for a payload that is not base64url, which a JWT must not have (RFC 7797 §7), and `enc`, by which
/// other parsers take the token for an encrypted one (RFC 7516 §9).
fn changes_meaning(header: &Map<String, Value>) -> bool {
    header.contains_key("crit")
        || header.contains_key("enc")
        || header.get("b64").is_some_and(|b64| *b64 != Value::Bool(true))
}

/// Bytes of a token, unless an issuer's `max_token_size` says otherwise.
pub(crate) const DEFAULT_MAX_TOKEN_SIZE: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::issuer::keys::jwk::to_base64url;

    #[test]
    fn a_token_is_parsed() {
        let token = token(&json!({ "alg": "ES256", "kid": "a", "typ": "application/AT+JWT" }));

        let jws = Jws::parse(&token).unwrap();

        assert_eq!(jws.algorithm, Algorithm::Es256);
        assert_eq!(jws.kid.as_deref(), Some("a"));
        assert_eq!(jws.typ, "at+jwt");
        assert_eq!(jws.payload, b"{}");
    }

    #[test]
    fn an_absent_type_counts_as_jwt() {
        assert_eq!(Jws::parse(&token(&json!({ "alg": "ES256" }))).unwrap().typ, "jwt");
    }

    #[test]
    fn an_empty_kid_names_no_key() {
        assert_eq!(Jws::parse(&token(&json!({ "alg": "ES256", "kid": "" }))).unwrap().kid, None);
    }

    #[test]
    fn unsupported_algorithms_are_refused() {
        for alg in [
            json!("none"),
            json!("NONE"),
            json!("nOnE"),
            json!(""),
            json!(null),
            json!(["ES256"]),
            json!({}),
            json!(0),
            json!("es256"),
            json!("ES256 "),
            json!("ES256K"),
            json!("RS1"),
            json!("PBES2-HS256+A128KW"),
            json!("RSA-OAEP"),
            json!("dir"),
        ] {
            let token = token(&json!({ "alg": alg }));
            assert_eq!(Jws::parse(&token).err(), Some(TokenError::Algorithm), "{alg}");
        }
        assert_eq!(Jws::parse(&token(&json!({}))).err(), Some(TokenError::Algorithm));
    }

    #[test]
    fn a_critical_extension_of_a_jws_is_refused() {
        for (name, value) in [
            ("crit", json!(["exp"])),
            ("crit", json!([])),
            ("crit", json!(null)),
            ("b64", json!(false)),
            ("b64", json!(null)),
            ("enc", json!("A256GCM")),
        ] {
            let token = token(&json!({ "alg": "ES256", name: value }));
            assert_eq!(Jws::parse(&token).err(), Some(TokenError::Critical), "{name}");
        }
    }

    #[test]
    fn header_parameters_that_are_not_understood_are_ignored() {
        for (name, value) in [
            ("zip", json!("DEF")),
            ("cty", json!("JWT")),
            ("cty", json!(null)),
            ("b64", json!(true)),
            ("x5t", json!("AAAA")),
            ("jku", json!("https://evil.example.com")),
            ("epk", json!({ "kty": "EC" })),
            ("https://example.com/own", json!([1, { "a": null }])),
        ] {
            let token = token(&json!({ "alg": "ES256", name: value }));
            assert!(Jws::parse(&token).is_ok(), "{name}: {value}");
        }
    }

    #[test]
    fn members_of_the_wrong_type_are_refused() {
        for header in [
            json!({ "alg": "ES256", "kid": 7 }),
            json!({ "alg": "ES256", "kid": null }),
            json!({ "alg": "ES256", "typ": ["JWT"] }),
            json!({ "alg": "ES256", "typ": null }),
            json!(["alg"]),
        ] {
            assert_eq!(Jws::parse(&token(&header)).err(), Some(TokenError::Malformed), "{header}");
        }
    }

    #[test]
    fn everything_but_three_canonical_parts_is_refused() {
        let good = token(&json!({ "alg": "ES256" }));
        let parts: Vec<_> = good.split('.').collect();
        let [header, payload, signature] = parts[..] else { unreachable!() };
        let twice = to_base64url(br#"{"alg":"none","alg":"ES256"}"#);

        for bad in [
            String::new(),
            ".".into(),
            "..".into(),
            "...".into(),
            header.into(),
            format!("{header}.{payload}"),
            format!("{good}."),
            format!(".{good}"),
            format!("{good}.{signature}"),
            format!("{good}.{payload}.{signature}"),
            format!("{good}="),
            format!("{good} "),
            format!(" {good}"),
            format!("{good}\n"),
            format!("{header}.{payload}=.{signature}"),
            format!("{header}..{payload}.{signature}"),
            format!("{twice}.{payload}.{signature}"),
            format!("{header}.{payload}.+/{signature}"),
            r#"{"payload":"e30","protected":"eyJhbGciOiJFUzI1NiJ9","signature":"AAAA"}"#.into(),
            format!(r#"{{"x":"{good}"}}"#),
        ] {
            assert_eq!(Jws::parse(&bad).err(), Some(TokenError::Malformed), "{bad}");
        }
    }

    #[test]
    fn large_tokens_are_refused_before_decoding() {
        let good = token(&json!({ "alg": "ES256", "x": "x".repeat(11_000) }));
        let large = token(&json!({ "alg": "ES256", "x": "x".repeat(12_300) }));

        assert!(good.len() <= DEFAULT_MAX_TOKEN_SIZE && large.len() > DEFAULT_MAX_TOKEN_SIZE);
        assert!(Jws::parse(&good).is_ok());
        assert_eq!(Jws::parse(&large).err(), Some(TokenError::TooLarge));
        assert!(Jws::parse_within(&large, large.len()).is_ok());
        assert_eq!(Jws::parse(&".".repeat(10_000_000)).err(), Some(TokenError::TooLarge));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_panic(token in r"[A-Za-z0-9_=. -]{0,60}") {
            let _ = Jws::parse(&token);
        }

        #[test]
        fn a_token_has_one_spelling(header in r#"\{"alg":"ES256"[a-z":, \{\}]{0,12}\}"#, cut in 0_usize..8) {
            let mut token = format!("{}.e30.AAAA", to_base64url(header.as_bytes()));
            if Jws::parse(&token).is_ok() {
                // Any other last character of the header's part decodes to something else or is refused.
                let end = token.find('.').unwrap() - 1;
                let other = b"ABCDwxyz"[cut] as char;
                token.replace_range(end..=end, &other.to_string());
                if let Ok(read) = Jws::parse(&token) {
                    prop_assert_eq!(read.signed.split('.').next().unwrap(), &token[..=end]);
                }
            }
        }
    }

    fn token(header: &Value) -> String {
        format!("{}.e30.AAAA", to_base64url(header.to_string().as_bytes()))
    }
}
