//! Forgeries and confusions, each from a published attack, each with a control that is accepted.

use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::hmac;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::{Bench, NOW, merged};
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::base::strict_json::base64url;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::tests::mock_issuer::{Answer, JWKS, signing_key};
use crate::issuer::{Algorithm, Discovery, Issuer, Settings};
use crate::observe::metrics::Metrics;
use crate::token::{
    Audience, IssuerVerifier, RevocationList, TokenError, TokenUse, ValidationRules, Verifier,
};

#[tokio::test]
async fn the_control_token_is_accepted() {
    let bench = Bench::new().await;

    let principal = bench.jwt(&bench.token(json!({ "scope": "a" }))).await.unwrap();

    assert_eq!(principal.subject.as_deref(), Some("alice"));
    assert_eq!(&*principal.issuer, "main");
}

#[tokio::test]
async fn an_unsigned_token_is_refused() {
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

/// CVE-2015-9235, CVE-2022-29217, CVE-2023-48223, CVE-2024-33663, CVE-2026-34950: in every form of publishing the key.
#[tokio::test]
async fn a_public_key_in_any_form_is_no_hmac_secret() {
    let bench = Bench::with(|_| (), |rules| rules.algorithms.push(Algorithm::Hs256)).await;
    let jwk = bench.key.public_jwk();
    let part = |name: &str| base64url(jwk[name].as_str().unwrap()).unwrap();
    let point = [&[4][..], &part("x"), &part("y")].concat();
    // SubjectPublicKeyInfo of a point on P-256 (RFC 5480 §2).
    let der = [
        &[
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ][..],
        &point,
    ]
    .concat();
    let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der);
    let (first, second) = base64.split_at(64);
    let pem = |end: &str| {
        format!(
            "-----BEGIN PUBLIC KEY-----{end}{first}{end}{second}{end}-----END PUBLIC KEY-----{end}"
        )
    };
    let set = json!({ "keys": [jwk] });

    for secret in [
        pem("\n").into_bytes(),
        pem("\n").trim_end().as_bytes().to_vec(),
        pem("\r\n").into_bytes(),
        base64.clone().into_bytes(),
        der.clone(),
        point.clone(),
        set.to_string().into_bytes(),
        Vec::new(),
        b"k1".to_vec(),
    ] {
        for header in [json!({ "kid": "k1" }), json!({}), json!({ "kid": "" })] {
            let token = hs256(&secret, &header, &bench.claims(json!({})));
            let refused = bench.jwt(&token).await.err();
            assert!(
                matches!(refused, Some(TokenError::Algorithm | TokenError::UnknownKey)),
                "{header}: {refused:?}"
            );
        }
    }
}

/// A `kid` is an identifier only: no path, no query, no address, no command.
#[tokio::test]
async fn a_kid_is_only_compared() {
    let bench = Bench::new().await;
    let long = "k".repeat(4000);

    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "k1' OR '1'='1",
        "k1\u{0}",
        "k1 ",
        "K1",
        "http://127.0.0.1:1/jwks",
        "|/bin/true",
        "*",
        "$1",
        &long,
    ] {
        let token = bench.signed(json!({ "kid": kid }), json!({}));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::UnknownKey), "{kid}");
    }
    for kid in [json!(null), json!(1), json!(["k1"]), json!({ "k1": true }), json!(true)] {
        let token = bench.signed(json!({ "kid": kid }), json!({}));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Malformed), "{kid}");
    }
}

/// CVE-2022-21449, and the encodings of other libraries.
#[tokio::test]
async fn a_signature_has_one_encoding_and_no_zeros() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let bytes = base64url(signature).unwrap();
    let (r, s) = bytes.split_at(32);
    let order = base64url("_____wAAAAD__________7zm-q2nF56E87nKwvxjJVE").unwrap();
    let integer = |number: &[u8]| {
        let padded = [&[0][..], number].concat();
        let number = if number[0] > 0x7f { &padded[..] } else { number };
        [&[2, number.len() as u8][..], number].concat()
    };
    let der = [integer(r), integer(s)].concat();
    let der = [&[0x30, der.len() as u8][..], &der].concat();

    for (what, forged) in [
        ("nothing", vec![]),
        ("r = s = 0", vec![0; 64]),
        ("r = 0", [&[0; 32], s].concat()),
        ("s = 0", [r, &[0; 32]].concat()),
        ("r = n", [&order[..], s].concat()),
        ("s = n", [r, &order[..]].concat()),
        ("r = s = n", [&order[..], &order[..]].concat()),
        ("r = s = 1", [&[0; 31][..], &[1], &[0; 31], &[1]].concat()),
        ("DER", der),
        ("a byte less", bytes[..63].to_vec()),
        ("a byte more", [&bytes[..], &[0]].concat()),
        ("a zero in front", [&[0], &bytes[..]].concat()),
        ("wide integers", [&[0][..], r, &[0], s].concat()),
        ("the halves swapped", [s, r].concat()),
    ] {
        let forged = format!("{signed}.{}", to_base64url(&forged));
        assert_eq!(bench.jwt(&forged).await.err(), Some(TokenError::Signature), "{what}");
    }
}

/// CVE-2022-39227, CVE-2026-29000, CVE-2025-30204: neither JSON, nor nested, nor encrypted, nor in pieces.
#[tokio::test]
async fn other_serializations_are_refused() {
    let bench = Bench::new().await;
    let good = bench.token(json!({}));
    let parts: Vec<_> = good.split('.').collect();
    let [header, claims, signature] = parts[..] else { unreachable!() };
    let evil = to_base64url(bench.claims(json!({ "sub": "root" })).to_string().as_bytes());
    let json_form =
        json!({ "protected": header, "payload": claims, "signature": signature }).to_string();

    for polyglot in [
        json_form.clone(),
        format!(
            r#"{{"  {header}.":"","protected":"{header}","payload":"{evil}","signature":"{signature}"}}"#
        ),
        format!("{header}.{evil}.{signature}.{claims}"),
        format!("{header}.{claims}.{signature}.{header}.{claims}"),
        format!("{good},{good}"),
        format!("{good} {good}"),
        format!("{header}.{claims}"),
        format!("{header}.{claims}."),
        format!("{header}..{signature}"),
        format!(".{claims}.{signature}"),
        format!("{header}.{claims}\n.{signature}"),
        format!("{header}.{claims}=.{signature}"),
        format!("{good}%00"),
        ".".repeat(16_000),
    ] {
        assert!(bench.jwt(&polyglot).await.is_err(), "{polyglot}");
    }
    // A valid token inside an unsigned one.
    let outer = to_base64url(json!({ "alg": "none", "cty": "JWT" }).to_string().as_bytes());
    let inner = to_base64url(good.as_bytes());
    assert!(bench.jwt(&format!("{outer}.{inner}.")).await.is_err());
    // A signed token around another one is no object of claims.
    let header =
        to_base64url(json!({ "alg": "ES256", "kid": "k1", "cty": "JWT" }).to_string().as_bytes());
    let signed = format!("{header}.{inner}");
    let signature = to_base64url(&bench.key.sign(signed.as_bytes()).unwrap());
    let nested = bench.jwt(&format!("{signed}.{signature}")).await;
    assert_eq!(nested.err(), Some(TokenError::Malformed));
}

/// CVE-2026-25537: a claim of the wrong type is never taken for an absent one.
#[tokio::test]
async fn claims_of_the_wrong_type_are_refused() {
    let bench = Bench::new().await;
    let wrong =
        [json!(null), json!(true), json!(7), json!({}), json!([[]]), json!([7]), json!({ "a": 1 })];

    for name in
        ["iss", "sub", "aud", "sid", "jti", "client_id", "scope", "exp", "nbf", "iat", "cnf"]
    {
        for value in &wrong {
            let number_is_right = matches!(name, "exp" | "nbf" | "iat") && value.is_number();
            let object_is_right = name == "cnf" && value.is_object();
            let may_be_null = ["sid", "jti", "client_id", "scope"].contains(&name);
            if number_is_right || object_is_right || (may_be_null && value.is_null()) {
                continue;
            }
            let token = bench.token(json!({ name: value }));
            assert!(bench.jwt(&token).await.is_err(), "{name}: {value}");
        }
    }
    for exp in [
        "-1",
        "-0",
        "\"99999999999\"",
        "1e400",
        "1e300",
        "99999999999999999999",
        "18446744073709551616",
        "1700000300000",
        "NaN",
        "Infinity",
        "0x7fffffff",
        "1_700_000_300",
        "01700000300",
        "+1700000300",
    ] {
        let claims = bench.claims(json!({})).to_string().replace("1700000300", exp);
        let signed = format!(
            "{}.{}",
            to_base64url(br#"{"alg":"ES256","kid":"k1","typ":"at+jwt"}"#),
            to_base64url(claims.as_bytes())
        );
        let signature = to_base64url(&bench.key.sign(signed.as_bytes()).unwrap());
        let refused = bench.jwt(&format!("{signed}.{signature}")).await.err();
        assert_eq!(refused, Some(TokenError::Malformed), "{exp}");
    }
}

/// CVE-2024-28176 and similar attacks cost nothing: depth and size are bounded before verification.
#[tokio::test]
async fn a_deep_or_large_token_is_refused_before_its_signature_is_verified() {
    let bench = Bench::new().await;
    let mut deep = json!("x");
    for _ in 0..40 {
        deep = json!([deep]);
    }

    assert_eq!(
        bench.jwt(&bench.token(json!({ "deep": deep }))).await.err(),
        Some(TokenError::Malformed)
    );
    let large = bench.token(json!({ "large": "x".repeat(16_000) }));
    assert_eq!(bench.jwt(&large).await.err(), Some(TokenError::TooLarge));
    for header in
        [json!({ "enc": "A128GCM" }), json!({ "alg": "PBES2-HS256+A128KW", "p2c": 1_000_000_000 })]
    {
        assert!(bench.jwt(&bench.signed(header.clone(), json!({}))).await.is_err(), "{header}");
    }
}

#[tokio::test]
async fn a_secret_works_only_where_it_is_configured() {
    let secret = [7; 32];
    let mut settings = Settings::new("legacy", "https://auth.example.com");
    settings.discovery = Discovery::Off;
    settings.hmac_secret = Some(Secret::new(secret.to_vec()));
    let issuer_verifier =
        issuer_verifier(settings, |rules| rules.algorithms = vec![Algorithm::Hs256]);
    let verifier = Verifier::new(TokenUse::Jwt, [issuer_verifier]);
    let claims = json!({
        "iss": "https://auth.example.com", "sub": "alice", "aud": "api", "exp": NOW + 300,
    });

    let good = hs256(&secret, &json!({}), &claims);
    let bad = hs256(&[8; 32], &json!({}), &claims);

    assert!(verifier.verify(&good, now(), None).await.is_ok());
    assert_eq!(verifier.verify(&bad, now(), None).await.err(), Some(TokenError::Signature));
}

#[tokio::test]
async fn a_key_in_the_token_is_never_used_or_fetched() {
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
async fn an_algorithm_must_be_allowed_and_match_the_key() {
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

    // Explicit typing of logout tokens is recommended, not required (Back-Channel Logout §2.4).
    let event = "http://schemas.openid.net/event/backchannel-logout";
    let logout = bench.signed(json!({ "typ": "JWT" }), json!({ "events": { event: {} } }));
    assert_eq!(bench.jwt(&logout).await.err(), Some(TokenError::Type));
    let claim = bench.token(json!({ "events": ["concert"] }));
    assert!(bench.jwt(&claim).await.is_ok(), "a claim of that name says nothing by itself");

    let strict = Bench::with(|_| (), |rules| rules.token_types = vec!["at+jwt".into()]).await;
    let untyped = json!({ "alg": "ES256", "kid": "k1" });
    let untyped = strict.key.sign_jwt(&untyped, &strict.claims(json!({}))).unwrap();
    assert_eq!(strict.jwt(&untyped).await.err(), Some(TokenError::Type));
    assert!(strict.jwt(&strict.token(json!({}))).await.is_ok());
}

#[tokio::test]
async fn duplicate_members_are_refused_everywhere() {
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
    let both = Verifier::new(
        TokenUse::Jwt,
        [Arc::clone(&ours.issuer_verifier), Arc::clone(&theirs.issuer_verifier)],
    );

    let good = ours.token(json!({}));
    let also_good = theirs.token(json!({}));
    // The other issuer's key, with the same `kid`, signs a token with our `iss`.
    let forged = theirs.token(json!({ "iss": ours.server.url }));
    let foreign = theirs.token(json!({ "iss": "https://other.example.com" }));

    assert!(both.verify(&good, now(), None).await.is_ok());
    assert!(both.verify(&also_good, now(), None).await.is_ok());
    assert_eq!(both.verify(&forged, now(), None).await.err(), Some(TokenError::Signature));
    assert_eq!(both.verify(&foreign, now(), None).await.err(), Some(TokenError::Issuer));
    let theirs_alone = ours.jwt(&also_good).await;
    assert_eq!(theirs_alone.err(), Some(TokenError::Issuer));
}

/// A migration from a shared secret to published keys: both issuers have one `iss`, and the key decides.
#[tokio::test]
async fn two_issuers_of_one_name_are_both_tried() {
    let bench = Bench::new().await;
    let secret = [7; 32];
    let mut settings = Settings::new("legacy", &bench.server.url);
    settings.discovery = Discovery::Off;
    settings.hmac_secret = Some(Secret::new(secret.to_vec()));
    let legacy = issuer_verifier(settings, |rules| {
        rules.algorithms = vec![Algorithm::Hs256];
        rules.audience = Audience::OneOf(["old".into()].into());
    });
    let ours = &bench.issuer_verifier;

    for issuers in [[Arc::clone(ours), Arc::clone(&legacy)], [legacy, Arc::clone(ours)]] {
        let both = Verifier::new(TokenUse::Jwt, issuers);
        let verify = async |token: String| {
            both.verify(&token, now(), None).await.map(|p| p.issuer.to_string())
        };
        let old = |aud: &str| hs256(&secret, &json!({}), &bench.claims(json!({ "aud": aud })));

        assert_eq!(verify(bench.token(json!({}))).await.as_deref(), Ok("main"));
        assert_eq!(verify(old("old")).await.as_deref(), Ok("legacy"));
        // Each key under the rules of its own issuer.
        assert_eq!(verify(old("api")).await, Err(TokenError::Audience));
        assert_eq!(verify(bench.token(json!({ "aud": "old" }))).await, Err(TokenError::Audience));
        // A public key is no secret of the other issuer.
        let point = bench.key.public_jwk()["x"].as_str().unwrap().to_owned();
        let confused = hs256(
            point.as_bytes(),
            &json!({ "kid": "k1" }),
            &bench.claims(json!({ "aud": "old" })),
        );
        assert_eq!(verify(confused).await, Err(TokenError::Signature));
        let forged = signing_key("k1")
            .sign_jwt(&json!({ "alg": "ES256", "kid": "k1" }), &bench.claims(json!({})))
            .unwrap();
        assert_eq!(verify(forged).await, Err(TokenError::Signature));
    }
}

#[tokio::test]
async fn only_tokens_of_listed_tenants_are_accepted() {
    let bench = Bench::with(
        |settings| {
            settings.endpoints.jwks = Some(format!("{}/jwks", settings.issuer).parse().unwrap());
            settings.issuer = format!("{}/{{tenantid}}/v2.0", settings.issuer).into();
            settings.tenants = ["a".into(), "b".into()].into();
            settings.discovery = Discovery::Off;
        },
        |_| (),
    )
    .await;
    let of =
        |tenant: &str| bench.token(json!({ "iss": format!("{}/{tenant}/v2.0", bench.server.url) }));

    assert!(bench.jwt(&of("a")).await.is_ok());
    assert!(bench.jwt(&of("b")).await.is_ok());
    for other in ["c", "{tenantid}", "", "a/../c", "A", "*"] {
        assert_eq!(bench.jwt(&of(other)).await.err(), Some(TokenError::Issuer), "{other}");
    }
}

#[tokio::test]
async fn the_size_of_a_token_is_bounded_as_the_issuer_says() {
    let bench = Bench::with(|_| (), |rules| rules.max_token_size = 40_000).await;
    let of_size = |size: usize| bench.token(json!({ "groups": "x".repeat(size) }));

    assert!(bench.jwt(&of_size(25_000)).await.is_ok());
    assert_eq!(bench.jwt(&of_size(30_000)).await.err(), Some(TokenError::TooLarge));
    let strict = Bench::with(|_| (), |rules| rules.max_token_size = 1_024).await;
    assert!(strict.jwt(&strict.token(json!({}))).await.is_ok());
    let large = strict.token(json!({ "groups": "x".repeat(900) }));
    assert_eq!(strict.jwt(&large).await.err(), Some(TokenError::TooLarge));
}

#[tokio::test]
async fn a_bound_token_is_refused_as_a_bearer_token() {
    let bench = Bench::new().await;
    let digest = to_base64url(&[7; 32]);

    for cnf in [json!({ "jkt": digest }), json!({ "x5t#S256": digest }), json!({ "new": 1 })] {
        let token = bench.token(json!({ "cnf": cnf }));
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Unproven), "{cnf}");
        assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Unproven), "kept: {cnf}");
    }
}

#[tokio::test]
async fn the_twin_of_a_signature_does_not_survive_a_revocation() {
    let bench = Bench::new().await;
    let token = bench.token(json!({}));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let twin = format!("{signed}.{}", to_base64url(&negate_s(signature)));
    let first = bench.jwt(&token).await.unwrap();
    let second = bench.jwt(&twin).await.unwrap();

    assert_ne!(first.digest, second.digest);
    bench.verifier(TokenUse::Jwt).withdraw(&twin);
    for token in [&token, &twin] {
        assert_eq!(bench.jwt(token).await.err(), Some(TokenError::Revoked));
    }
}

#[tokio::test]
async fn a_key_rotation_without_kid_is_noticed() {
    let bench = Bench::new().await;
    let anonymous = |key: &crate::issuer::keys::signing_key::SigningKey| {
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

fn issuer_verifier(
    settings: Settings,
    change: impl FnOnce(&mut ValidationRules),
) -> Arc<IssuerVerifier> {
    let clock = Clock::manual(now());
    let metrics = Metrics::new(&[1.0]);
    let mut rules = ValidationRules::new(Audience::OneOf(["api".into()].into()));
    change(&mut rules);
    let issuer = Issuer::new(settings, clock.clone(), &metrics, Handle::current()).unwrap();
    let revocations = RevocationList::new(clock.clone());
    Arc::new(IssuerVerifier::new(
        Arc::new(issuer),
        rules,
        revocations,
        clock,
        &metrics,
        Handle::current(),
    ))
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

/// The twin of an ECDSA signature on P-256: (r, n - s).
pub(super) fn negate_s(signature: &str) -> Vec<u8> {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63,
        0x25, 0x51,
    ];
    let mut bytes = base64url(signature).unwrap();
    let mut borrow = 0_i16;
    for index in (0..32).rev() {
        let difference = i16::from(ORDER[index]) - i16::from(bytes[32 + index]) - borrow;
        borrow = i16::from(difference < 0);
        bytes[32 + index] = (difference & 0xff) as u8;
    }
    bytes
}

fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}
