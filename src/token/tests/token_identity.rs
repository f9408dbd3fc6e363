//! Tokens are identified by the whole: those that differ only at the end are different tokens.

use core::time::Duration;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::json;

use super::Bench;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::tests::mock_issuer::{Answer, Asked, INTROSPECT};
use crate::token::{Revocation, RevocationTarget, TokenDigests, TokenError, TokenUse};

/// Families of tokens that differ only at the end.
fn families() -> Vec<Vec<String>> {
    let encode = |json: &str| to_base64url(json.as_bytes());
    let jwt_like = format!("{}.{}", encode(r#"{"alg":"ES256"}"#), encode(r#"{"sub":"a"}"#));
    let with_ends = |head: &str, ends: &[&str]| {
        ends.iter().map(|end| format!("{head}{end}")).collect::<Vec<_>>()
    };
    vec![
        with_ends("v4.local.", &["alice", "bob", "carol"]),
        with_ends("v4.public.payload.", &["alice", "bob", ""]),
        with_ends("header.payload.", &["alice", "bob", "AAAA", ""]),
        with_ends(&format!("{jwt_like}."), &["YWxpY2U", "Ym9i", "AAAA", ""]),
        with_ends("a.b.c.d.", &["alice", "bob"]),
        with_ends("prefix.", &["alice", "bob", ""]),
        with_ends("x.y", &["", ".", "..", "."]).into_iter().take(3).collect(),
    ]
}

/// Makes the issuer report every token itself as its subject.
fn names_each_by_itself(bench: &Bench, delay: Duration) {
    bench.server.hears(INTROSPECT, move |asked: &Asked| {
        let token = asked.field("token").unwrap();
        if token.ends_with("AAAA") {
            return Answer::json(json!({ "active": false })).after(delay);
        }
        Answer::json(json!({ "active": true, "sub": token, "aud": "api" })).after(delay)
    });
}

#[tokio::test]
async fn opaque_tokens_with_a_common_prefix_have_different_subjects() {
    for kind in [TokenUse::Introspection, TokenUse::Bearer] {
        for family in families() {
            let bench = Bench::new().await;
            names_each_by_itself(&bench, Duration::ZERO);
            let verifier = bench.verifier(kind);
            for token in family.iter().chain(&family) {
                let verdict = verifier.verify(token, bench.clock.now(), None).await;
                if token.ends_with("AAAA") {
                    assert_eq!(verdict.err(), Some(TokenError::Inactive), "{token}");
                } else {
                    assert_eq!(verdict.unwrap().subject.as_deref(), Some(&**token), "{kind:?}");
                }
            }
            assert_eq!(bench.server.count(INTROSPECT), family.len(), "each is asked about once");
        }
    }
}

#[tokio::test]
async fn simultaneous_introspections_of_tokens_with_a_common_prefix_are_separate() {
    for family in families() {
        let bench = Bench::new().await;
        names_each_by_itself(&bench, Duration::from_millis(20));
        let verdicts = join_all(family.iter().map(|token| bench.reference(token))).await;

        for (token, verdict) in family.iter().zip(verdicts) {
            let subject = verdict.ok().and_then(|principal| principal.subject.clone());
            let expected = (!token.ends_with("AAAA")).then_some(&**token);
            assert_eq!(subject.as_deref(), expected);
        }
    }
}

#[tokio::test]
async fn an_inactive_token_does_not_block_its_family() {
    let bench = Bench::new().await;
    names_each_by_itself(&bench, Duration::ZERO);

    for _ in 0..3 {
        assert_eq!(bench.reference("h.p.AAAA").await.err(), Some(TokenError::Inactive));
    }

    assert!(bench.reference("h.p.genuine").await.is_ok());
    assert!(bench.reference("h.p.AAAA").now_or_never().unwrap().is_err());
    assert!(bench.reference("h.p.genuine").now_or_never().unwrap().is_ok());
}

#[tokio::test]
async fn revoking_one_opaque_token_leaves_its_family_valid() {
    for family in families() {
        let active: Vec<_> = family.iter().filter(|token| !token.ends_with("AAAA")).collect();
        for by_operator in [true, false] {
            let bench = Bench::new().await;
            names_each_by_itself(&bench, Duration::ZERO);
            for token in &active {
                bench.reference(token).await.unwrap();
            }
            if by_operator {
                for what in RevocationTarget::token(active[0]) {
                    bench.revocations.revoke(Revocation { issuer: None, what }, None);
                }
            } else {
                bench.verifier(TokenUse::Bearer).withdraw(active[0]);
            }

            assert_eq!(bench.reference(active[0]).await.err(), Some(TokenError::Revoked));
            for token in &active[1..] {
                let kept = bench.reference(token).now_or_never().expect("it was not forgotten");
                assert_eq!(kept.unwrap().subject.as_deref(), Some(&***token));
            }
        }
    }
}

#[tokio::test]
async fn a_phantom_token_belongs_to_the_whole_opaque_token() {
    let bench = Arc::new(Bench::new().await);
    let phantoms = ["alice", "bob"].map(|sub| (sub, bench.token(json!({ "sub": sub }))));
    let said = phantoms.clone();
    bench.server.hears(INTROSPECT, move |asked: &Asked| {
        let token = asked.field("token").unwrap();
        let found = said.iter().find(|(sub, _)| token.ends_with(sub));
        found.map_or_else(
            || Answer::json(json!({ "active": false })),
            |(_, phantom)| Answer::text("application/jwt", phantom.clone()),
        )
    });
    let verifier = bench.verifier(TokenUse::Introspection).with_signed_responses();

    for _ in 0..2 {
        for (sub, phantom) in &phantoms {
            let verdict = verifier.verify(&format!("ref.v1.{sub}"), bench.clock.now(), None).await;
            let principal = verdict.unwrap();
            assert_eq!(principal.signed.as_ref().unwrap(), &format!("Bearer {phantom}"));
            assert_eq!(principal.subject.as_deref(), Some(*sub));
        }
        let other = verifier.verify("ref.v1.mallory", bench.clock.now(), None).await;
        assert_eq!(other.err(), Some(TokenError::Inactive));
    }
}

#[tokio::test]
async fn a_token_cannot_be_revoked_without_its_signature() {
    let bench = Bench::new().await;
    let token = bench.token(json!({ "jti": "t1" }));
    let (signed, _) = token.rsplit_once('.').unwrap();
    bench.jwt(&token).await.unwrap();

    // A logout with forged cookies revokes the tokens in them.
    for made_up in [format!("{signed}.AAAA"), format!("{signed}."), signed.to_owned()] {
        bench.verifier(TokenUse::Jwt).withdraw(&made_up);
    }

    assert!(bench.jwt(&token).now_or_never().expect("it was not forgotten").is_ok());
    bench.verifier(TokenUse::Jwt).withdraw(&token);
    assert_eq!(bench.jwt(&token).await.err(), Some(TokenError::Revoked));
}

#[tokio::test]
async fn an_introspected_jwt_with_a_jti_is_revoked_under_every_signature() {
    let bench = Bench::new().await;
    names_each_by_itself(&bench, Duration::ZERO);
    let token = bench.token(json!({ "jti": "t1" }));
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let twin = format!("{signed}.{}", to_base64url(&super::attacks::negate_s(signature)));
    bench.reference(&token).await.unwrap();

    bench.verifier(TokenUse::Introspection).withdraw(&token);

    for token in [&token, &twin] {
        assert_eq!(bench.reference(token).await.err(), Some(TokenError::Revoked));
    }
    let next = bench.token(json!({ "jti": "t2" }));
    assert!(bench.reference(&next).await.is_ok());
}

#[tokio::test]
async fn a_revoked_jwt_is_refused_in_every_spelling_of_its_signature() {
    let bench = Bench::new().await;
    names_each_by_itself(&bench, Duration::ZERO);
    let (header, claims) = (to_base64url(br#"{"alg":"ES256K"}"#), br#"{"jti":"t1"}"#);
    let signed = format!("{header}.{}", to_base64url(claims));
    for what in RevocationTarget::token(&format!("{signed}.c2ln")) {
        bench.revocations.revoke(Revocation { issuer: None, what }, None);
    }

    // A server that ignores unused bits and padding takes all of them for one token.
    for signature in ["c2ln", "c2lo", "c2ln==", ""] {
        let token = format!("{signed}.{signature}");
        assert_eq!(bench.reference(&token).await.err(), Some(TokenError::Revoked), "{token}");
    }
}

#[tokio::test]
async fn the_digests_of_a_principal_are_those_of_its_token() {
    let bench = Bench::new().await;
    names_each_by_itself(&bench, Duration::ZERO);
    let signed = bench.token(json!({}));

    let principal = bench.jwt(&signed).await.unwrap();
    assert_eq!(
        TokenDigests { whole: principal.digest, unsigned: principal.unsigned_digest },
        TokenDigests::of_signed(&signed)
    );
    let principal = bench.reference("a.b.c").await.unwrap();
    assert_eq!(
        (principal.digest, principal.unsigned_digest),
        (crate::token::token_digest("a.b.c"), None)
    );
}
