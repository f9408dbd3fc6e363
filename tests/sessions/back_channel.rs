//! Sessions ended by the issuer (OpenID Connect Back-Channel Logout 1.0) and by an operator, in every
//! kind of storage.

use core::time::Duration;

use crate::fault_injection::Endpoint;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, StatusCode};
use northgate::base::body::Body;
use northgate::base::clock::Clock;
use northgate::base::scopes::Scopes;
use northgate::dev::issuer::{API, Algorithm, DevIssuerConfig};
use northgate::session::{SessionErrorReason, Store, TokenStorage};
use northgate::token::{Revocation, RevocationTarget};
use serde_json::{Value, json};

use crate::code::code;
use crate::support::{Browser, Gate, NOW, text};

const STORAGES: [TokenStorage; 3] =
    [TokenStorage::SealedCookies, TokenStorage::PlainCookies, TokenStorage::Server(Store::Memory)];

#[tokio::test]
async fn the_issuer_ends_a_session_in_any_storage() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let (mut alice, other) = (gate.alice().await, gate.alice().await);
        let sid = sid(&gate, &alice).await;
        let token = gate.issuer.logout_token("gateway-web", &sid, "alice").unwrap();

        let (status, fields, said) = tell(&gate, &token).await;

        assert_eq!((status, &*said), (StatusCode::OK, ""), "{tokens:?}");
        assert_eq!(fields[CACHE_CONTROL], "no-store");
        let reason = gate.ask(&mut alice).await.unwrap_err().reason;
        assert!(
            matches!(reason, SessionErrorReason::Expired | SessionErrorReason::Missing),
            "{tokens:?}: {reason:?}"
        );
        assert_eq!(alice, Browser::default(), "{tokens:?}");
        assert!(gate.present(&other).await.is_ok(), "another login of hers goes on, {tokens:?}");
    }
}

#[tokio::test]
async fn all_sessions_of_a_subject_end_and_the_next_login_is_valid() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let (alice, other) = (gate.alice().await, gate.alice().await);
        let mut bob = Browser::default();
        gate.log_in(&mut bob, "bob", "builder").await;
        gate.advance(1);
        let token = sign(&gate, json!({ "typ": "logout+jwt" }), json!({ "sid": null }));

        assert_eq!(tell(&gate, &token).await.0, StatusCode::OK);

        assert!(gate.present(&alice).await.is_err(), "{tokens:?}");
        assert!(gate.present(&other).await.is_err(), "{tokens:?}");
        assert!(gate.present(&bob).await.is_ok(), "{tokens:?}");
        gate.advance(1);
        assert!(gate.present(&gate.alice().await).await.is_ok(), "{tokens:?}");
    }
}

/// Another entry of the same `iss` has the same users, and so has no other tenant.
#[tokio::test]
async fn a_logout_token_names_users_by_its_iss_where_the_name_of_the_issuer_does_not() {
    for sid in [json!("s1"), Value::Null] {
        let mut gate = Gate::start();
        gate.verify_by(|rules| rules.namespace = Some("any".into()));
        let alice = gate.alice().await;
        gate.advance(1);
        let mut events = gate.revocations.listen();

        let token = sign(&gate, json!({}), json!({ "sid": sid }));
        assert_eq!(tell(&gate, &token).await.0, StatusCode::OK);

        let event = events.try_recv().unwrap();
        assert_eq!(event.revocation.issuer.as_deref(), Some(gate.issuer.url()));
        assert_eq!(gate.present(&alice).await.is_err(), sid.is_null());
    }
}

#[tokio::test]
async fn a_logout_token_ends_older_sessions_and_no_later_one() {
    for tokens in STORAGES {
        for named_by_sid in [true, false] {
            let gate = Gate::with(|settings| settings.tokens = tokens);
            let before = gate.alice().await;
            gate.advance(10);
            let said = gate.clock.now().as_secs();
            gate.advance(30);
            let since = gate.alice().await;
            gate.advance(5);
            // It arrives late: the issuer has retried several times.
            let sid = if named_by_sid { json!(sid(&gate, &before).await) } else { Value::Null };
            let token = sign(&gate, json!({}), json!({ "sid": sid, "iat": said }));
            assert_eq!(tell(&gate, &token).await.0, StatusCode::OK);

            assert!(gate.present(&before).await.is_err(), "{tokens:?}");
            assert!(gate.present(&since).await.is_ok(), "{tokens:?}, by sid: {named_by_sid}");
        }
    }
}

#[tokio::test]
async fn a_logout_ends_sessions_of_an_issuer_whose_clock_is_behind() {
    for (behind, by_sid) in [(62, true), (200, true), (62, false), (200, false)] {
        let (clock, their) =
            (Clock::manual(NOW), Clock::manual(NOW.minus(Duration::from_secs(behind))));
        let gate = Gate::apart(clock, their, DevIssuerConfig::default(), |_| {}, |_| {});
        let alice = gate.alice().await;
        gate.advance(1);
        let sid = if by_sid { json!(sid(&gate, &alice).await) } else { Value::Null };
        let said = gate.clock.now().as_secs() - behind;
        let token = sign(&gate, json!({}), json!({ "sid": sid, "iat": said }));

        assert_eq!(tell(&gate, &token).await.0, StatusCode::OK);

        assert!(gate.present(&alice).await.is_err(), "{behind} seconds, by sid: {by_sid}");
    }
}

#[tokio::test]
async fn a_session_ends_by_the_names_of_either_token() {
    let named = [
        RevocationTarget::Subject("pairwise".into()),
        RevocationTarget::Subject("alice".into()),
        RevocationTarget::Session("of-the-access-token".into()),
    ];
    for what in named {
        let gate = Gate::with(code);
        let mut browser = Browser::default();
        let claims = json!({
            "iss": gate.issuer.url(), "sub": "pairwise", "aud": API, "exp": 1_800_000_600,
            "iat": 1_800_000_000, "sid": "of-the-access-token",
        });
        let access = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
        let more = json!({ "access_token": access, "refresh_token": "refresh" });
        gate.log_in_with(&mut browser, more).await;
        assert!(gate.present(&browser).await.is_ok());
        let redeemed = gate.issuer.count(Endpoint::Token);
        gate.advance(1);

        gate.revocations.revoke(Revocation { issuer: None, what: what.clone() }, None);

        assert_eq!(
            gate.present(&browser).await.unwrap_err().reason,
            SessionErrorReason::Expired,
            "{what:?}"
        );
        assert_eq!(gate.issuer.count(Endpoint::Token), redeemed, "{what:?}: refreshed");
    }
}

#[tokio::test]
async fn an_unknown_sid_ends_the_subjects_sessions_without_sid() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let with_sid = gate.alice().await;
        let known = sid(&gate, &with_sid).await;
        gate.advance(2);

        let unknown = sign(&gate, json!({}), json!({ "sid": "of-another-login" }));
        assert_eq!(tell(&gate, &unknown).await.0, StatusCode::OK);
        assert!(gate.present(&with_sid).await.is_ok(), "it has a name of its own, {tokens:?}");

        // Without `sub` it names no session, and the response reveals nothing.
        let unknown = sign(&gate, json!({}), json!({ "sid": "of-no-login", "sub": null }));
        for _ in 0..2 {
            let (status, _, told) = tell(&gate, &unknown).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{tokens:?}");
            assert!(told.contains("no session here has this sid"), "{told}");
        }
        assert!(gate.present(&with_sid).await.is_ok(), "{tokens:?}");

        let its_own = sign(&gate, json!({}), json!({ "sid": known, "sub": null }));
        assert_eq!(tell(&gate, &its_own).await.0, StatusCode::OK);
        assert!(gate.present(&with_sid).await.is_err(), "{tokens:?}");
    }
}

/// An issuer knows one address for the logout tokens of a client.
#[tokio::test]
async fn a_logout_token_is_accepted_for_a_sid_of_another_session_of_the_client() {
    let mut gate = Gate::start();
    let other = gate.another(|settings| settings.name = "admin".into());
    let alice = gate.alice().await;
    let token = sign(&gate, json!({}), json!({ "sid": sid(&gate, &alice).await, "sub": null }));

    let own = core::mem::replace(&mut gate.session, other);
    let (status, _, told) = tell(&gate, &token).await;

    assert_eq!(status, StatusCode::OK, "{told}");
    gate.session = own;
    assert!(gate.present(&alice).await.is_err());
}

#[tokio::test]
async fn a_session_without_an_id_token_is_named_by_its_access_token() {
    let gate = Gate::with(|settings| settings.scopes = Scopes::parse("orders:read offline_access"));
    let alice = gate.alice().await;
    gate.advance(1);
    let token = sign(&gate, json!({}), json!({ "sid": null }));

    assert_eq!(tell(&gate, &token).await.0, StatusCode::OK);

    assert_eq!(gate.present(&alice).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn the_tokens_of_an_ended_session_are_revoked_when_they_are_presented() {
    let gate = Gate::start();
    let mut alice = gate.alice().await;
    let token = sign(&gate, json!({}), json!({ "sid": sid(&gate, &alice).await }));
    tell(&gate, &token).await;

    gate.ask(&mut alice).await.unwrap_err();

    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
    let logouts = r#"northgate_session_logouts_total{session="web",kind="revoked"}"#;
    assert_eq!(gate.counted(logouts), 1);
}

#[tokio::test]
async fn successors_of_a_refreshed_session_end_too() {
    let gate = Gate::start();
    let before = gate.alice().await;
    let sid = sid(&gate, &before).await;
    let mut after = before.clone();
    gate.advance(590);
    gate.ask(&mut after).await.unwrap();
    assert_ne!(after, before);

    tell(&gate, &sign(&gate, json!({}), json!({ "sid": sid }))).await;

    assert_eq!(gate.present(&after).await.unwrap_err().reason, SessionErrorReason::Expired);
    assert_eq!(gate.present(&before).await.unwrap_err().reason, SessionErrorReason::Expired);
    assert_eq!(gate.issuer.count(Endpoint::Token), 2, "nothing was redeemed for them");
}

#[tokio::test]
async fn a_logout_token_must_satisfy_every_rule() {
    let gate = Gate::start();
    let alice = gate.alice().await;
    let sid = sid(&gate, &alice).await;
    let now = gate.clock.now().as_secs();
    let typ = || json!({ "typ": "logout+jwt" });
    let with = |mut claims: Value| {
        claims.as_object_mut().unwrap().entry("sid").or_insert_with(|| json!(sid));
        sign(&gate, typ(), claims)
    };
    let event =
        |value: Value| json!({ "http://schemas.openid.net/event/backchannel-logout": value });
    let good = with(json!({}));
    let (signed, _) = good.rsplit_once('.').unwrap();
    let bad = [
        ("another issuer", with(json!({ "iss": "https://evil.test" }))),
        ("another client", with(json!({ "aud": "gateway" }))),
        ("no client", with(json!({ "aud": null }))),
        ("expired", with(json!({ "exp": now - 31 }))),
        ("no exp", with(json!({ "exp": null }))),
        ("no iat", with(json!({ "iat": null }))),
        ("said in the future", with(json!({ "iat": now + 31, "exp": now + 100 }))),
        ("said long ago", with(json!({ "iat": now - 700 }))),
        ("no jti", with(json!({ "jti": null }))),
        ("a jti that is none", with(json!({ "jti": 7 }))),
        ("no session and no subject", with(json!({ "sid": null, "sub": null }))),
        ("an empty sid alone", with(json!({ "sid": "", "sub": null }))),
        ("a sid that is none", with(json!({ "sid": [sid.clone()] }))),
        ("no events", with(json!({ "events": null }))),
        ("events in a list", with(json!({ "events": [event(json!({}))] }))),
        (
            "another event",
            with(json!({ "events": { "http://schemas.openid.net/event/other": {} } })),
        ),
        ("an event that is no object", with(json!({ "events": event(json!(true)) }))),
        ("a nonce", with(json!({ "nonce": "n" }))),
        ("an access token's type", sign(&gate, json!({ "typ": "at+jwt" }), json!({ "sid": sid }))),
        ("an unknown key", sign(&gate, json!({ "kid": "unknown" }), json!({ "sid": sid }))),
        ("another algorithm", sign(&gate, json!({ "alg": "HS256" }), json!({ "sid": sid }))),
        ("no signature", format!("{signed}.")),
        (
            "another's signature",
            format!("{signed}.{}", with(json!({ "jti": "x" })).rsplit_once('.').unwrap().1),
        ),
        ("no token", "nonsense".to_owned()),
        ("nothing", String::new()),
    ];

    for (what, token) in &bad {
        let (status, fields, said) = tell(&gate, token).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{what}");
        assert_eq!(fields[CACHE_CONTROL], "no-store", "{what}");
        let said: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(said["error"], "invalid_request", "{what}");
        assert!(gate.present(&alice).await.is_ok(), "{what}");
    }

    assert_eq!(
        tell(&gate, &good).await.0,
        StatusCode::OK,
        "all others differ from this one in one point"
    );
    assert!(gate.present(&alice).await.is_err());
}

#[tokio::test]
async fn a_logout_token_is_accepted_once() {
    let gate = Gate::start();
    gate.alice().await;
    let token = sign(&gate, json!({}), json!({ "sid": null }));

    assert_eq!(tell(&gate, &token).await.0, StatusCode::OK);
    gate.advance(1);
    let alice = gate.alice().await;
    let (status, _, said) = tell(&gate, &token).await;

    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    assert!(gate.present(&alice).await.is_ok());
}

#[tokio::test]
async fn a_logout_token_is_posted_as_a_form() {
    let gate = Gate::start();
    let alice = gate.alice().await;
    let token = sign(&gate, json!({}), json!({ "sid": sid(&gate, &alice).await }));
    let form = format!("logout_token={token}");
    let ask = async |method: Method, kind: &str, body: String| {
        let request = Request::builder().method(method).uri("/auth/back-channel-logout");
        let request = request.header(CONTENT_TYPE, kind).body(Body::from(body)).unwrap();
        gate.serve(&mut Browser::default(), request).await
    };
    let kind = "application/x-www-form-urlencoded";

    let got = ask(Method::GET, kind, String::new()).await;
    assert_eq!(
        (got.status(), &got.headers()[ALLOW]),
        (StatusCode::METHOD_NOT_ALLOWED, &"POST".parse().unwrap())
    );
    for (kind, body) in [
        ("application/json", json!({ "logout_token": token }).to_string()),
        ("text/plain", form.clone()),
        (kind, format!("{form}&{form}")),
        (kind, format!("token={token}")),
        (kind, format!("{form}&padding={}", "x".repeat(40_000))),
    ] {
        assert_eq!(ask(Method::POST, kind, body).await.status(), StatusCode::BAD_REQUEST, "{kind}");
    }
    assert!(gate.present(&alice).await.is_ok());

    // Other parameters of the issuer are ignored.
    let answer =
        ask(Method::POST, &format!("{kind}; charset=utf-8"), format!("more=1&{form}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(gate.present(&alice).await.is_err());
}

#[tokio::test]
async fn an_operators_revocation_ends_sessions_of_that_issuer_alone() {
    let named = |issuer: Option<&str>, what| Revocation { issuer: issuer.map(Into::into), what };
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let alice = gate.alice().await;
        let sid = sid(&gate, &alice).await;

        gate.revocations
            .revoke(named(Some("other"), RevocationTarget::Session((*sid).into())), None);
        assert!(gate.present(&alice).await.is_ok(), "{tokens:?}");
        gate.revocations.revoke(named(None, RevocationTarget::Session((*sid).into())), None);
        assert!(gate.present(&alice).await.is_err(), "{tokens:?}");
    }
}

#[tokio::test]
async fn a_logout_token_whose_sub_is_null_names_the_session_by_its_sid() {
    let gate = Gate::start();
    let alice = gate.alice().await;
    let now = gate.clock.now().as_secs();
    let token = |sid: Value| {
        let claims = json!({
            "iss": gate.issuer.url(), "aud": "gateway-web", "sub": null, "sid": sid, "iat": now,
            "exp": now + 120, "jti": "one",
            "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
        });
        gate.issuer.sign(Algorithm::Es256, json!({ "typ": "logout+jwt" }), claims)
    };
    assert_eq!(tell(&gate, &token(Value::Null)).await.0, StatusCode::BAD_REQUEST);

    let (status, ..) = tell(&gate, &token(json!(sid(&gate, &alice).await))).await;

    assert_eq!(status, StatusCode::OK);
    assert!(gate.present(&alice).await.is_err());
}

#[tokio::test]
async fn an_ended_session_stays_ended_when_the_configuration_renames_its_issuer() {
    for claims in [json!({ "sub": null }), json!({ "sid": null })] {
        let mut gate = Gate::start();
        let ended = gate.alice().await;
        let mut claims = claims;
        if claims["sub"].is_null() {
            claims["sid"] = json!(sid(&gate, &ended).await);
        }
        assert_eq!(tell(&gate, &sign(&gate, json!({}), claims.clone())).await.0, StatusCode::OK);
        gate.advance(1);
        let later = gate.alice().await;

        gate.reload(|settings| settings.issuer = "idp".into());

        assert_eq!(
            gate.present(&ended).await.unwrap_err().reason,
            SessionErrorReason::Expired,
            "{claims}"
        );
        assert!(gate.present(&later).await.is_ok(), "{claims}");
    }
}

/// The `sid` of alice's session.
async fn sid(gate: &Gate, browser: &Browser) -> String {
    let signed = gate.present(browser).await.unwrap();
    signed.principal.session.as_deref().unwrap().to_owned()
}

/// A valid logout token of alice's with these claims; `null` removes one.
fn sign(gate: &Gate, header: Value, claims: Value) -> String {
    let now = gate.clock.now().as_secs();
    let mut all = json!({
        "iss": gate.issuer.url(), "aud": "gateway-web", "sub": "alice", "iat": now, "exp": now + 120,
        "jti": format!("{now}-{claims}"),
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
    });
    for (name, value) in claims.as_object().unwrap() {
        match value {
            Value::Null => drop(all.as_object_mut().unwrap().remove(name)),
            value => all[name] = value.clone(),
        }
    }
    gate.issuer.sign(Algorithm::Es256, header, all)
}

async fn tell(gate: &Gate, token: &str) -> (StatusCode, HeaderMap, String) {
    let request = Request::post("/auth/back-channel-logout")
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Body::from(format!("logout_token={token}")))
        .unwrap();
    let response = gate.serve(&mut Browser::default(), request).await;
    let (status, fields) = (response.status(), response.headers().clone());
    (status, fields, text(response).await)
}
