//! The binding and the lifetime of cookies, for every token storage.

use crate::fault_injection::{Endpoint, Fault};
use http::Method;
use northgate::base::scopes::Scopes;
use northgate::session::{Csrf, SameSite, SessionErrorReason, Store, TokenStorage};
use serde_json::json;

use crate::code::code;
use crate::issuer_pages::walk;
use crate::support::{Browser, Gate};

const STORAGES: [TokenStorage; 3] =
    [TokenStorage::SealedCookies, TokenStorage::PlainCookies, TokenStorage::Server(Store::Memory)];

/// Plain cookies have the same lifetimes as others.
#[tokio::test]
async fn plain_cookies_are_over_when_idle_or_old() {
    let plain = || Gate::with(|settings| settings.tokens = TokenStorage::PlainCookies);
    let gate = plain();
    let mut browser = gate.alice().await;
    gate.advance(1_700);
    gate.ask(&mut browser).await.expect("is used often enough");
    gate.advance(1_800);
    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
    assert_eq!(browser, Browser::default());

    let gate = plain();
    let mut browser = gate.alice().await;
    for _ in 0..43 {
        gate.advance(1_000);
        gate.ask(&mut browser).await.expect("is used often enough");
    }
    gate.advance(200);
    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn plain_tokens_are_a_session_only_with_the_cookie_sealed_beside_them() {
    let gate = Gate::with(|settings| settings.tokens = TokenStorage::PlainCookies);
    let alice = gate.alice().await;
    gate.advance(300);
    let later = gate.alice().await;
    assert!(gate.present(&alice).await.is_ok() && gate.present(&later).await.is_ok());

    for name in ["__Host-web", "__Host-access_token", "__Host-refresh_token"] {
        let mut without = alice.clone();
        without.jar.remove(name).unwrap();
        assert_eq!(
            gate.present(&without).await.unwrap_err().reason,
            SessionErrorReason::Missing,
            "{name}"
        );
        // Nor does a later login extend an old token.
        let mut mixed = alice.clone();
        mixed.jar.insert(name.into(), later.jar[name].clone());
        assert_eq!(
            gate.present(&mixed).await.unwrap_err().reason,
            SessionErrorReason::Missing,
            "{name}"
        );
    }
}

#[tokio::test]
async fn the_csrf_token_of_one_browser_is_no_other_browsers() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| {
            settings.tokens = tokens;
            settings.csrf = Csrf::Token;
        });
        let (mut alice, mallory) = (gate.alice().await, gate.alice().await);
        let token = alice.jar["__Host-web.csrf"].clone();
        assert_ne!(token, mallory.jar["__Host-web.csrf"], "{tokens:?}");

        gate.advance(700);
        gate.ask(&mut alice).await.unwrap();

        let post = async |browser: &Browser, token: &str| {
            let request = browser.request(Method::POST, "/app").header("x-csrf-token", token);
            let (head, ()) = request.body(()).unwrap().into_parts();
            gate.session.authenticate(&head, None).await
        };
        assert!(post(&alice, &token).await.is_ok(), "{tokens:?}: it outlives a refresh");
        let planted = mallory.jar["__Host-web.csrf"].clone();
        alice.jar.insert("__Host-web.csrf".into(), planted.clone());
        assert_eq!(
            post(&alice, &planted).await.unwrap_err().reason,
            SessionErrorReason::Csrf,
            "{tokens:?}"
        );
    }
}

#[tokio::test]
async fn with_another_issuer_or_client_old_cookies_open_to_nothing() {
    for tokens in [TokenStorage::SealedCookies, TokenStorage::PlainCookies] {
        let mut gate = Gate::with(|settings| settings.tokens = tokens);
        let browser = gate.alice().await;
        // The same name and the same keys, at another address.
        let other = Gate::with(|settings| settings.tokens = tokens);
        assert_eq!(other.present(&browser).await.unwrap_err().reason, SessionErrorReason::Missing);

        gate.reload(|settings| settings.client.id = "another".into());
        assert_eq!(gate.present(&browser).await.unwrap_err().reason, SessionErrorReason::Missing);
        gate.reload(|settings| settings.client.id = "gateway-web".into());
        assert!(gate.present(&browser).await.is_ok());
    }
}

#[tokio::test]
async fn no_issuer_gets_the_refresh_tokens_of_another_that_had_its_name() {
    for tokens in STORAGES {
        let mut gate = Gate::with(|settings| settings.tokens = tokens);
        let other = Gate::start();
        let browser = gate.alice().await;
        gate.advance(700);
        gate.move_to_issuer_of(&other);

        assert_eq!(
            gate.present(&browser).await.unwrap_err().reason,
            SessionErrorReason::Missing,
            "{tokens:?}"
        );
        assert_eq!(other.issuer.count(Endpoint::Token), 0);
    }
}

#[tokio::test]
async fn tokens_that_outgrow_their_cookies_end_a_session_late_and_are_reported() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    gate.advance(550);
    let tokens = json!({
        "access_token": "x".repeat(15_000), "token_type": "Bearer", "expires_in": 600,
        "refresh_token": "y".repeat(15_000),
    });
    let grown = Fault::json(&tokens);
    gate.issuer.inject(Endpoint::Token, grown, u32::MAX);
    let before = browser.clone();

    for _ in 0..3 {
        gate.ask(&mut browser).await.expect("the old tokens are good for a while");
    }
    assert_eq!(browser, before);
    let refreshed = |result: &str| {
        let labels = format!(r#"{{session="web",result="{result}"}}"#);
        gate.counted(&format!("northgate_session_refreshes_total{labels}"))
    };
    assert_eq!((refreshed("ok"), refreshed("too_large")), (1, 1));

    gate.advance(60);
    let error = gate.ask(&mut browser).await.unwrap_err();
    assert_eq!(error.reason, SessionErrorReason::TooLarge);
    assert_eq!(browser, Browser::default());
    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
}

/// `refresh_token` is a name that applications of the same site use as well.
#[tokio::test]
async fn a_plain_session_without_a_refresh_token_ignores_a_foreign_cookie_of_that_name() {
    let gate = Gate::with(|settings| {
        settings.tokens = TokenStorage::PlainCookies;
        settings.scopes = Scopes::parse("openid profile orders:read");
    });
    let mut browser = gate.alice().await;
    assert!(!browser.jar.contains_key("__Host-refresh_token"));

    browser.jar.insert("__Host-refresh_token".into(), "foreign".into());

    assert!(gate.present(&browser).await.is_ok());
}

/// A callback comes from the issuer's site, and browsers send no strict cookie with it.
#[tokio::test]
async fn a_login_replaces_the_session_whose_strict_cookie_the_callback_does_not_show() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.cookie.same_site = SameSite::Strict;
    });
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    gate.come_back(&mut browser, &back).await;
    let before = browser.clone();
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    browser.jar.retain(|name, _| name.contains(".login"));

    gate.come_back(&mut browser, &back).await;

    assert!(gate.ask(&mut browser).await.is_ok());
    assert_eq!(gate.present(&before).await.unwrap_err().reason, SessionErrorReason::Expired);
    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
}
