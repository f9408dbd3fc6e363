//! How long a verdict on a signed token holds.

use core::time::Duration;
use std::sync::Arc;

use serde_json::json;

use super::{Bench, NOW};
use crate::issuer::testing::{JWKS, eventually, signing_key};
use crate::token::{TokenError, TokenUse, Verifier};

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
async fn what_is_known_completes_without_waiting() {
    use futures_util::FutureExt as _;

    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    bench.jwt(&token).await.unwrap();

    assert!(bench.jwt(&token).now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn a_verdict_does_not_live_beyond_exp() {
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
async fn a_verdict_dies_with_the_key_that_made_it() {
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
async fn a_verdict_outlives_a_renewal_that_keeps_its_key() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    let first = bench.jwt(&token).await.unwrap();

    bench.server.publishes(&[&bench.key, &signing_key("k2")]);
    bench.judge.issuer().keys_for(Some("k2")).await.unwrap();

    assert!(Arc::ptr_eq(&first, &bench.jwt(&token).await.unwrap()));
}

#[tokio::test]
async fn bad_tokens_are_not_kept_and_evict_nothing() {
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
async fn the_memory_is_bounded_also_for_large_tokens() {
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
async fn there_are_never_more_verdicts_than_places() {
    let bench = Bench::with(|_| (), |rules| rules.jwt_cache_max_entries = 14).await;

    for number in 0..100 {
        bench.jwt(&bench.token(json!({ "jti": number.to_string() }))).await.unwrap();
        assert!(entries(&bench) <= 14, "after {number}");
    }
}

#[tokio::test]
async fn who_is_asked_for_again_and_again_stays() {
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
async fn what_has_ended_makes_room_as_new_tokens_come() {
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

    assert_eq!(entries(&bench), 100);
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
async fn an_issuer_that_is_away_costs_only_the_tokens_of_keys_we_have_not_seen() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    bench.server.says(JWKS, crate::issuer::testing::Answer::status(500));
    let unseen = signing_key("k2");
    let header = json!({ "alg": "ES256", "kid": "k2" });
    let unseen = unseen.sign_jwt(&header, &bench.claims(json!({}))).unwrap();

    assert!(matches!(bench.jwt(&unseen).await, Err(TokenError::Unavailable { .. })));
    assert!(bench.jwt(&token).await.is_ok());
}

#[tokio::test]
async fn entries_are_counted_while_they_are_there() {
    let bench = Bench::new().await;
    bench.jwt(&bench.token(json!({}))).await.unwrap();
    bench.jwt(&bench.token(json!({ "jti": "2" }))).await.unwrap();
    let name = r#"northgate_token_cache_entries{cache="jwt"}"#;
    assert_eq!(metric(&bench, name), 2);

    let Bench { judge, metrics, .. } = bench;
    drop(judge);

    let text = move || metrics.render();
    eventually("the entries to be gone", || value(&text(), name) == 0).await;
}

/// The key that `iss` names counts, whoever else has one of the same name.
#[tokio::test]
async fn two_issuers_may_call_their_keys_the_same() {
    let (first, second) = (Bench::new().await, Bench::new().await);
    let both = [Arc::clone(&first.judge), Arc::clone(&second.judge)];
    let both = Verifier::new(TokenUse::Jwt, both);
    let now = first.clock.now();

    for (bench, other) in [(&first, &second), (&second, &first)] {
        let own = both.verify(&bench.token(json!({})), now, None).await;
        assert!(own.is_ok(), "{own:?}");
        let forged = bench.token(json!({ "iss": other.server.url }));
        let forged = both.verify(&forged, now, None).await;
        assert_eq!(forged.err(), Some(TokenError::Signature));
    }
    let nobodys = first.token(json!({ "iss": "https://third.example.com" }));
    assert_eq!(both.verify(&nobodys, now, None).await.err(), Some(TokenError::Issuer));
}

#[tokio::test]
async fn a_reference_token_is_no_jwt() {
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
