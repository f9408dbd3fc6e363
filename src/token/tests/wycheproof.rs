//! The public Wycheproof vectors for JSON Web Signature and Key, and those for
//! Encryption, all of which must be refused.

use std::path::PathBuf;

use serde_json::Value;

use crate::base::strict_json::base64url;
use crate::issuer::{Jwks, Key};
use crate::token::jwt::jws::Jws;

#[test]
fn signatures_and_keys_match_the_wycheproof_vectors() {
    let files =
        ["json_web_signature_test.json", "json_web_key_test.json", "json_web_crypto_test.json"];
    let mut judged = 0;
    for file in files {
        let Some(groups) = groups(file) else { return };
        for group in groups {
            let keys = keys(&group);
            for test in group["tests"].as_array().unwrap() {
                let Some(token) = test["jws"].as_str() else { continue };
                let id = test["tcId"].as_u64().unwrap();
                let accepted = accepts(keys.as_ref(), token);
                let expected = match ours(file, id) {
                    Some(ours) => ours,
                    None => test["result"] == "valid",
                };
                assert_eq!(accepted, expected, "{file} {id}: {}", test["comment"]);
                judged += 1;
            }
        }
    }
    assert!(judged > 450, "only {judged} vectors were read");
}

#[test]
fn every_encrypted_token_is_refused() {
    let Some(groups) = groups("json_web_encryption_test.json") else { return };
    let mut judged = 0;
    for group in groups {
        let keys = keys(&group);
        for test in group["tests"].as_array().unwrap() {
            let token = test["jwe"].as_str().unwrap();
            assert!(Jws::parse(token).is_err() && !accepts(keys.as_ref(), token), "{token}");
            judged += 1;
        }
    }
    assert!(judged > 100, "only {judged} vectors were read");
}

fn accepts(keys: Option<&Jwks>, token: &str) -> bool {
    keys.is_some_and(|keys| Jws::parse(token).is_ok_and(|jws| jws.verify(keys, None).is_ok()))
}

/// The vectors that we judge differently, and the expected result.
fn ours(file: &str, id: u64) -> Option<bool> {
    if file != "json_web_signature_test.json" {
        return None;
    }
    match id {
        // PS384 with a key whose `alg` is PS256 (346, 350): one key, one algorithm.
        // A key whose `alg` is "ES521" (347, 351), which is not an algorithm.
        // A question mark in the middle of base64url (372, 373).
        346 | 350 | 347 | 351 | 372 | 373 => Some(false),
        // Identical to the token of 357, which is valid.
        367 | 370 => Some(true),
        _ => None,
    }
}

/// A group's keys as a JWK set; a symmetric key as an operator configures it.
fn keys(group: &Value) -> Option<Jwks> {
    let given = group.get("public").unwrap_or(&group["private"]);
    let one = std::slice::from_ref(given);
    let keys = given["keys"].as_array().map_or(one, Vec::as_slice);
    if let Some(symmetric) = keys.iter().find(|key| key["kty"] == "oct") {
        // A symmetric key is configured alone, and never mixed with a set.
        let named = |kid: &Value| keys.iter().filter(|key| key["kid"] == *kid).count();
        let alone = keys.iter().all(|key| key["kty"] == "oct") && named(&symmetric["kid"]) == 1;
        let for_hmac = symmetric["alg"].as_str().is_some_and(|alg| alg.starts_with("HS"));
        let secret = base64url(symmetric["k"].as_str()?).ok()?;
        return (alone && for_hmac && symmetric["use"] == "sig")
            .then(|| Jwks::from_secret(&secret));
    }
    let text = serde_json::json!({ "keys": keys }).to_string();
    Jwks::parse(text.as_bytes(), |_, _| ()).ok().filter(|keys| !keys.is_empty())
}

fn groups(file: &str) -> Option<Vec<Value>> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/vectors/wycheproof");
    let path = PathBuf::from(folder).join(file);
    let Ok(text) = std::fs::read(&path) else {
        skipped(&path);
        return None;
    };
    let document: Value = serde_json::from_slice(&text).unwrap();
    Some(document["testGroups"].as_array().unwrap().clone())
}

#[expect(clippy::print_stderr, reason = "a person who runs the tests must see what did not run")]
fn skipped(path: &std::path::Path) {
    eprintln!("skipped: there are no Wycheproof vectors at {}", path.display());
}

#[test]
fn a_symmetric_key_without_its_secret_is_refused() {
    assert!(Key::from_jwk(&serde_json::Map::new()).is_err());
}
