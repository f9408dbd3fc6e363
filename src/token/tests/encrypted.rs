//! Encrypted access tokens, from the request to the principal.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde_json::json;

use super::*;
use crate::issuer::keys::jwk::to_base64url;
use crate::token::{ContentEncryption, DecryptionKey, DecryptionKeys, KeyManagement, TokenFormat};

#[tokio::test]
async fn a_signed_token_inside_an_encrypted_one_is_verified_and_cached() {
    let bench = bench().await;
    let token = encrypted(&bench.token(json!({ "scope": "orders:read" })));

    let principal = bench.jwt(&token).await.unwrap();

    assert_eq!(principal.subject.as_deref(), Some("alice"));
    assert_eq!(principal.form, TokenFormat::Signed);
    let verifier = bench.verifier(TokenUse::Jwt);
    let again = verifier.cached(token.as_bytes(), bench.clock.now(), None).unwrap();
    assert!(Arc::ptr_eq(&principal, &again), "a second use decrypts nothing");
}

/// CVE-2026-29000: a public key is enough to encrypt.
#[tokio::test]
async fn encryption_is_no_signature() {
    let bench = bench().await;
    let claims = bench.claims(json!({ "sub": "root" }));
    let none = to_base64url(br#"{"alg":"none"}"#);
    let forger = signing_key("k1");
    let forged = forger.sign_jwt(&json!({ "alg": "ES256", "kid": "k1" }), &claims).unwrap();

    for inner in [
        claims.to_string(),
        format!("{none}.{}.", to_base64url(claims.to_string().as_bytes())),
        forged,
        encrypted(&bench.token(json!({}))),
        bench.token(json!({ "aud": "other" })),
        bench.token(json!({ "exp": NOW - 100 })),
        bench.token(json!({ "iss": "https://evil.example" })),
        String::new(),
    ] {
        assert!(bench.jwt(&encrypted(&inner)).await.is_err(), "{inner:.60}");
    }
}

#[tokio::test]
async fn a_revoked_encrypted_token_is_refused() {
    let bench = bench().await;
    let token = encrypted(&bench.token(json!({ "jti": "t1" })));
    assert!(bench.jwt(&token).await.is_ok());

    bench.verifier(TokenUse::Jwt).withdraw(&token);

    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked));
}

#[tokio::test]
async fn a_token_inside_an_encrypted_one_may_be_as_large_as_the_issuer_says() {
    let bench = with_rules(|rules| rules.max_token_size = 64 * 1024).await;
    let token = bench.token(json!({ "groups": "g".repeat(20_000) }));

    assert!(bench.jwt(&token).await.is_ok());
    assert!(bench.jwt(&encrypted(&token)).await.is_ok());
}

#[tokio::test]
async fn without_keys_an_encrypted_token_is_no_jwt() {
    let plain = Bench::new().await;

    let refused = plain.jwt(&encrypted(&plain.token(json!({})))).await;

    assert_eq!(refused.err(), Some(TokenError::Malformed));
}

async fn bench() -> Bench {
    with_rules(|_| ()).await
}

async fn with_rules(change: impl FnOnce(&mut ValidationRules)) -> Bench {
    let secret = json!({ "kty": "oct", "kid": "d", "k": to_base64url(&SECRET) });
    let key = DecryptionKey::from_jwk(secret.as_object().unwrap()).unwrap();
    let ring = DecryptionKeys {
        keys: vec![key],
        algorithms: vec![KeyManagement::Direct],
        encryptions: vec![ContentEncryption::A256Gcm],
    };
    let rules = |rules: &mut ValidationRules| {
        rules.decryption = Some(Arc::new(ring));
        change(rules);
    };
    Bench::with(|_| (), rules).await
}

fn encrypted(content: &str) -> String {
    let header = to_base64url(br#"{"alg":"dir","enc":"A256GCM","kid":"d","cty":"JWT"}"#);
    let iv = [7; 12];
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &SECRET).unwrap());
    let mut bytes = content.as_bytes().to_vec();
    let nonce = Nonce::assume_unique_for_key(iv);
    key.seal_in_place_append_tag(nonce, Aad::from(header.as_bytes()), &mut bytes).unwrap();
    let (ciphertext, tag) = bytes.split_at(content.len());
    let [iv, ciphertext, tag] = [&iv[..], ciphertext, tag].map(to_base64url);
    format!("{header}..{iv}.{ciphertext}.{tag}")
}

const SECRET: [u8; 32] = [9; 32];
