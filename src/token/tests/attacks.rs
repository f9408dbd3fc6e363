//! Forgeries and confusions, each from a published attack, each with a control that passes.

use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{Bench, NOW, merged};
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::issuer::jwk::to_base64url;
use crate::issuer::testing::{Answer, JWKS, signing_key};
use crate::issuer::{Algorithm, Discovery, Issuer, Settings};
use crate::observe::metrics::Metrics;
use crate::token::{Audience, Judge, Kind, Revocations, Rules, TokenError, Verifier};

#[tokio::test]
async fn the_control_is_accepted() {
    let bench = Bench::new().await;

    let principal = bench.jwt(&bench.token(json!({ "scope": "a" }))).await.unwrap();

    assert_eq!(principal.subject.as_deref(), Some("alice"));
    assert_eq!(&*principal.issuer, "main");
}

#[tokio::test]
async fn no_signature_is_no_token() {
    let bench = Bench::new().await;
    let claims = to_base64url(bench.claims(json!({})).to_string().as_bytes());

    for alg in ["none", "None", "NONE", "nOnE"] {
        let header = to_base64url(json!({ "alg": alg, "kid": "k1" }).to_string().as_bytes());
        let token = format!("{header}.{claims}.");
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Algorithm), "{alg}");
    }
    let stripped = bench.token(json!({}));
    let stripped = format!("{}.", stripped.rsplit_once('.').unwrap().0);
    assert_eq!(bench.jwt(&stripped).await.err(), Some(TokenError::Signature));
}

#[tokio::test]
async fn a_public_key_is_no_hmac_secret() {
    let bench = Bench::with(|_| (), |rules| rules.algorithms.push(Algorithm::Hs256)).await;
    let jwk = bench.key.public_jwk();

    for secret in [
        jwk.to_string(),
        jwk["x"].as_str().unwrap().to_owned(),
        format!("{}{}", jwk["x"].as_str().unwrap(), jwk["y"].as_str().unwrap()),
    ] {
        let token = hs256(secret.as_bytes(), &json!({ "kid": "k1" }), &bench.claims(json!({})));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Algorithm));
    }
}

#[tokio::test]
async fn a_secret_works_only_where_an_operator_configured_it() {
    let secret = [7; 32];
    let mut settings = Settings::new("legacy", "https://auth.example.com");
    settings.discovery = Discovery::Off;
    settings.hmac_secret = Some(Secret::new(secret.to_vec()));
    let judge = judge(settings, |rules| rules.algorithms = vec![Algorithm::Hs256]);
    let verifier = Verifier::new(Kind::Jwt, [judge]);
    let claims = json!({
        "iss": "https://auth.example.com", "sub": "alice", "aud": "api", "exp": NOW + 300,
    });

    let good = hs256(&secret, &json!({}), &claims);
    let bad = hs256(&[8; 32], &json!({}), &claims);

    assert!(verifier.verify(&good, now(), None).await.is_ok());
    assert_eq!(verifier.verify(&bad, now(), None).await.err(), Some(TokenError::Signature));
}

#[tokio::test]
async fn a_key_that_comes_with_the_token_is_never_used_or_fetched() {
    let bench = Bench::new().await;
    let evil = signing_key("evil");
    let mut url = bench.server.url.clone();
    url.push_str("/evil");
    let claims = bench.claims(json!({}));

    for member in [
        json!({ "jwk": evil.public_jwk() }),
        json!({ "jku": url }),
        json!({ "x5u": url }),
        json!({ "x5c": ["MIIB"] }),
        json!({ "jwk": evil.public_jwk(), "kid": "evil" }),
    ] {
        let header = merged(json!({ "alg": "ES256", "kid": "k1", "typ": "JWT" }), member.clone());
        let forged = evil.sign_jwt(&header, &claims).unwrap();
        assert!(bench.jwt(&forged).await.is_err(), "{member}");
        let good = bench.signed(member.clone(), json!({}));
        if member.get("kid").is_none() {
            assert!(bench.jwt(&good).await.is_ok(), "ignored, not refused: {member}");
        }
    }
    assert_eq!(bench.server.count("/evil"), 0);
}

#[tokio::test]
async fn an_algorithm_must_be_allowed_and_be_the_keys() {
    let bench = Bench::with(|_| (), |rules| rules.algorithms = vec![Algorithm::Rs256]).await;
    assert_eq!(bench.jwt(&bench.token(json!({}))).await.err(), Some(TokenError::Algorithm));

    let bench = Bench::new().await;
    for alg in ["RS256", "PS256", "ES384", "EdDSA"] {
        let token = bench.signed(json!({ "alg": alg }), json!({}));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Algorithm), "{alg}");
    }
}

#[tokio::test]
async fn tokens_of_other_kinds_are_refused_by_their_type() {
    let bench = Bench::new().await;

    for typ in [
        "dpop+jwt",
        "logout+jwt",
        "secevent+jwt",
        "token-introspection+jwt",
        "id_token+jwt",
        "application/application/jwt",
        "JWT ",
        "",
    ] {
        let token = bench.signed(json!({ "typ": typ }), json!({}));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Type), "{typ:?}");
    }
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+jwt"] {
        let token = bench.signed(json!({ "typ": typ }), json!({}));
        assert!(bench.jwt(&token).await.is_ok(), "{typ}");
    }

    let strict = Bench::with(|_| (), |rules| rules.token_types = vec!["at+jwt".into()]).await;
    let untyped = json!({ "alg": "ES256", "kid": "k1" });
    let untyped = strict.key.sign_jwt(&untyped, &strict.claims(json!({}))).unwrap();
    assert_eq!(strict.jwt(&untyped).await.err(), Some(TokenError::Type));
    assert!(strict.jwt(&strict.token(json!({}))).await.is_ok());
}

#[tokio::test]
async fn one_member_twice_is_refused_wherever_it_is() {
    let bench = Bench::new().await;
    let claims = bench.claims(json!({})).to_string();
    let twice = claims.replacen('{', r#"{"sub":"admin","#, 1);
    let header = r#"{"alg":"ES256","kid":"k1","typ":"at+jwt"}"#;
    let header_twice = header.replacen('{', r#"{"kid":"k0","#, 1);
    let sign = |header: &str, claims: &str| {
        let signed =
            format!("{}.{}", to_base64url(header.as_bytes()), to_base64url(claims.as_bytes()));
        let signature = bench.key.sign(signed.as_bytes()).unwrap();
        format!("{signed}.{}", to_base64url(&signature))
    };

    assert!(bench.jwt(&sign(header, &claims)).await.is_ok());
    assert_eq!(bench.jwt(&sign(header, &twice)).await.err(), Some(TokenError::Malformed));
    assert_eq!(bench.jwt(&sign(&header_twice, &claims)).await.err(), Some(TokenError::Malformed));
    let trailing = format!("{claims} {{}}");
    assert_eq!(bench.jwt(&sign(header, &trailing)).await.err(), Some(TokenError::Malformed));
}

#[tokio::test]
async fn one_kid_in_two_issuers_means_two_keys() {
    let (ours, theirs) = (Bench::new().await, Bench::new().await);
    let both = Verifier::new(Kind::Jwt, [Arc::clone(&ours.judge), Arc::clone(&theirs.judge)]);

    let good = ours.token(json!({}));
    let also_good = theirs.token(json!({}));
    // Their key, called like ours, claims to be us.
    let forged = theirs.token(json!({ "iss": ours.server.url }));
    let nobodys = theirs.token(json!({ "iss": "https://nobody.example.com" }));

    assert!(both.verify(&good, now(), None).await.is_ok());
    assert!(both.verify(&also_good, now(), None).await.is_ok());
    assert_eq!(both.verify(&forged, now(), None).await.err(), Some(TokenError::Signature));
    assert_eq!(both.verify(&nobodys, now(), None).await.err(), Some(TokenError::Issuer));
    let theirs_alone = ours.jwt(&also_good).await;
    assert_eq!(theirs_alone.err(), Some(TokenError::Issuer));
}

#[tokio::test]
async fn a_bound_token_is_never_a_plain_bearer_token() {
    let bench = Bench::new().await;
    let digest = to_base64url(&[7; 32]);

    for cnf in [json!({ "jkt": digest }), json!({ "x5t#S256": digest }), json!({ "new": 1 })] {
        let token = bench.token(json!({ "cnf": cnf }));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Unproven), "{cnf}");
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Unproven), "kept: {cnf}");
    }
}

#[tokio::test]
async fn a_twin_of_the_signature_does_not_outlive_a_revocation() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let twin = format!("{signed}.{}", to_base64url(&negate_s(signature)));
    let first = bench.jwt(&token).await.unwrap();
    let second = bench.jwt(&twin).await.unwrap();

    assert_eq!(first.digest, second.digest);
}

#[tokio::test]
async fn a_rotation_without_kid_is_seen_as_well() {
    let bench = Bench::new().await;
    let anonymous = |key: &crate::issuer::sign::SigningKey| {
        let mut jwk = key.public_jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        json!({ "keys": [jwk] })
    };
    let header = json!({ "alg": "ES256" });
    let new = signing_key("unnamed");
    let token = new.sign_jwt(&header, &bench.claims(json!({}))).unwrap();
    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Signature));

    bench.clock.advance(Duration::from_secs(30));
    bench.server.says(JWKS, Answer::json(anonymous(&new)));

    assert!(bench.jwt(&token).await.is_ok());
}

fn judge(settings: Settings, change: impl FnOnce(&mut Rules)) -> Arc<Judge> {
    let clock = Clock::manual(now());
    let metrics = Metrics::new(&[1.0]);
    let mut rules = Rules::new(Audience::OneOf(["api".into()].into()));
    change(&mut rules);
    let issuer = Issuer::new(settings, clock.clone(), &metrics, Handle::current()).unwrap();
    let revocations = Revocations::new(clock.clone());
    Arc::new(Judge::new(Arc::new(issuer), rules, revocations, clock, &metrics, Handle::current()))
}

fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
    let header = merged(json!({ "alg": "HS256", "typ": "JWT" }), header.clone());
    let signed = format!(
        "{}.{}",
        to_base64url(header.to_string().as_bytes()),
        to_base64url(claims.to_string().as_bytes())
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    format!("{signed}.{}", to_base64url(hmac::sign(&key, signed.as_bytes()).as_ref()))
}

/// The other signature that an ECDSA signature on P-256 implies: (r, n - s).
fn negate_s(signature: &str) -> Vec<u8> {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63,
        0x25, 0x51,
    ];
    let mut bytes = crate::issuer::json::base64url(signature).unwrap();
    let mut borrow = 0_i16;
    for place in (0..32).rev() {
        let difference = i16::from(ORDER[place]) - i16::from(bytes[32 + place]) - borrow;
        borrow = i16::from(difference < 0);
        bytes[32 + place] = (difference & 0xff) as u8;
    }
    bytes
}

fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}
