//! The ID tokens of logins and refreshes: verified, or of no effect.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use northgate::base::scopes::Scopes;
use northgate::dev::issuer::{API, Algorithm, DevIssuerConfig};
use northgate::session::{ForwardedSessionToken, SessionErrorReason};
use serde_json::{Value, json};

use crate::code::{code, parameter};
use crate::fault_injection::{Endpoint, Fault};
use crate::issuer_pages::walk;
use crate::support::{Browser, Gate, NOW, text, without_introspection};

/// The claims of an ID token of alice's, an administrator.
fn admin(gate: &Gate) -> Value {
    let now = gate.clock.now().as_secs();
    json!({
        "iss": gate.issuer.url(), "sub": "alice", "aud": "gateway-web", "iat": now, "exp": now + 300,
        "email": "admin@example.com",
    })
}

/// ID tokens that no relying party may accept, and one that it must.
fn id_tokens(gate: &Gate) -> [(String, bool); 7] {
    let sign = |change: fn(&mut Value)| {
        let mut claims = admin(gate);
        change(&mut claims);
        gate.issuer.sign(Algorithm::Es256, json!({ "typ": "JWT" }), claims)
    };
    let good = sign(|_| {});
    let signed_by_none = good.rsplit_once('.').unwrap().0;
    [
        ("garbage".to_owned(), false),
        (format!("{signed_by_none}.AAAA"), false),
        (sign(|claims| claims["aud"] = "other".into()), false),
        (sign(|claims| claims["iss"] = "http://evil.example".into()), false),
        (sign(|claims| claims["exp"] = 1.into()), false),
        (sign(|claims| drop(claims.as_object_mut().unwrap().remove("sub"))), false),
        (good, true),
    ]
}

fn tokens(id_token: &str) -> Fault {
    let tokens = json!({
        "access_token": "opaque", "token_type": "Bearer", "expires_in": 600,
        "refresh_token": "s", "id_token": id_token,
    });
    Fault::json(&tokens)
}

#[tokio::test]
async fn the_id_token_of_a_refresh_counts_only_if_it_is_verified() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    gate.log_in_with(&mut browser, json!({ "refresh_token": "r" })).await;
    gate.advance(700);
    for at in 0..id_tokens(&gate).len() {
        let (id_token, is_good) = id_tokens(&gate)[at].clone();
        gate.issuer.inject(Endpoint::Token, tokens(&id_token), 1);

        let user = gate.ask(&mut browser).await.unwrap();

        let email = if is_good { "admin@example.com" } else { "alice@example.com" };
        assert_eq!(user.principal.claims["email"], email, "{id_token}");
        assert_eq!(user.principal.subject.as_deref(), Some("alice"), "{id_token}");
        gate.advance(700);
    }
}

#[tokio::test]
async fn a_session_whose_forwarded_id_token_cannot_be_verified_for_now_waits_for_its_key() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.forward = ForwardedSessionToken::IdToken;
    });
    let mut browser = Browser::default();
    gate.log_in_with(&mut browser, json!({ "refresh_token": "r" })).await;
    gate.advance(301);
    let is_away = |reason| matches!(reason, SessionErrorReason::Unavailable { .. });
    let id_token = |header| gate.issuer.sign(Algorithm::Es256, header, admin(&gate));

    // An outage is no request without `Authorization`, which an upstream could take for one without a user.
    let away = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    gate.issuer.inject(Endpoint::Token, away, 1);
    assert!(is_away(gate.ask(&mut browser).await.unwrap_err().reason));
    // The issuer has a new key, which cannot be fetched.
    gate.advance(6);
    let unknown = tokens(&id_token(json!({ "typ": "JWT", "kid": "new" })));
    gate.issuer.inject(Endpoint::Token, unknown, 1);
    assert!(is_away(gate.ask(&mut browser).await.unwrap_err().reason));
    let calls = gate.issuer.count(Endpoint::Token);
    assert!(is_away(gate.ask(&mut browser).await.unwrap_err().reason));
    assert_eq!(gate.issuer.count(Endpoint::Token), calls, "not with each request");
    gate.advance(6);
    gate.issuer.inject(Endpoint::Token, tokens(&id_token(json!({ "typ": "JWT" }))), 1);
    let user = gate.ask(&mut browser).await.unwrap();

    assert!(user.forward.is_some());
    assert_eq!(gate.issuer.count(Endpoint::Revocation), 0);
}

#[tokio::test]
async fn a_refresh_whose_token_is_introspected_as_another_subjects_ends_the_session() {
    let gate = Gate::with(code);
    let about = |sub: &str| {
        let end = NOW.as_secs() + 6000;
        let claims = json!({
            "active": true, "iss": gate.issuer.url(), "sub": sub, "aud": API, "exp": end,
        });
        Fault::json(&claims)
    };
    let mut browser = Browser::default();
    gate.issuer.inject(Endpoint::Introspection, about("alice"), 1);
    gate.log_in_with(&mut browser, json!({ "refresh_token": "r" })).await;
    gate.advance(700);
    let mut other = json!({ "token_type": "Bearer", "expires_in": 600, "refresh_token": "s" });
    other["access_token"] = "mallorys".into();
    gate.issuer.inject(Endpoint::Token, Fault::json(&other), 1);
    gate.issuer.inject(Endpoint::Introspection, about("mallory"), u32::MAX);

    let refused = gate.ask(&mut browser).await.unwrap_err();

    assert_eq!(refused.reason, SessionErrorReason::Expired);
    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Missing);
}

#[tokio::test]
async fn the_id_token_of_a_password_login_is_verified() {
    let gate = Gate::start();
    for (id_token, is_good) in id_tokens(&gate) {
        let mut answer = json!({ "token_type": "Bearer", "expires_in": 600, "id_token": id_token });
        let claims = json!({
            "iss": gate.issuer.url(), "sub": "alice", "aud": API, "exp": NOW.as_secs() + 600,
        });
        answer["access_token"] =
            gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims).into();
        let body = answer.to_string().into();
        let content_type = "application/json";
        let answer = Fault::Answer { status: StatusCode::OK, content_type, body };
        gate.issuer.inject(Endpoint::Token, answer, 1);

        let response = gate.log_in(&mut Browser::default(), "alice", "wonderland").await;

        let expected = if is_good { StatusCode::SEE_OTHER } else { StatusCode::BAD_GATEWAY };
        assert_eq!(response.status(), expected, "{id_token}");
    }
}

#[tokio::test]
async fn an_id_token_that_was_not_asked_for_tells_nothing() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.scopes = Scopes::parse("orders:read");
        settings.userinfo = true;
    });
    let mut browser = Browser::default();
    let userinfo = Fault::json(&json!({ "id": 7 }));
    gate.issuer.inject(Endpoint::UserInfo, userinfo, 1);

    gate.log_in_with(&mut browser, json!({})).await;

    let user = gate.ask(&mut browser).await.unwrap();
    assert_eq!(user.principal.subject.as_deref(), Some("7"));
    assert_eq!(user.principal.claims.get("email"), None);
    assert_eq!(user.principal.scopes.to_string(), "", "the user can edit those of the request");
}

#[tokio::test]
async fn a_login_whose_key_is_not_known_yet_may_be_tried_again_and_leaves_no_tokens() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let id_token = |kid: &str| {
        gate.issuer.sign(Algorithm::Es256, json!({ "typ": "JWT", "kid": kid }), admin(&gate))
    };
    // The first makes the gateway fetch the keys, the second comes too soon for that.
    for kid in ["one", "two"] {
        let more = json!({ "id_token": id_token(kid), "refresh_token": kid });

        let response = gate.log_in_with(&mut browser, more).await;

        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{kid}");
    }
    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Missing);
    gate.issuer.wait_for_calls(Endpoint::Revocation, 4).await;
}

#[tokio::test]
async fn a_login_is_as_recent_as_the_configured_max_age_demands() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.authorize_parameters = vec![("max_age".into(), "60".into())];
    });
    let at = |ago: u64| json!({ "auth_time": NOW.as_secs() - ago });
    for (about, status) in [
        (at(7200), StatusCode::BAD_GATEWAY),
        (json!({}), StatusCode::BAD_GATEWAY),
        (at(30), StatusCode::SEE_OTHER),
    ] {
        let mut browser = Browser::default();

        let response = gate.log_in_claiming(&mut browser, about.clone(), json!({})).await;

        assert_eq!(response.status(), status, "{about}");
    }
}

#[tokio::test]
async fn the_id_token_tells_how_the_user_has_logged_in() {
    let gate = Gate::with(code);
    // The second as servers do that call one user differently at each of their clients.
    for (access, id, sub) in [("1", "gold", "alice"), ("1", "gold", "x"), ("gold", "1", "alice")] {
        let claims = json!({
            "iss": gate.issuer.url(), "sub": sub, "aud": API, "exp": NOW.as_secs() + 600,
            "acr": access, "amr": ["pwd"],
        });
        let access = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
        let mut browser = Browser::default();
        let more = json!({ "access_token": access });

        gate.log_in_claiming(&mut browser, json!({ "acr": id }), more).await;

        let user = gate.ask(&mut browser).await.unwrap();
        assert_eq!(user.principal.claims["acr"], id);
        assert_eq!(user.principal.claims["amr"], json!(["pwd"]), "only the access token tells");
        assert_eq!(user.principal.subject.as_deref(), Some(sub));
    }
}

#[tokio::test]
async fn an_encrypted_access_token_for_the_gateway_is_verified_like_a_bare_one() {
    // Of an issuer without introspection.
    let mut gate = Gate::asking(DevIssuerConfig::default(), without_introspection, code);
    gate.decrypt_with([7; 32]);
    let claims = json!({
        "iss": gate.issuer.url(), "sub": "alice", "aud": API, "exp": NOW.as_secs() + 600,
        "scope": "orders:read",
    });
    let access = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
    for (secret, scope) in [([7; 32], "orders:read"), ([8; 32], "openid")] {
        let mut browser = Browser::default();
        let more = json!({ "access_token": encrypted(&access, secret) });

        gate.log_in_with(&mut browser, more).await;

        let user = gate.ask(&mut browser).await.unwrap();
        assert_eq!(user.principal.scopes.to_string(), scope);
    }
}

#[tokio::test]
async fn an_encrypted_id_token_is_opened_and_verified_like_a_bare_one() {
    let mut gate = Gate::with(code);
    gate.decrypt_with([7; 32]);
    let id_token = |nonce: Option<String>, email: &str, key: [u8; 32]| {
        let mut claims = admin(&gate);
        claims["nonce"] = json!(nonce);
        claims["email"] = email.into();
        let signed = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "JWT" }), claims);
        encrypted(&signed, key)
    };
    for (secret, status) in [([8; 32], StatusCode::BAD_GATEWAY), ([7; 32], StatusCode::SEE_OTHER)] {
        let mut browser = Browser::default();
        let away = gate.depart_unpushed(&mut browser, "/auth/login").await;
        let back = walk(&away, "allow").await;
        let token = id_token(parameter(&away, "nonce"), "login@example.com", secret);
        gate.issuer.inject(Endpoint::Token, tokens(&token), 1);

        let response = gate.come_back(&mut browser, &back).await;

        assert_eq!(response.status(), status);
        if status == StatusCode::SEE_OTHER {
            let user = gate.ask(&mut browser).await.unwrap();
            assert_eq!(user.principal.claims["email"], "login@example.com");
            gate.advance(700);
            let refreshed = id_token(None, "refresh@example.com", secret);
            gate.issuer.inject(Endpoint::Token, tokens(&refreshed), 1);
            let user = gate.ask(&mut browser).await.unwrap();
            assert_eq!(user.principal.claims["email"], "refresh@example.com");
        }
    }
}

#[tokio::test]
async fn the_page_says_which_claim_the_id_token_lacks() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.authorize_parameters = vec![("max_age".into(), "60".into())];
    });
    for (about, said) in [
        (json!({ "iat": null }), "lacks a claim that every ID token has"),
        (json!({}), "lacks `auth_time`"),
        (json!({ "auth_time": 1 }), "its token is not accepted here"),
    ] {
        let response = gate.log_in_claiming(&mut Browser::default(), about, json!({})).await;

        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let page = text(response).await;
        assert!(page.contains(said), "{said}: {page}");
    }
}

/// The token, encrypted with `secret`.
fn encrypted(token: &str, secret: [u8; 32]) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"dir","enc":"A256GCM"}"#);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret).unwrap());
    let (iv, mut text) = ([1; 12], token.as_bytes().to_vec());
    let aad = Aad::from(header.as_bytes());
    let nonce = Nonce::assume_unique_for_key(iv);
    let tag = key.seal_in_place_separate_tag(nonce, aad, &mut text).unwrap();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!("{header}..{}.{}.{}", encode(&iv), encode(&text), encode(tag.as_ref()))
}
