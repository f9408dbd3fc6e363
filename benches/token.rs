//! What a request pays for its token: known already, or verified anew beside the bare signature.

use std::hint::black_box;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::FutureExt as _;
use northgate::base::clock::Clock;
use northgate::base::strict_json;
use northgate::issuer::signing_key::SigningKey;
use northgate::issuer::{Discovery, Issuer, Settings};
use northgate::observe::metrics::Metrics;
use northgate::token::{
    Audience, IssuerVerifier, RevocationList, TokenUse, ValidationRules, Verifier,
};
use serde_json::json;

fn tokens(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let clock = Clock::system();
    let signing = [
        ("RS256", key(&rcgen::PKCS_RSA_SHA256)),
        ("ES256", key(&rcgen::PKCS_ECDSA_P256_SHA256)),
        ("EdDSA", key(&rcgen::PKCS_ED25519)),
    ];

    let mut group = c.benchmark_group("token");
    for (name, key) in &signing {
        let remembering = verifier(key, &clock, runtime.handle(), 50_000);
        let forgetful = verifier(key, &clock, runtime.handle(), 0);
        let tokens: Vec<_> = (0..10_000).map(|number| token(key, number, &clock)).collect();
        let verify = |verifier: &Verifier, token: &str| {
            let verdict = verifier.verify(token, clock.now(), None).now_or_never();
            black_box(verdict.expect("no waiting").expect("a good token"))
        };
        group
            .bench_function(format!("{name}, anew"), |b| b.iter(|| verify(&forgetful, &tokens[0])));
        if *name != "ES256" {
            continue;
        }
        group.bench_function("ES256, the signature alone", |b| {
            let (signed, signature) = tokens[0].rsplit_once('.').expect("a signature");
            let (signature, key) =
                (strict_json::base64url(signature).expect("base64url"), point(key));
            b.iter(|| key.verify_sig(black_box(signed.as_bytes()), &signature));
        });
        group.bench_function("known", |b| b.iter(|| verify(&remembering, &tokens[0])));
        let mut turn = tokens.iter().cycle();
        for token in &tokens {
            verify(&remembering, token);
        }
        group.bench_function("known, 10 000 in turn", |b| {
            b.iter(|| verify(&remembering, turn.next().expect("endless")));
        });
    }
}

fn verifier(
    key: &SigningKey,
    clock: &Clock,
    control: &tokio::runtime::Handle,
    kept: u64,
) -> Verifier {
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

criterion_group!(benches, tokens);
criterion_main!(benches);
