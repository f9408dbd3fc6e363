//! The lifetime of cached results for signed tokens.

use core::time::Duration;
use std::sync::Arc;

use serde_json::json;

use super::{Bench, NOW};
use crate::issuer::tests::mock_issuer::{Answer, INTROSPECT, JWKS, eventually, signing_key};
use crate::token::{TokenError, TokenUse, ValidationRules, Verifier};

#[tokio::test]
async fn a_token_is_verified_once() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));

    let first = bench.jwt(&token).await.unwrap();
    let second = bench.jwt(&token).await.unwrap();

    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(lookups(&bench), (1, 1));
}

#[tokio::test]
async fn a_cached_token_completes_without_waiting() {
    use futures_util::FutureExt as _;

    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    bench.jwt(&token).await.unwrap();

    assert!(bench.jwt(&token).now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn a_cached_result_ends_with_exp() {
    let bench = Bench::new().await;
    let token = bench.token(json!({ "exp": NOW + 60 }));
    let first = bench.jwt(&token).await.unwrap();

    bench.clock.advance(Duration::from_secs(60));
    let within_leeway = bench.jwt(&token).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &within_leeway), "verified anew");

    bench.clock.advance(Duration::from_secs(30));
    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Expired));
}

#[tokio::test]
async fn a_cached_result_ends_with_the_greatest_age_of_a_token() {
    let short = |rules: &mut ValidationRules| {
        rules.max_token_age = Some(Duration::from_secs(60));
        rules.leeway = Duration::ZERO;
    };
    let bench = Bench::with(|_| (), short).await;
    let claims =
        json!({ "active": true, "sub": "alice", "aud": "api", "iat": NOW, "exp": NOW + 300 });
    bench.server.says(INTROSPECT, Answer::json(claims));
    let token = bench.token(json!({ "iat": NOW }));
    for _ in 0..2 {
        assert!(bench.jwt(&token).await.is_ok());
        assert!(bench.reference("opaque").await.is_ok());
        bench.clock.advance(Duration::from_secs(59));
    }

    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Expired));
    assert_eq!(bench.reference("opaque").await.err(), Some(TokenError::Expired));
}

#[tokio::test]
async fn a_cached_result_ends_with_its_key() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    bench.jwt(&token).await.unwrap();

    let new = signing_key("k2");
    bench.server.publishes(&[&new]);
    let header = json!({ "alg": "ES256", "kid": "k2" });
    let newer = new.sign_jwt(&header, &bench.claims(json!({}))).unwrap();
    assert!(bench.jwt(&newer).await.is_ok());

    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::UnknownKey));
}

#[tokio::test]
async fn a_cached_result_survives_a_refetch_that_retains_its_key() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    let first = bench.jwt(&token).await.unwrap();

    bench.server.publishes(&[&bench.key, &signing_key("k2")]);
    bench.issuer_verifier.issuer().keys_for(Some("k2"), &[]).await.unwrap();

    assert!(Arc::ptr_eq(&first, &bench.jwt(&token).await.unwrap()));
}

#[tokio::test]
async fn bad_tokens_are_not_cached_and_evict_no_entry() {
    let bench = Bench::with(|_| (), |rules| rules.jwt_cache_max_entries = 10).await;
    let good = bench.token(json!({}));
    let first = bench.jwt(&good).await.unwrap();

    for number in 0..1_000 {
        let mut bad = bench.token(json!({ "jti": number.to_string() }));
        bad.replace_range(bad.len() - 5.., "AAAAA");
        assert!(bench.jwt(&bad).await.is_err());
    }

    assert!(Arc::ptr_eq(&first, &bench.jwt(&good).await.unwrap()));
}

#[tokio::test]
async fn the_cache_is_bounded_for_large_tokens_as_well() {
    let bench = Bench::with(|_| (), |rules| rules.jwt_cache_max_entries = 100).await;

    for number in 0..300 {
        let large = bench.token(json!({ "n": number, "x": "x".repeat(8_000) }));
        bench.jwt(&large).await.unwrap();
    }

    let entries = entries(&bench);
    assert!(
        entries <= 100 / 2 + 40,
        "{entries} tokens of 11 KiB are kept in place of 100 small ones"
    );
}

#[tokio::test]
async fn the_cache_never_exceeds_its_slots() {
    let bench = Bench::with(|_| (), |rules| rules.jwt_cache_max_entries = 14).await;

    for number in 0..100 {
        bench.jwt(&bench.token(json!({ "jti": number.to_string() }))).await.unwrap();
        assert!(entries(&bench) <= 14, "after {number}");
    }
}

#[tokio::test]
async fn frequently_used_tokens_stay_cached() {
    let bench = Bench::with(|_| (), |rules| rules.jwt_cache_max_entries = 7).await;
    let often = bench.token(json!({}));
    let first = bench.jwt(&often).await.unwrap();

    for number in 0..50 {
        bench.clock.advance(Duration::from_secs(1));
        bench.jwt(&bench.token(json!({ "jti": number.to_string() }))).await.unwrap();
        assert!(Arc::ptr_eq(&first, &bench.jwt(&often).await.unwrap()), "after {number}");
    }
}

#[tokio::test]
async fn ended_entries_make_room_for_new_tokens() {
    let bench = Bench::with(|_| (), |rules| rules.jwt_cache_max_entries = 700).await;
    for number in 0..50 {
        let ending = json!({ "jti": number.to_string(), "exp": NOW + 60 });
        bench.jwt(&bench.token(ending)).await.unwrap();
    }
    bench.clock.advance(Duration::from_secs(60));

    for number in 50..150 {
        let new = json!({ "jti": number.to_string(), "exp": NOW + 600 });
        bench.jwt(&bench.token(new)).await.unwrap();
    }

    // Keys that share a bucket are rare, and displace each other.
    let entries = entries(&bench);
    assert!((95..=100).contains(&entries), "{entries}");
}

#[tokio::test]
async fn without_a_cache_every_token_is_verified() {
    let bench = Bench::with(|_| (), |rules| rules.jwt_cache_max_entries = 0).await;
    let token = bench.token(json!({}));

    let first = bench.jwt(&token).await.unwrap();

    assert!(!Arc::ptr_eq(&first, &bench.jwt(&token).await.unwrap()));
}

#[tokio::test]
async fn no_request_fails_while_keys_rotate() {
    let bench = Bench::new().await;
    for round in 0..5 {
        let old = signing_key(&format!("old-{round}"));
        let new = signing_key(&format!("new-{round}"));
        bench.server.publishes(&[&bench.key, &old, &new]);
        for key in [&bench.key, &old, &new] {
            let header = json!({ "alg": "ES256", "kid": key.kid() });
            let token = key.sign_jwt(&header, &bench.claims(json!({}))).unwrap();
            assert!(bench.jwt(&token).await.is_ok(), "round {round}");
        }
        bench.clock.advance(Duration::from_secs(30));
    }
    assert_eq!(bench.server.count(JWKS), 6);
}

#[tokio::test]
async fn a_key_that_is_replaced_under_its_kid_is_fetched() {
    let bench = Bench::new().await;
    let new = signing_key("k1");
    let header = json!({ "alg": "ES256", "kid": "k1" });
    let token = |jti| new.sign_jwt(&header, &bench.claims(json!({ "jti": jti }))).unwrap();
    assert_eq!(bench.jwt(&token("forged")).await.err(), Some(TokenError::Signature));
    assert_eq!(bench.jwt(&token("forged again")).await.err(), Some(TokenError::Signature));
    assert_eq!(bench.server.count(JWKS), 2, "one fetch in 30 s");

    bench.clock.advance(Duration::from_secs(30));
    bench.server.publishes(&[&new]);

    assert!(bench.jwt(&token("good")).await.is_ok());
}

#[tokio::test]
async fn an_unavailable_issuer_affects_only_tokens_of_unknown_keys() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    bench.server.says(JWKS, crate::issuer::tests::mock_issuer::Answer::status(500));
    let unseen = signing_key("k2");
    let header = json!({ "alg": "ES256", "kid": "k2" });
    let unseen = unseen.sign_jwt(&header, &bench.claims(json!({}))).unwrap();

    assert!(matches!(bench.jwt(&unseen).await, Err(TokenError::Unavailable { .. })));
    assert!(bench.jwt(&token).await.is_ok());
    let forged = signing_key("k1")
        .sign_jwt(&json!({ "alg": "ES256", "kid": "k1" }), &bench.claims(json!({})));
    assert_eq!(bench.jwt(&forged.unwrap()).await.err(), Some(TokenError::Signature));
}

#[tokio::test]
async fn entries_are_counted_while_they_are_cached() {
    let bench = Bench::new().await;
    bench.jwt(&bench.token(json!({}))).await.unwrap();
    bench.jwt(&bench.token(json!({ "jti": "2" }))).await.unwrap();
    let name = r#"northgate_token_cache_entries{cache="jwt"}"#;
    assert_eq!(metric(&bench, name), 2);

    let Bench { issuer_verifier, metrics, .. } = bench;
    drop(issuer_verifier);

    let text = move || metrics.render();
    eventually("the entries to be gone", || value(&text(), name) == 0).await;
}

/// The key of the issuer that `iss` names counts, even if another issuer uses the same `kid`.
#[tokio::test]
async fn two_issuers_may_use_the_same_kid() {
    let (first, second) = (Bench::new().await, Bench::new().await);
    let both = [Arc::clone(&first.issuer_verifier), Arc::clone(&second.issuer_verifier)];
    let both = Verifier::new(TokenUse::Jwt, both);
    let now = first.clock.now();

    for (bench, other) in [(&first, &second), (&second, &first)] {
        let own = both.verify(&bench.token(json!({})), now, None).await;
        assert!(own.is_ok(), "{own:?}");
        let forged = bench.token(json!({ "iss": other.server.url }));
        let forged = both.verify(&forged, now, None).await;
        assert_eq!(forged.err(), Some(TokenError::Signature));
    }
    let foreign = first.token(json!({ "iss": "https://third.example.com" }));
    assert_eq!(both.verify(&foreign, now, None).await.err(), Some(TokenError::Issuer));
}

#[tokio::test]
async fn an_opaque_token_is_no_jwt() {
    let bench = Bench::new().await;

    for token in ["opaque", "a.b", "a.b.c.d"] {
        let verdict = bench.verifier(TokenUse::Jwt).verify(token, bench.clock.now(), None).await;
        assert_eq!(verdict.err(), Some(TokenError::Malformed), "{token}");
    }
}

fn lookups(bench: &Bench) -> (i64, i64) {
    let of = |result: &str| {
        let name = "northgate_token_cache_requests_total";
        metric(bench, &format!(r#"{name}{{cache="jwt",result="{result}"}}"#))
    };
    (of("hit"), of("miss"))
}

fn entries(bench: &Bench) -> i64 {
    metric(bench, r#"northgate_token_cache_entries{cache="jwt"}"#)
}

fn metric(bench: &Bench, name: &str) -> i64 {
    value(&bench.metrics.render(), name)
}

fn value(text: &str, name: &str) -> i64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}
