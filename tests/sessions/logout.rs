//! The end of sessions: by the user, and by time.

use crate::fault_injection::{Endpoint, Fault};
use core::time::Duration;
use http::header::{LOCATION, SET_COOKIE, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use northgate::base::body::Body;
use northgate::base::clock::{Clock, Timestamp};
use northgate::base::secret::Secret;
use northgate::dev::issuer::DevIssuerConfig;
use northgate::issuer::ClientAuth;
use northgate::session::{Csrf, SessionErrorReason, Settings, Store, TokenStorage};
use northgate::token::{Revocation, RevocationTarget};
use url::Url;

use crate::code::code;
use crate::support::{Browser, Gate, HOME, NOW, json};

const STORAGES: [TokenStorage; 3] =
    [TokenStorage::SealedCookies, TokenStorage::PlainCookies, TokenStorage::Server(Store::Memory)];

#[tokio::test]
async fn logging_out_revokes_both_tokens_and_clears_the_cookies() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        let before = browser.clone();
        let request = browser.post("/auth/logout").body(Body::empty()).unwrap();

        let response = gate.serve(&mut browser, request).await;

        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        assert_eq!(response.headers()[LOCATION], "/");
        assert_eq!(browser, Browser::default(), "{tokens:?}");
        assert_eq!(gate.issuer.count(Endpoint::Revocation), 2);
        // A copy of the cookie is refused.
        let copy = gate.present(&before).await.unwrap_err();
        assert!(
            matches!(copy.reason, SessionErrorReason::Expired | SessionErrorReason::Missing),
            "{tokens:?}"
        );
        let logouts = r#"northgate_session_logouts_total{session="web",kind="user"}"#;
        assert_eq!(gate.counted(logouts), 1);
    }
}

#[tokio::test]
async fn an_old_cookie_logs_out_the_newest_tokens() {
    let gate = Gate::start();
    let before = gate.alice().await;
    let mut browser = before.clone();
    gate.advance(590);
    gate.ask(&mut browser).await.unwrap();
    assert_ne!(browser, before);

    let request = before.post("/auth/logout").body(Body::empty()).unwrap();
    gate.serve(&mut before.clone(), request).await;

    assert_eq!(gate.present(&browser).await.unwrap_err().reason, SessionErrorReason::Expired);
    assert_eq!(gate.present(&before).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn a_cookie_several_refreshes_behind_logs_out_the_newest_tokens() {
    let gate = Gate::with(|settings| settings.tokens = TokenStorage::PlainCookies);
    let before = gate.alice().await;
    let mut browser = before.clone();
    for _ in 0..2 {
        gate.advance(590);
        gate.ask(&mut browser).await.unwrap();
    }

    let request = before.post("/auth/logout").body(Body::empty()).unwrap();
    gate.serve(&mut before.clone(), request).await;

    assert_eq!(gate.present(&browser).await.unwrap_err().reason, SessionErrorReason::Expired);
    // The logged-out cookies themselves need no call to the issuer.
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    gate.issuer.inject(Endpoint::Token, fault, u32::MAX);
    assert_eq!(gate.present(&before).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn the_user_is_logged_out_here_even_if_the_issuer_is_unavailable() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    let before = browser.clone();
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    gate.issuer.inject(Endpoint::Revocation, fault, u32::MAX);
    let request = browser.post("/auth/logout").body(Body::empty()).unwrap();

    assert_eq!(gate.serve(&mut browser, request).await.status(), StatusCode::SEE_OTHER);

    assert_eq!(browser, Browser::default());
    assert!(gate.present(&before).await.is_err());
}

#[tokio::test]
async fn a_corrected_client_secret_reaches_the_revocations_that_are_repeated() {
    let secret = |text: &'static str| {
        move |settings: &mut Settings| settings.client.auth = ClientAuth::Basic(text.into())
    };
    let mut gate = Gate::with(|settings| settings.tokens = TokenStorage::PlainCookies);
    let mut browser = gate.alice().await;
    let (_, token) = browser.jar.iter().find(|(name, _)| name.contains("access")).unwrap();
    let token = token.clone();
    gate.reload(secret("wrong"));
    let request = browser.post("/auth/logout").body(Body::empty()).unwrap();
    gate.serve(&mut browser, request).await;

    gate.reload(secret("gateway-web-secret"));

    gate.issuer.wait_for_calls(Endpoint::Revocation, 4).await;
    let url = format!("{}/introspect", gate.issuer.url());
    let answer = reqwest::Client::new()
        .post(url)
        .basic_auth("gateway", Some("gateway-secret"))
        .form(&[("token", &token)]);
    let is_revoked = async || {
        let answer = answer.try_clone().unwrap().send().await.unwrap();
        answer.json::<serde_json::Value>().await.unwrap()["active"] == false
    };
    // The responses to the calls may be on their way.
    while !is_revoked().await {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_issuer_whose_clock_differs_shuts_no_user_out_after_a_logout() {
    for skew in [-29_i64, -5, 0, 5, 29] {
        let (clock, their) = (Clock::manual(NOW), Clock::manual(at(skew)));
        let options = DevIssuerConfig::default();
        let gate = Gate::apart(clock, their.clone(), options, |_| {}, |_| {});
        let pass = |seconds| {
            gate.advance(seconds);
            their.advance(Duration::from_secs(seconds));
        };
        let mut browser = gate.alice().await;
        gate.ask(&mut browser).await.unwrap();
        let request = browser.post("/auth/logout").body(Body::empty()).unwrap();
        gate.serve(&mut browser, request).await;
        let mut browser = gate.alice().await;
        assert!(gate.ask(&mut browser).await.is_ok(), "{skew}: after a logout");

        for round in 0..2 {
            pass(1);
            let what = RevocationTarget::Subject("alice".into());
            gate.revocations.revoke(Revocation { issuer: Some("main".into()), what }, None);
            assert!(gate.ask(&mut browser).await.is_err(), "{skew} {round}: revoked");
            pass(1);
            browser = gate.alice().await;
            assert!(gate.ask(&mut browser).await.is_ok(), "{skew} {round}: after a revocation");
            pass(590);
            assert!(gate.ask(&mut browser).await.is_ok(), "{skew} {round}: after a refresh");
        }
    }
}

fn at(skew: i64) -> Timestamp {
    Timestamp::from_secs(NOW.as_secs().saturating_add_signed(skew))
}

#[tokio::test]
async fn a_cross_site_request_or_a_link_logs_no_user_out() {
    let gate = Gate::start();
    let browser = gate.alice().await;
    let foreign = browser
        .request(Method::POST, "/auth/logout")
        .header("origin", "https://evil.example")
        .body(Body::empty());
    let link = browser.get("/auth/logout").body(Body::empty());

    let refused = gate.serve(&mut browser.clone(), foreign.unwrap()).await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(gate.serve(&mut browser.clone(), link.unwrap()).await.status(), StatusCode::OK);

    assert!(gate.present(&browser).await.is_ok());
}

#[tokio::test]
async fn a_cross_site_request_cannot_clear_cookies() {
    for csrf in [Csrf::Strict, Csrf::Token] {
        let gate = Gate::with(|settings| settings.csrf = csrf);
        gate.alice().await;
        for path in ["/auth/logout", "/auth/refresh"] {
            for (name, value) in [
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
                ("origin", "https://evil.example"),
                ("origin", "null"),
            ] {
                let request = Browser::default().request(Method::POST, path).header(name, value);
                let response =
                    gate.session.serve(request.body(Body::empty()).unwrap(), HOME, true).await;
                assert_eq!(response.status(), StatusCode::FORBIDDEN, "{path} {name}: {value}");
                assert!(!response.headers().contains_key(SET_COOKIE), "{path} {name}: {value}");
            }
        }
    }
}

#[tokio::test]
async fn only_presented_cookies_are_cleared() {
    let cleared = async |gate: &Gate, browser: &Browser| {
        let request = browser.post("/auth/logout").body(Body::empty()).unwrap();
        let response = gate.session.serve(request, HOME, true).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        let fields = response.headers().get_all(SET_COOKIE).iter();
        let names =
            fields.map(|field| field.to_str().unwrap().split('=').next().unwrap().to_owned());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    for tokens in STORAGES {
        let gate = Gate::with(|settings| {
            settings.tokens = tokens;
            settings.csrf = Csrf::Token;
        });
        let browser = gate.alice().await;

        assert_eq!(cleared(&gate, &Browser::default()).await, [].into(), "{tokens:?}");
        assert_eq!(
            cleared(&gate, &browser).await,
            browser.jar.keys().cloned().collect(),
            "{tokens:?}"
        );
    }
}

#[tokio::test]
async fn an_old_idle_copy_of_a_cookie_does_not_end_the_session() {
    // A process that has just started, or reloaded its configuration, cannot tell from cookies which is the latest.
    for (tokens, is_reloaded) in [
        (TokenStorage::SealedCookies, false),
        (TokenStorage::SealedCookies, true),
        (TokenStorage::PlainCookies, false),
        (TokenStorage::PlainCookies, true),
    ] {
        an_old_idle_copy_ends_nothing(tokens, is_reloaded).await;
    }
}

#[tokio::test]
async fn an_old_copy_of_the_cookie_of_a_session_on_the_server_is_as_young_as_the_session() {
    for is_reloaded in [false, true] {
        let mut gate = Gate::with(|settings| settings.tokens = TokenStorage::Server(Store::Memory));
        let mut browser = gate.alice().await;
        let mut old = browser.clone();
        for _ in 0..2 {
            gate.advance(1_000);
            gate.ask(&mut browser).await.unwrap();
        }
        if is_reloaded {
            gate.reload(|_| {});
        }
        gate.ask(&mut old).await.expect("it names the session that was used lately");
    }
}

async fn an_old_idle_copy_ends_nothing(tokens: TokenStorage, is_reloaded: bool) {
    let mut gate = Gate::with(|settings| settings.tokens = tokens);
    let mut browser = gate.alice().await;
    let old = browser.clone();
    for _ in 0..2 {
        gate.advance(1_000);
        gate.ask(&mut browser).await.unwrap();
    }
    if is_reloaded {
        gate.reload(|_| {});
    }

    let mut copy = old.clone();
    assert_eq!(gate.ask(&mut copy).await.unwrap_err().reason, SessionErrorReason::Expired);
    assert_eq!(copy, Browser::default());
    let mut copy = old.clone();
    let request = copy.post("/auth/logout").body(Body::empty()).unwrap();
    assert_eq!(gate.serve(&mut copy, request).await.status(), StatusCode::SEE_OTHER);
    let mut copy = old;
    gate.log_in(&mut copy, "alice", "wonderland").await;

    gate.ask(&mut browser).await.expect("the session lives on");
    assert_eq!(gate.issuer.count(Endpoint::Revocation), 0);
}

#[tokio::test]
async fn an_idle_session_ends() {
    for tokens in [TokenStorage::SealedCookies, TokenStorage::Server(Store::Memory)] {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        for _ in 0..10 {
            gate.advance(1700);
            gate.ask(&mut browser).await.expect("is used often enough");
        }

        gate.advance(1800);

        assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
        assert_eq!(browser, Browser::default());
        gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
    }
}

#[tokio::test]
async fn requesting_the_status_does_not_count_as_use() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    for _ in 0..6 {
        gate.advance(290);
        let request = browser.request(Method::GET, "/auth/session").body(Body::empty()).unwrap();
        assert_eq!(gate.serve(&mut browser, request).await.status(), StatusCode::OK);
    }

    gate.advance(60);

    let request = browser.request(Method::GET, "/auth/session").body(Body::empty()).unwrap();
    let response = gate.serve(&mut browser, request).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.headers()[WWW_AUTHENTICATE], "Cookie form-action=\"/auth/login\"");
    let told = json(response).await;
    assert_eq!((&told["logged_in"], &told["login"]), (&false.into(), &"/auth/login".into()));
}

#[tokio::test]
async fn a_session_ends_at_its_absolute_timeout_even_if_used() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    for _ in 0..71 {
        gate.advance(600);
        gate.ask(&mut browser).await.expect("is not old yet");
    }

    gate.advance(600);

    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn the_logout_page_needs_no_script_even_where_pages_must_repeat_a_token() {
    let gate = Gate::with(|settings| settings.csrf = Csrf::Token);
    let mut browser = gate.alice().await;
    let foreign = browser
        .request(Method::POST, "/auth/logout")
        .header("origin", "https://evil.example")
        .body(Body::empty());
    let unsaid = browser.request(Method::POST, "/auth/logout").body(Body::empty());
    for refused in [foreign, unsaid] {
        let response = gate.serve(&mut browser.clone(), refused.unwrap()).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }

    let ours = browser.post("/auth/logout").body(Body::empty()).unwrap();
    let response = gate.serve(&mut browser, ours).await;

    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    assert_eq!(browser, Browser::default());
}

/// A cookie of an earlier `Domain` stays in the browser whatever the response says.
#[tokio::test]
async fn logging_out_ends_every_session_that_the_request_presents() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let (earlier, mut browser) = (gate.alice().await, gate.alice().await);
        gate.advance(1);
        let cookies = format!("{}; {}", earlier.cookie(), browser.cookie());
        let request = Browser::default().post("/auth/logout").header("cookie", cookies);

        let response = gate.serve(&mut browser, request.body(Body::empty()).unwrap()).await;

        assert_eq!(response.status(), StatusCode::SEE_OTHER, "{tokens:?}");
        let copy = gate.present(&earlier).await.unwrap_err();
        assert!(
            matches!(copy.reason, SessionErrorReason::Expired | SessionErrorReason::Missing),
            "{tokens:?}"
        );
    }
}

/// Browsers hold the redirects after a form to its page's `form-action`.
#[tokio::test]
async fn the_form_of_the_logout_page_may_lead_to_the_issuer() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    gate.depart(&mut browser, "/auth/login").await;
    let request = browser.get("/auth/logout").body(Body::empty()).unwrap();

    let response = gate.serve(&mut browser, request).await;

    let policy = response.headers()["content-security-policy"].to_str().unwrap();
    let issuer = Url::parse(gate.issuer.url()).unwrap().origin().ascii_serialization();
    assert!(policy.ends_with(&format!("form-action 'self' https: {issuer}")), "{policy}");
}

#[tokio::test]
async fn a_logout_at_a_gateway_without_the_key_is_no_logout() {
    for tokens in [TokenStorage::SealedCookies, TokenStorage::PlainCookies] {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        let without = gate.another(|settings| settings.keys = vec![Secret::new([8; 32])]);
        let logout = |browser: &Browser| browser.post("/auth/logout").body(Body::empty()).unwrap();

        let response = without.serve(logout(&browser), HOME, true).await;

        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{tokens:?}");
        assert!(!response.headers().contains_key(SET_COOKIE), "{tokens:?}: they end it elsewhere");
        let request = logout(&browser);
        gate.serve(&mut browser, request).await;
        assert_eq!(gate.issuer.count(Endpoint::Revocation), 2, "{tokens:?}");
    }
}
