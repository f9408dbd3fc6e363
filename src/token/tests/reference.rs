//! Opaque tokens: shared calls, cached responses, and an unavailable issuer.

use core::time::Duration;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{Bench, NOW};
use crate::base::clock::Timestamp;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::tests::mock_issuer::{Answer, INTROSPECT, Server, signing_key};
use crate::issuer::{OnUnavailable, Settings, SignedAnswer};
use crate::token::{Audience, Confirmation, TokenError, TokenFormat, TokenUse, Verifier};

#[tokio::test]
async fn fifty_requests_with_one_new_token_make_one_call() {
    let bench = Bench::new().await;
    active(&bench.server, json!({}), Duration::from_millis(50));

    let verdicts = join_all((0..50).map(|_| bench.reference("t"))).await;

    assert!(verdicts.iter().all(Result::is_ok));
    assert_eq!(bench.server.count(INTROSPECT), 1);
    let principal = verdicts[0].as_ref().unwrap();
    assert_eq!(principal.form, TokenFormat::Reference);
    assert_eq!(principal.subject.as_deref(), Some("alice"));
}

#[tokio::test]
async fn a_response_is_cached_for_its_time_and_no_longer() {
    let bench = Bench::new().await;
    active(&bench.server, json!({ "exp": NOW + 40 }), Duration::ZERO);

    bench.reference("t").await.unwrap();
    bench.clock.advance(Duration::from_secs(29));
    assert!(bench.reference("t").now_or_never().unwrap().is_ok());
    assert_eq!(bench.server.count(INTROSPECT), 1);

    bench.clock.advance(Duration::from_secs(1));
    bench.reference("t").await.unwrap();
    assert_eq!(bench.server.count(INTROSPECT), 2);

    bench.clock.advance(Duration::from_secs(10));
    bench.reference("t").await.unwrap();
    assert_eq!(bench.server.count(INTROSPECT), 3, "never beyond exp, although only 10 s old");
    assert!(bench.reference("t").now_or_never().unwrap().is_ok(), "again, within the leeway");
}

#[tokio::test]
async fn a_route_may_require_fresher_responses() {
    let bench = Bench::new().await;
    active(&bench.server, json!({}), Duration::ZERO);
    let verifier = bench.verifier(TokenUse::Introspection);
    let verify = |max| verifier.verify("t", bench.clock.now(), Some(Duration::from_secs(max)));

    verify(10).await.unwrap();
    bench.clock.advance(Duration::from_secs(9));
    verify(10).await.unwrap();
    assert_eq!(bench.server.count(INTROSPECT), 1);
    bench.clock.advance(Duration::from_secs(1));
    verify(10).await.unwrap();
    assert_eq!(bench.server.count(INTROSPECT), 2);

    verify(0).await.unwrap();
    verify(0).await.unwrap();
    assert_eq!(bench.server.count(INTROSPECT), 4);

    bench.server.says(INTROSPECT, Answer::json(json!({ "active": false })));
    for asked in 5..8 {
        assert_eq!(verify(0).await.err(), Some(TokenError::Inactive));
        assert_eq!(bench.server.count(INTROSPECT), asked, "a refusal is asked for anew as well");
    }
    verify(3).await.unwrap_err();
    assert_eq!(bench.server.count(INTROSPECT), 7);
}

#[tokio::test]
async fn an_inactive_token_is_cached_for_a_moment() {
    let bench = Bench::new().await;
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": false })));

    for _ in 0..10 {
        assert_eq!(bench.reference("t").await.err(), Some(TokenError::Inactive));
    }
    assert_eq!(bench.server.count(INTROSPECT), 1);

    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(bench.reference("t").await.err(), Some(TokenError::Inactive));
    assert_eq!(bench.server.count(INTROSPECT), 2);
}

#[tokio::test]
async fn inactive_tokens_evict_no_active_ones() {
    let bench = Bench::with(|settings| settings.introspection.max_entries = 10, |_| ()).await;
    active(&bench.server, json!({}), Duration::ZERO);
    bench.reference("good").await.unwrap();
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": false })));

    for number in 0..500 {
        assert!(bench.reference(&format!("bad-{number}")).await.is_err());
    }

    assert!(bench.reference("good").now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn a_revocation_is_noticed_within_the_bound() {
    let bench = Bench::new().await;
    active(&bench.server, json!({}), Duration::ZERO);
    bench.reference("t").await.unwrap();
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": false })));

    bench.clock.advance(Duration::from_secs(30));

    assert_eq!(bench.reference("t").await.err(), Some(TokenError::Inactive));
}

#[tokio::test]
async fn responses_are_checked_by_the_rules() {
    let bench = Bench::new().await;

    for (number, (claims, error)) in [
        (json!({ "aud": "other" }), TokenError::Audience),
        (json!({ "aud": null }), TokenError::Audience),
        (json!({ "aud": 7 }), TokenError::Malformed),
        (json!({ "iss": "https://other.example.com" }), TokenError::Issuer),
        (json!({ "exp": NOW - 60 }), TokenError::Expired),
        (json!({ "exp": "never" }), TokenError::Malformed),
        (json!({ "nbf": NOW + 60 }), TokenError::NotYetValid),
        (json!({ "token_type": "refresh_token" }), TokenError::Type),
        (json!({ "cnf": { "jkt": "x" } }), TokenError::Unproven),
        (json!({ "token_type": "DPoP" }), TokenError::Unproven),
        (json!({ "typ": "dpop" }), TokenError::Unproven),
        (json!({ "token_type": "DPoP", "cnf": null }), TokenError::Unproven),
    ]
    .into_iter()
    .enumerate()
    {
        active(&bench.server, claims.clone(), Duration::ZERO);
        let verdict = bench.reference(&number.to_string()).await;
        assert_eq!(verdict.err(), Some(error), "{claims}");
    }
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": true, "sub": "alice" })));
    assert_eq!(bench.reference("no audience").await.err(), Some(TokenError::Audience));

    let lenient =
        Bench::with(|settings| settings.introspection.accept_without_audience = true, |_| ()).await;
    lenient.server.says(INTROSPECT, Answer::json(json!({ "active": true, "sub": "alice" })));
    assert!(lenient.reference("no audience").await.is_ok());
    lenient.server.says(INTROSPECT, Answer::json(json!({ "active": true, "aud": [] })));
    assert!(lenient.reference("an empty audience").await.is_ok());
}

#[tokio::test]
async fn a_failing_issuer_is_not_the_clients_fault_and_not_cached() {
    let bench = Bench::new().await;
    bench.server.says(INTROSPECT, Answer::status(500));
    assert!(matches!(bench.reference("t").await, Err(TokenError::Unavailable { .. })));

    active(&bench.server, json!({}), Duration::ZERO);
    assert!(bench.reference("t").await.is_ok());
}

#[tokio::test]
async fn an_active_token_may_be_served_stale_while_the_issuer_is_unavailable() {
    let stale = OnUnavailable::Stale(Duration::from_secs(60));
    let bench = Bench::with(|settings| settings.on_unavailable = stale, |_| ()).await;
    active(&bench.server, json!({}), Duration::ZERO);
    bench.reference("t").await.unwrap();
    active(&bench.server, json!({ "exp": NOW + 50 }), Duration::ZERO);
    bench.reference("short").await.unwrap();
    bench.server.says(INTROSPECT, Answer::status(500));

    bench.clock.advance(Duration::from_secs(49));
    assert!(bench.reference("t").await.is_ok());
    assert!(bench.reference("short").await.is_ok());
    assert!(bench.reference("never seen").await.is_err());
    let fresh = bench.verifier(TokenUse::Introspection);
    let fresh = fresh.verify("t", bench.clock.now(), Some(Duration::from_secs(10))).await;
    assert!(fresh.is_err(), "a route that wants it fresh gets no stale answer");

    bench.clock.advance(Duration::from_secs(1));
    assert!(bench.reference("short").await.is_err(), "never beyond exp");
    bench.clock.advance(Duration::from_secs(39));
    assert!(bench.reference("t").await.is_ok());
    bench.clock.advance(Duration::from_secs(1));
    assert!(bench.reference("t").await.is_err());
}

#[tokio::test]
async fn responses_outlive_a_reload_that_does_not_decide_about_them() {
    let change = |settings: &mut Settings| {
        settings.on_unavailable = OnUnavailable::Stale(Duration::from_secs(600));
    };
    let bench = Bench::with(change, |_| ()).await;
    active(&bench.server, json!({}), Duration::ZERO);
    bench.reference("t").await.unwrap();
    bench.server.says(INTROSPECT, Answer::status(503));
    bench.clock.advance(Duration::from_secs(40));

    for (keeps, after) in [
        (true, bench.reloaded(|settings| settings.timeout = Duration::from_secs(9), |_| ()).await),
        (true, bench.reloaded(|_| (), |rules| rules.jwt_cache_max_entries = 1).await),
        (false, bench.reloaded(|settings| settings.name = "other".into(), |_| ()).await),
        (false, bench.reloaded(|_| (), |rules| rules.audience = Audience::Any).await),
        (
            false,
            bench.reloaded(|settings| settings.on_unavailable = OnUnavailable::Deny, |_| ()).await,
        ),
    ] {
        let verifier = Verifier::new(TokenUse::Introspection, [after]);
        let verified = verifier.verify("t", bench.clock.now(), None).await;
        assert_eq!(verified.is_ok(), keeps, "{verifier:?}");
    }
    bench.verifier(TokenUse::Introspection).withdraw("t");
    let after = bench.reloaded(|settings| settings.timeout = Duration::from_secs(8), |_| ()).await;
    let verifier = Verifier::new(TokenUse::Introspection, [after]);
    assert!(verifier.verify("t", bench.clock.now(), None).await.is_err(), "revoked in between");
}

#[tokio::test]
async fn a_token_that_became_inactive_is_not_served_stale() {
    let stale = OnUnavailable::Stale(Duration::from_secs(60));
    let bench = Bench::with(|settings| settings.on_unavailable = stale, |_| ()).await;
    active(&bench.server, json!({}), Duration::ZERO);
    bench.reference("t").await.unwrap();
    bench.clock.advance(Duration::from_secs(31));
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": false })));
    assert!(bench.reference("t").await.is_err());

    bench.server.says(INTROSPECT, Answer::status(500));
    bench.clock.advance(Duration::from_secs(6));

    assert!(bench.reference("t").await.is_err());
}

#[tokio::test]
async fn bearer_distinguishes_the_kinds_by_form_and_issuer() {
    let bench = Bench::new().await;
    active(&bench.server, json!({}), Duration::ZERO);
    let bearer = bench.verifier(TokenUse::Bearer);
    let verify = |token: String| {
        let (bearer, now) = (&bearer, bench.clock.now());
        async move { bearer.verify(&token, now, None).await.map(|principal| principal.form) }
    };

    assert_eq!(verify(bench.token(json!({}))).await, Ok(TokenFormat::Signed));
    assert_eq!(bench.server.count(INTROSPECT), 0);
    assert_eq!(verify("opaque".into()).await, Ok(TokenFormat::Reference));
    let foreign = bench.token(json!({ "iss": "https://other.example.com" }));
    assert_eq!(verify(foreign).await, Ok(TokenFormat::Reference));
    assert_eq!(verify("a.b.c".into()).await, Ok(TokenFormat::Reference));
    assert_eq!(bench.server.count(INTROSPECT), 3);
    let expired = bench.token(json!({ "exp": NOW - 60 }));
    assert_eq!(verify(expired).await, Err(TokenError::Expired));
    assert_eq!(bench.server.count(INTROSPECT), 3, "a bad JWT does not become a reference token");
}

#[tokio::test]
async fn the_token_of_another_configured_issuer_is_not_introspected() {
    let (ours, theirs) = (Bench::new().await, Bench::new().await);
    active(&ours.server, json!({}), Duration::ZERO);
    let verifier = ours.verifier(TokenUse::Bearer);
    let verifier = verifier.among([Arc::clone(theirs.issuer_verifier.issuer())]);
    let verify = |token: String| {
        let (verifier, now) = (&verifier, ours.clock.now());
        async move { verifier.verify(&token, now, None).await.map(|principal| principal.form) }
    };

    assert_eq!(verify(theirs.token(json!({}))).await, Err(TokenError::Issuer));
    assert_eq!(ours.server.count(INTROSPECT), 0);
    let unknown = ours.token(json!({ "iss": "https://other.example.com" }));
    assert_eq!(verify(unknown).await, Ok(TokenFormat::Reference));
    assert_eq!(verify(ours.token(json!({}))).await, Ok(TokenFormat::Signed));
}

#[tokio::test]
async fn a_token_too_large_for_its_issuer_is_refused_and_never_introspected() {
    let bench = Bench::new().await;
    active(&bench.server, json!({}), Duration::ZERO);
    let token = bench.token(json!({ "padding": "x".repeat(20_000) }));

    let verified = bench.verifier(TokenUse::Bearer).verify(&token, bench.clock.now(), None).await;

    assert_eq!(verified.err(), Some(TokenError::TooLarge));
    assert_eq!(bench.server.count(INTROSPECT), 0);
}

#[tokio::test]
async fn a_bound_token_stays_bound_although_its_introspection_response_lacks_cnf() {
    let bench = Bench::new().await;
    active(&bench.server, json!({}), Duration::ZERO);
    let jkt = to_base64url(&[7; 32]);
    let bound = bench.token(json!({ "cnf": { "jkt": jkt } }));
    let odd = bench.token(json!({ "cnf": "text" }));

    let verifier = bench.verifier(TokenUse::Introspection);
    for _ in 0..2 {
        for token in [&bound, &odd, &format!("{bound}==")] {
            assert_eq!(bench.reference(token).await.err(), Some(TokenError::Unproven), "{token}");
        }
    }

    let verified = verifier.verify_bound(&bound, bench.clock.now(), None).await.unwrap();
    assert_eq!(verified.bound_to(), Some(&Confirmation::Key([7; 32])));
    assert!(bench.reference(&bench.token(json!({ "cnf": null }))).await.is_ok());
}

#[tokio::test]
async fn with_two_issuers_the_one_that_knows_the_token_decides() {
    let (first, second) = (Bench::new().await, Bench::new().await);
    first.server.says(INTROSPECT, Answer::json(json!({ "active": false })));
    active(&second.server, json!({}), Duration::ZERO);
    let both = [Arc::clone(&first.issuer_verifier), Arc::clone(&second.issuer_verifier)];
    let both = Verifier::new(TokenUse::Introspection, both);
    let now = Timestamp::from_secs(NOW);

    assert!(both.verify("t", now, None).await.is_ok());
    assert!(both.verify("t", now, None).now_or_never().unwrap().is_ok());
    assert_eq!((first.server.count(INTROSPECT), second.server.count(INTROSPECT)), (1, 1));

    first.server.says(INTROSPECT, Answer::status(500));
    second.server.says(INTROSPECT, Answer::json(json!({ "active": false })));
    let verdict = both.verify("other", now, None).await;
    assert!(
        matches!(verdict, Err(TokenError::Unavailable { .. })),
        "the first might have known it"
    );
}

#[tokio::test]
async fn signed_tokens_may_be_introspected_as_well() {
    let bench = Bench::with(|_| (), |rules| rules.revocation_check = true).await;
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": true })));
    let token = bench.token(json!({}));

    assert!(bench.jwt(&token).await.is_ok());
    assert!(bench.jwt(&token).now_or_never().unwrap().is_ok());
    assert_eq!(bench.server.count(INTROSPECT), 1);

    bench.clock.advance(Duration::from_secs(30));
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": false })));
    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked));
    bench.clock.advance(Duration::from_secs(5));
    bench.server.says(INTROSPECT, Answer::status(500));
    assert!(matches!(bench.jwt(&token).await, Err(TokenError::Unavailable { .. })));
}

#[tokio::test]
async fn of_a_response_about_a_signed_token_only_active_counts() {
    let bench = Bench::with(|_| (), |rules| rules.revocation_check = true).await;
    for odd in [json!({ "exp": "soon" }), json!({ "client_id": [1] }), json!({ "cnf": "x" })] {
        bench.server.says(INTROSPECT, Answer::json(super::merged(json!({ "active": true }), odd)));
        let token = bench.token(json!({ "jti": bench.server.count(INTROSPECT).to_string() }));

        assert!(bench.jwt(&token).await.is_ok());
        bench.verifier(TokenUse::Jwt).withdraw(&token);
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked));
    }
}

#[tokio::test]
async fn a_phantom_token_is_verified_and_forwarded() {
    let bench = Bench::new().await;
    let phantom = bench.token(json!({ "scope": "orders:read" }));
    bench.server.says(INTROSPECT, Answer::text("application/jwt", phantom.clone()));
    let verifier = bench.verifier(TokenUse::Introspection).with_signed_responses();
    let now = bench.clock.now();

    let principal = verifier.verify("t", now, None).await.unwrap();

    assert_eq!(principal.form, TokenFormat::Reference);
    assert!(principal.scopes.contains("orders:read"));
    assert_eq!(principal.signed.as_ref().unwrap(), &format!("Bearer {phantom}"));
    assert_eq!(bench.server.last(INTROSPECT).headers["accept"], "application/jwt");

    let for_others = bench.token(json!({ "aud": "others" }));
    bench.server.says(INTROSPECT, Answer::text("application/jwt", for_others));
    assert_eq!(verifier.verify("u", now, None).await.err(), Some(TokenError::Audience));
    let header = json!({ "alg": "ES256", "kid": "k1" });
    let forged = signing_key("k1").sign_jwt(&header, &bench.claims(json!({}))).unwrap();
    bench.server.says(INTROSPECT, Answer::text("application/jwt", forged));
    let verdict = verifier.verify("v", now, None).await;
    assert!(matches!(verdict, Err(TokenError::Unavailable { .. })), "{verdict:?}");
    bench.server.says(INTROSPECT, Answer::json(json!({ "active": true, "aud": "api" })));
    assert!(matches!(verifier.verify("w", now, None).await, Err(TokenError::Unavailable { .. })));
    bench.server.says(INTROSPECT, Answer::status(204));
    assert_eq!(verifier.verify("x", now, None).await.err(), Some(TokenError::Inactive));
}

#[tokio::test]
async fn an_unusable_signed_response_is_cached_for_its_token_alone() {
    let bench = Bench::new().await;
    let verifier = bench.verifier(TokenUse::Introspection).with_signed_responses();
    let verify = |token: &'static str| verifier.verify(token, bench.clock.now(), None);
    for (odd, answer) in [
        ("no token", Answer::text("application/jwt", "a.b".into())),
        ("not signed", Answer::json(json!({ "active": true, "aud": "api" }))),
    ] {
        bench.server.says(INTROSPECT, answer);
        let before = bench.server.count(INTROSPECT);
        for _ in 0..4 {
            assert!(matches!(verify(odd).await, Err(TokenError::Unavailable { .. })), "{odd}");
        }
        assert_eq!(bench.server.count(INTROSPECT), before + 1, "{odd}");
    }

    bench.server.says(INTROSPECT, Answer::text("application/jwt", bench.token(json!({}))));
    assert!(verify("another").await.is_ok());
    bench.clock.advance(Duration::from_secs(1));
    assert!(verify("no token").await.is_ok());
}

#[tokio::test]
async fn a_signed_response_must_be_for_us_recent_and_of_its_own_type() {
    let response = |settings: &mut Settings| {
        settings.introspection.signed_answer = SignedAnswer::Response;
    };
    let bench = Bench::with(response, |_| ()).await;
    let verifier = bench.verifier(TokenUse::Introspection).with_signed_responses();
    let media_type = "application/token-introspection+jwt";
    let response = |header: Value, change: Value| {
        let header = super::merged(
            json!({ "alg": "ES256", "kid": "k1", "typ": "token-introspection+jwt" }),
            header,
        );
        let inner = json!({ "active": true, "sub": "alice", "aud": "api" });
        let claims = json!({
            "iss": bench.server.url, "aud": "gateway", "iat": NOW, "token_introspection": inner,
        });
        let text = bench.key.sign_jwt(&header, &super::merged(claims, change)).unwrap();
        bench.server.says(INTROSPECT, Answer::text(media_type, text.clone()));
        text
    };
    let verify = |token: &'static str| verifier.verify(token, Timestamp::from_secs(NOW), None);

    let good = response(json!({}), json!({}));
    let principal = verify("good").await.unwrap();
    assert_eq!(principal.subject.as_deref(), Some("alice"));
    assert_eq!(principal.signed.as_ref().unwrap(), &format!("Bearer {good}"));
    response(json!({}), json!({ "iat": NOW as f64 + 0.25 }));
    assert!(verify("with a fraction").await.is_ok());

    response(json!({}), json!({ "token_introspection": { "active": false } }));
    assert_eq!(verify("inactive").await.err(), Some(TokenError::Inactive));
    response(json!({}), json!({ "token_introspection": { "active": true, "aud": "other" } }));
    assert_eq!(verify("not for us").await.err(), Some(TokenError::Audience));

    for (token, header, change) in [
        ("a", json!({ "typ": "JWT" }), json!({})),
        ("b", json!({}), json!({ "aud": "another-gateway" })),
        ("c", json!({}), json!({ "iss": "https://other.example.com" })),
        ("d", json!({}), json!({ "iat": NOW - 3_600 })),
    ] {
        response(header, change);
        let verdict = verify(token).await;
        assert!(matches!(verdict, Err(TokenError::Unavailable { .. })), "{token} {verdict:?}");
    }
}

fn active(server: &Server, extra: Value, delay: Duration) {
    let answer = json!({ "active": true, "sub": "alice", "aud": "api", "client_id": "app" });
    server.says(INTROSPECT, Answer::json(super::merged(answer, extra)).after(delay));
}
