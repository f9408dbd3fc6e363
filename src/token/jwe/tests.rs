//! The ring against tokens of an independent implementation and of the RFCs, and against forgeries.

use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::keys::signing_key::SigningKey;

#[test]
fn tokens_of_another_implementation_are_opened() {
    let vectors = vectors();
    let ring = ring(&vectors);
    for case in vectors["tokens"].as_array().unwrap() {
        let opened = ring.open(case["token"].as_str().unwrap());
        let opened = opened.unwrap_or_else(|error| panic!("{}: {error}", case["what"]));
        assert_eq!(opened.expose(), vectors["plaintext"].as_str().unwrap(), "{}", case["what"]);
    }
}

#[test]
fn the_examples_of_rfc_7516_are_decrypted_and_refused_for_what_they_are() {
    let vectors = vectors();
    for case in vectors["rfc"].as_array().unwrap() {
        let key = DecryptionKey::from_jwk(case["key"].as_object().unwrap()).unwrap();
        let ring = with_keys(vec![key]);
        let token = case["token"].as_str().unwrap();

        assert_eq!(ring.content(token).unwrap(), case["plaintext"].as_str().unwrap().as_bytes());
        assert_eq!(ring.open(token).err(), Some(TokenError::Malformed), "no signed token");
    }
}

#[test]
fn content_that_is_not_a_signed_token_under_a_named_algorithm_is_refused() {
    let vectors = vectors();
    let ring = ring(&vectors);
    for case in vectors["refused"].as_array().unwrap() {
        assert!(ring.open(case["token"].as_str().unwrap()).is_err(), "{}", case["what"]);
    }
}

#[test]
fn only_named_algorithms_and_known_keys_open_a_token() {
    let vectors = vectors();
    let token = |what: &str| {
        let cases = vectors["tokens"].as_array().unwrap();
        let case = cases.iter().find(|case| case["what"] == what).unwrap();
        case["token"].as_str().unwrap().to_owned()
    };
    let mut ring = ring(&vectors);
    ring.algorithms = vec![KeyManagement::RsaOaep256];
    ring.encryptions = vec![ContentEncryption::A256Gcm];

    assert!(ring.open(&token("RSA-OAEP-256 A256GCM rsa")).is_ok());
    for other in ["RSA-OAEP A256GCM rsa", "RSA-OAEP-256 A128GCM rsa", "dir A256GCM s32"] {
        assert_eq!(ring.open(&token(other)).err(), Some(TokenError::Algorithm), "{other}");
    }
    ring.keys.retain(|key| key.kid() != Some("rsa"));
    let unknown = ring.open(&token("RSA-OAEP-256 A256GCM rsa")).err();
    assert_eq!(unknown, Some(TokenError::UnknownKey));
}

#[test]
fn a_token_that_was_changed_anywhere_does_not_authenticate() {
    let vectors = vectors();
    let ring = ring(&vectors);
    for case in vectors["tokens"].as_array().unwrap().iter().step_by(3) {
        let token = case["token"].as_str().unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        for at in 1..5 {
            let Ok(mut bytes) = strict_json::base64url(parts[at]) else { unreachable!() };
            if bytes.is_empty() {
                continue;
            }
            bytes[0] ^= 1;
            let changed = to_base64url(&bytes);
            let mut forged = parts.clone();
            forged[at] = &changed;
            let refused = ring.open(&forged.join(".")).err();
            assert_eq!(refused, Some(TokenError::Signature), "{} part {at}", case["what"]);
            // A tag or key that was cut is no shorter proof.
            let cut = to_base64url(&bytes[..bytes.len() / 2]);
            forged[at] = &cut;
            assert!(ring.open(&forged.join(".")).is_err(), "{} part {at} cut", case["what"]);
        }
    }
}

#[test]
fn a_header_cannot_demand_more_than_it_may() {
    let vectors = vectors();
    let ring = ring(&vectors);
    let case = &vectors["tokens"][0]["token"];
    let (header, rest) = case.as_str().unwrap().split_once('.').unwrap();
    let header = strict_json::parse_object(&strict_json::base64url(header).unwrap()).unwrap();
    let with = |name: &str, value: Value| {
        let mut header = header.clone();
        header.insert(name.to_owned(), value);
        ring.open(&format!("{}.{rest}", to_base64url(Value::Object(header).to_string().as_bytes())))
    };

    assert_eq!(with("zip", "DEF".into()).err(), Some(TokenError::Critical));
    assert_eq!(with("crit", Value::Array(vec!["exp".into()])).err(), Some(TokenError::Critical));
    for alg in ["none", "RSA1_5", "PBES2-HS256+A128KW", "HS256", "", "rsa-oaep"] {
        assert_eq!(with("alg", alg.into()).err(), Some(TokenError::Algorithm), "{alg}");
    }
    assert_eq!(with("kid", 7.into()).err(), Some(TokenError::Malformed));
    assert_eq!(with("kid", "other".into()).err(), Some(TokenError::UnknownKey));
}

#[test]
fn an_ephemeral_key_off_the_curve_or_of_another_curve_is_refused() {
    let vectors = vectors();
    let ring = ring(&vectors);
    let cases = vectors["tokens"].as_array().unwrap();
    let case = cases.iter().find(|case| case["what"] == "ECDH-ES A256GCM p256").unwrap();
    let (header, rest) = case["token"].as_str().unwrap().split_once('.').unwrap();
    let header = strict_json::parse_object(&strict_json::base64url(header).unwrap()).unwrap();
    let with = |changes: &[(&str, Value)]| {
        let mut header = header.clone();
        let ephemeral = header.get_mut("epk").and_then(Value::as_object_mut).unwrap();
        for (name, value) in changes {
            ephemeral.insert((*name).to_owned(), value.clone());
        }
        ring.open(&format!("{}.{rest}", to_base64url(Value::Object(header).to_string().as_bytes())))
    };
    let number = |byte: u8, len: usize| Value::from(to_base64url(&vec![byte; len]));

    for changes in [
        &[("x", number(1, 32)), ("y", number(1, 32))][..],
        &[("x", number(0, 32)), ("y", number(0, 32))],
        &[("x", number(0xff, 32))],
        &[("x", number(1, 31))],
        &[("crv", "P-384".into())],
        &[("crv", "X25519".into()), ("kty", "OKP".into())],
        &[("kty", "oct".into())],
        &[("y", Value::Null)],
    ] {
        assert_eq!(with(changes).err(), Some(TokenError::Signature), "{changes:?}");
    }
}

#[test]
fn keys_for_another_use_or_without_private_part_are_refused() {
    let vectors = vectors();
    let rsa = vectors["keys"][0].as_object().unwrap();
    let with = |name: &str, value: Value| {
        let mut key = rsa.clone();
        key.insert(name.to_owned(), value);
        DecryptionKey::from_jwk(&key).map(|_| ())
    };

    assert_eq!(with("use", "enc".into()), Ok(()));
    assert_eq!(with("use", "sig".into()), Err(BadDecryptionKey::Use));
    assert_eq!(with("alg", "RS256".into()), Err(BadDecryptionKey::Use));
    assert_eq!(with("alg", "RSA-OAEP".into()), Ok(()));
    assert_eq!(with("d", Value::Null), Err(BadDecryptionKey::Members));
    assert_eq!(with("kty", "AKP".into()), Err(BadDecryptionKey::Type));
    let direct = serde_json::json!({ "kty": "oct", "k": to_base64url(&[9; 32]), "alg": "A256GCM" });
    let direct = DecryptionKey::from_jwk(direct.as_object().unwrap()).unwrap();
    assert!(direct.supports(KeyManagement::Direct) && !direct.supports(KeyManagement::A256Kw));
    let short = serde_json::json!({ "kty": "oct", "k": to_base64url(&[9; 10]) });
    let short = DecryptionKey::from_jwk(short.as_object().unwrap()).unwrap();
    assert!(!short.supports(KeyManagement::Direct), "no content encryption has such a key");
}

#[test]
fn a_pem_key_is_found_by_its_thumbprint() {
    let pem = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap().serialize_pem();
    let key = DecryptionKey::from_pem(pem.as_bytes()).unwrap();

    let signing = SigningKey::from_pem(pem.as_bytes()).unwrap().with_thumbprint_kid();
    assert_eq!(key.kid(), signing.kid());
    assert!(key.supports(KeyManagement::EcdhEs) && !key.supports(KeyManagement::RsaOaep));
    assert!(DecryptionKey::from_pem(b"-----BEGIN NOTHING-----").is_err());
}

proptest! {
    #[test]
    fn any_text_is_refused_without_panic(token in r"[A-Za-z0-9_=.-]{0,80}") {
        prop_assert!(with_keys(Vec::new()).open(&token).is_err());
    }
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("vectors.json")).unwrap()
}

fn ring(vectors: &Value) -> DecryptionKeys {
    let keys = vectors["keys"].as_array().unwrap().iter();
    with_keys(keys.map(|key| DecryptionKey::from_jwk(members(key)).unwrap()).collect())
}

fn members(key: &Value) -> &Map<String, Value> {
    key.as_object().unwrap()
}

fn with_keys(keys: Vec<DecryptionKey>) -> DecryptionKeys {
    DecryptionKeys {
        keys,
        algorithms: KeyManagement::ALL.map(|(_, algorithm)| algorithm).into(),
        encryptions: ContentEncryption::ALL.map(|(_, encryption)| encryption).into(),
    }
}
