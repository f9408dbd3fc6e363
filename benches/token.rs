//! What a request pays for its token: known already, or verified anew beside the bare signature.

use std::hint::black_box;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use divan::Bencher;
use futures_util::FutureExt as _;
use northgate::base::clock::Clock;
use northgate::base::strict_json;
use northgate::issuer::keys::signing_key::SigningKey;
use northgate::issuer::{Discovery, Issuer, Settings};
use northgate::observe::metrics::Metrics;
use northgate::token::{
    Audience, IssuerVerifier, RevocationList, TokenUse, ValidationRules, Verifier,
};
use serde_json::json;
use tokio::runtime::{Handle, Runtime};

fn main() {
    divan::main();
}

#[divan::bench(args = ["RS256", "ES256", "EdDSA"])]
fn anew(bencher: Bencher<'_, '_>, algorithm: &str) {
    let (runtime, clock) = (runtime(), Clock::system());
    let key = match algorithm {
        "RS256" => key(&rcgen::PKCS_RSA_SHA256),
        "ES256" => key(&rcgen::PKCS_ECDSA_P256_SHA256),
        _ => key(&rcgen::PKCS_ED25519),
    };
    let forgetful = verifier(&key, &clock, runtime.handle(), 0);
    let token = token(&key, 0, &clock);
    bencher.bench_local(|| verify(&forgetful, &token, &clock));
}

#[divan::bench]
fn the_signature_alone(bencher: Bencher<'_, '_>) {
    let key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let token = token(&key, 0, &Clock::system());
    let (signed, signature) = token.rsplit_once('.').expect("a signature");
    let (signature, key) = (strict_json::base64url(signature).expect("base64url"), point(&key));
    bencher.bench_local(|| key.verify_sig(black_box(signed.as_bytes()), &signature));
}

#[divan::bench(args = [1, 10_000])]
fn known_in_turn(bencher: Bencher<'_, '_>, tokens: u32) {
    let (runtime, clock) = (runtime(), Clock::system());
    let key = key(&rcgen::PKCS_ECDSA_P256_SHA256);
    let remembering = verifier(&key, &clock, runtime.handle(), 50_000);
    let tokens: Vec<_> = (0..tokens).map(|number| token(&key, number, &clock)).collect();
    for token in &tokens {
        verify(&remembering, token, &clock);
    }
    let mut turn = tokens.iter().cycle();
    bencher.bench_local(|| verify(&remembering, turn.next().expect("endless"), &clock));
}

fn verify(verifier: &Verifier, token: &str, clock: &Clock) {
    let verdict = verifier.verify(token, clock.now(), None).now_or_never();
    black_box(verdict.expect("no waiting").expect("a good token"));
}

fn runtime() -> Runtime {
    Runtime::new().expect("a runtime")
}

fn verifier(key: &SigningKey, clock: &Clock, control: &Handle, kept: u64) -> Verifier {
    let metrics = Metrics::new(&[1.0]);
    let mut settings = Settings::new("main", ISSUER);
    settings.discovery = Discovery::Off;
    settings.jwks = Some(json!({ "keys": [key.public_jwk()] }).to_string().into());
    let issuer = Issuer::new(settings, clock.clone(), &metrics, control.clone());
    let mut rules =
        ValidationRules::new(Audience::OneOf(["https://api.example.com".into()].into()));
    rules.algorithms.push(key.algorithm());
    rules.jwt_cache_max_entries = kept;
    let judge = IssuerVerifier::new(
        Arc::new(issuer.expect("settings without TLS")),
        rules,
        RevocationList::new(clock.clone()),
        clock.clone(),
        &metrics,
        control.clone(),
    );
    Verifier::new(TokenUse::Jwt, [Arc::new(judge)])
}

/// About 700 bytes with RS256, as an access token is.
fn token(key: &SigningKey, number: u32, clock: &Clock) -> String {
    let header = json!({ "alg": key.algorithm().name(), "kid": "k1", "typ": "at+jwt" });
    let now = clock.now().as_secs();
    let claims = json!({
        "iss": ISSUER, "sub": format!("user-{number:08}"), "aud": "https://api.example.com",
        "client_id": "web-application", "scope": "orders:read orders:write profile",
        "jti": format!("01890a5d-ac96-774b-bcce-{number:012}"), "iat": now, "exp": now + 3_600,
        "sid": format!("session-{number:08}"),
    });
    key.sign_jwt(&header, &claims).expect("a signature")
}

fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> SigningKey {
    let pair = rcgen::KeyPair::generate_for(algorithm).expect("a key");
    SigningKey::from_pem(pair.serialize_pem().as_bytes()).expect("a key").with_kid("k1")
}

fn point(key: &SigningKey) -> ParsedPublicKey {
    let jwk = key.public_jwk();
    let number =
        |name: &str| strict_json::base64url(jwk[name].as_str().expect("text")).expect("base64url");
    let point = [vec![4], number("x"), number("y")].concat();
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).expect("a point")
}

const ISSUER: &str = "https://auth.example.com";
