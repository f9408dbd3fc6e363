//! Requests with a session: cookies, refresh, CSRF.

use core::time::Duration;

use crate::fault_injection::{Endpoint, Fault};
use futures_util::future::join_all;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use northgate::base::body::Body;
use northgate::base::secret::Secret;
use northgate::dev::issuer::{API, Algorithm, DevIssuerConfig};
use northgate::issuer::ResourceIndicator;
use northgate::session::{
    Csrf, ForwardedSessionToken, LoginRedirect, SessionErrorReason, SessionUser, Store,
    TokenStorage,
};

use serde_json::json;

use crate::support::{self, Browser, Gate};

const STORAGES: [TokenStorage; 3] =
    [TokenStorage::SealedCookies, TokenStorage::PlainCookies, TokenStorage::Server(Store::Memory)];

fn refreshes(gate: &Gate, result: &str) -> u64 {
    let labels = format!(r#"{{session="web",result="{result}"}}"#);
    gate.counted(&format!("northgate_session_refreshes_total{labels}"))
}

async fn set_cookies(signed: &SessionUser) -> Vec<HeaderValue> {
    match &signed.renewal {
        Some(renewal) => renewal.set_cookies().await,
        None => Vec::new(),
    }
}

#[tokio::test]
async fn the_upstream_gets_the_access_token_and_no_session_cookie() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        browser.jar.insert("theirs".into(), "\"1, 2\"".into());

        let signed = gate.present(&browser).await.unwrap();

        let forward = signed.forward.unwrap();
        assert!(forward.to_str().unwrap().starts_with("Bearer eyJ") && forward.is_sensitive());
        assert!(signed.renewal.is_none());
        let cookie = HeaderValue::from_str(&browser.cookie()).unwrap();
        let mut headers = HeaderMap::from_iter([(COOKIE, cookie)]);
        gate.session.strip_cookies(&mut headers);
        assert_eq!(headers[COOKIE], "theirs=\"1, 2\"", "{tokens:?}");
    }
}

#[tokio::test]
async fn an_id_token_or_nothing_is_forwarded_if_the_operator_says_so() {
    for (forward, is_some) in
        [(ForwardedSessionToken::IdToken, true), (ForwardedSessionToken::None, false)]
    {
        let gate = Gate::with(|settings| settings.forward = forward);
        let signed = gate.present(&gate.alice().await).await.unwrap();
        assert_eq!(signed.forward.is_some(), is_some);
    }
}

#[tokio::test]
async fn twenty_requests_with_one_expired_token_make_one_refresh() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let browser = gate.alice().await;
        let before = gate.issuer.count(Endpoint::Token);
        gate.advance(700);

        let answers = join_all((0..20).map(|_| gate.present(&browser))).await;

        let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("200")).collect();
        assert_eq!(gate.issuer.count(Endpoint::Token), before + 1, "{tokens:?}");
        assert_eq!(refreshes(&gate, "ok"), 1);
        for answer in &answers {
            assert_eq!(answer.forward, answers[0].forward);
            assert_eq!(set_cookies(answer).await, set_cookies(&answers[0]).await);
        }
    }
}

#[tokio::test]
async fn a_late_request_with_the_old_cookie_gets_the_new_one() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let before = gate.alice().await;
        let mut browser = before.clone();
        gate.advance(700);
        let first = gate.ask(&mut browser).await.unwrap();

        gate.advance(29);
        let mut straggler = before.clone();
        let answer = gate.ask(&mut straggler).await.unwrap();

        assert_eq!(answer.forward, first.forward);
        assert_eq!(straggler, browser, "{tokens:?}");
        assert_eq!(refreshes(&gate, "ok"), 1);
    }
}

#[tokio::test]
async fn a_copy_presented_too_late_is_reuse_and_ends_the_session() {
    let gate = Gate::start();
    let before = gate.alice().await;
    let mut browser = before.clone();
    gate.advance(700);
    gate.ask(&mut browser).await.unwrap();

    gate.advance(31);
    let error = gate.ask(&mut before.clone()).await.unwrap_err();

    assert_eq!(error.reason, SessionErrorReason::Expired);
    assert_eq!(refreshes(&gate, "reuse"), 1);
}

#[tokio::test]
async fn a_request_several_refreshes_behind_catches_up() {
    let options =
        DevIssuerConfig { access_lifetime: Duration::from_secs(10), ..DevIssuerConfig::default() };
    let gate = Gate::at(options, |_| {});
    let before = gate.alice().await;
    let mut browser = before.clone();
    for _ in 0..3 {
        gate.advance(8);
        gate.ask(&mut browser).await.unwrap();
    }
    let made = refreshes(&gate, "ok");

    let mut straggler = before.clone();
    gate.ask(&mut straggler).await.unwrap();

    assert_eq!(straggler, browser);
    assert_eq!((made, refreshes(&gate, "ok")), (3, 3));
}

#[tokio::test]
async fn tokens_are_refreshed_ahead_of_their_expiry_and_not_at_every_request() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    let before = gate.issuer.count(Endpoint::Token);

    gate.advance(535);
    gate.ask(&mut browser).await.unwrap();
    assert_eq!(gate.issuer.count(Endpoint::Token), before);
    gate.advance(12);
    for _ in 0..5 {
        gate.ask(&mut browser).await.unwrap();
    }
    assert_eq!(gate.issuer.count(Endpoint::Token), before + 1);
}

#[tokio::test]
async fn a_valid_token_serves_while_the_issuer_is_unavailable() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        let fault = Fault::Status(StatusCode::INTERNAL_SERVER_ERROR);
        gate.issuer.inject(Endpoint::Token, fault, u32::MAX);
        let before = browser.clone();

        gate.advance(570);
        for _ in 0..20 {
            gate.ask(&mut browser).await.expect("the token is good for another 30 s");
        }
        assert_eq!(refreshes(&gate, "error"), 1, "it was asked at every call");

        gate.advance(30);
        let error = gate.ask(&mut browser).await.unwrap_err();
        assert!(
            matches!(error.reason, SessionErrorReason::Unavailable { .. }),
            "{tokens:?}: {error:?}"
        );
        assert!(!browser.jar.is_empty() && browser.jar.keys().eq(before.jar.keys()));

        gate.issuer.clear(Endpoint::Token);
        gate.advance(60);
        gate.ask(&mut browser).await.expect("the session was never over");
    }
}

#[tokio::test]
async fn no_outage_ends_a_session_but_a_dead_refresh_token_does() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    gate.advance(700);
    for (status, body) in [
        (500, "{}"),
        (503, "<html>"),
        (429, "{}"),
        (401, r#"{"error":"invalid_client"}"#),
        (400, r#"{"error":"temporarily_unavailable"}"#),
        (400, "invalid_grant"),
        (400, r#"{"error":"rate_limit_exceeded"}"#),
        (200, r#"{"error":"ratelimited"}"#),
        (422, r#"{"error":"Unprocessable Entity"}"#),
        (422, "{}"),
        (404, r#"{"error":"not_found"}"#),
        (408, r#"{"error":"request_timeout"}"#),
        (200, "{}"),
        (200, "<html>"),
        (200, r#"{"access_token":"a\nb","token_type":"Bearer"}"#),
        (200, r#"{"access_token":"a","token_type":"Bearer","expires_in":-1}"#),
    ] {
        let fault = Fault::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: "application/json",
            body: body.into(),
        };
        gate.issuer.inject(Endpoint::Token, fault, 1);
        let error = gate.ask(&mut browser).await.unwrap_err();
        assert!(
            matches!(error.reason, SessionErrorReason::Unavailable { .. }),
            "{status} {body}: {error:?}"
        );
        gate.advance(60);
    }
    gate.issuer.inject(Endpoint::Token, Fault::invalid_grant(), 1);

    let before = browser.clone();
    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
    assert_eq!(browser, Browser::default());
    assert_eq!(gate.present(&before).await.unwrap_err().reason, SessionErrorReason::Expired);
}

#[tokio::test]
async fn a_refresh_that_is_refused_with_another_status_leads_to_the_login() {
    for (status, error) in [
        (402, "account_disabled"),
        (404, "invalid_refresh_token"),
        (409, "token_reused"),
        (410, "gone"),
        (418, "interaction_required"),
        (422, "unprocessable"),
    ] {
        let gate = Gate::start();
        let mut browser = gate.alice().await;
        gate.advance(700);
        let fault = Fault::Answer {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: "application/json",
            body: format!(r#"{{"error":"{error}"}}"#).into(),
        };
        gate.issuer.inject(Endpoint::Token, fault, 1);

        let reason = gate.ask(&mut browser).await.unwrap_err().reason;

        assert_eq!(
            (reason, browser),
            (SessionErrorReason::Expired, Browser::default()),
            "{status} {error}"
        );
    }
}

#[tokio::test]
async fn a_cross_site_request_causes_no_refresh() {
    let gate = Gate::start();
    let browser = gate.alice().await;
    let asked = gate.issuer.count(Endpoint::Token);
    gate.advance(700);
    for site in [Some("cross-site"), Some("same-site"), Some("none"), None] {
        let mut request = browser.request(Method::POST, "/app");
        if let Some(site) = site {
            request = request.header("sec-fetch-site", site);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        let error = gate.session.authenticate(&head, None).await.unwrap_err();
        assert_eq!(
            (error.reason, error.set_cookies.len()),
            (SessionErrorReason::Csrf, 0),
            "{site:?}"
        );
    }
    assert_eq!(gate.issuer.count(Endpoint::Token), asked);
}

#[tokio::test]
async fn with_tokens_against_csrf_a_page_repeats_its_own() {
    let gate = Gate::with(|settings| settings.csrf = Csrf::Token);
    let mut browser = gate.alice().await;
    let mut mallory = Browser::default();
    gate.log_in(&mut mallory, "bob", "builder").await;
    let token = browser.jar["__Host-web.csrf"].clone();
    let send = async |browser: &Browser, token: &str| {
        let request = browser.request(Method::POST, "/app").header("x-csrf-token", token);
        let (head, ()) = request.body(()).unwrap().into_parts();
        gate.session.authenticate(&head, None).await.map_err(|error| error.reason)
    };

    assert!(send(&browser, &token).await.is_ok());
    assert_eq!(send(&browser, "").await.unwrap_err(), SessionErrorReason::Csrf);
    // Mallory's token, planted by a sibling host, is not alice's.
    let planted = mallory.jar["__Host-web.csrf"].clone();
    browser.jar.insert("__Host-web.csrf".into(), planted.clone());
    assert_eq!(send(&browser, &planted).await.unwrap_err(), SessionErrorReason::Csrf);
}

#[tokio::test]
async fn a_cookie_tampered_with_is_no_session() {
    for tokens in [TokenStorage::SealedCookies, TokenStorage::Server(Store::Memory)] {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let browser = gate.alice().await;
        let value = browser.jar["__Host-web"].clone();
        for at in 0..value.len() {
            let mut forged = browser.clone();
            let other = if value.as_bytes()[at] == b'A' { "B" } else { "A" };
            let value = format!("{}{other}{}", &value[..at], &value[at + 1..]);
            forged.jar.insert("__Host-web".into(), value);
            let error = gate.present(&forged).await.unwrap_err();
            assert_eq!(error.reason, SessionErrorReason::Missing, "character {at}");
        }
        assert!(gate.present(&browser).await.is_ok());
    }
}

#[tokio::test]
async fn a_cookie_of_one_session_is_refused_by_another() {
    let gate = Gate::start();
    let browser = gate.alice().await;
    let other = Gate::with(|settings| settings.name = "admin".into());
    let mut renamed = Browser::default();
    for (name, value) in &browser.jar {
        renamed.jar.insert(name.replace("web", "admin"), value.clone());
    }
    assert_eq!(other.present(&renamed).await.unwrap_err().reason, SessionErrorReason::Missing);
}

#[tokio::test]
async fn a_rotated_key_logs_no_user_out_until_the_old_one_is_removed() {
    let mut gate = Gate::start();
    let browser = gate.alice().await;

    gate.reload(|settings| settings.keys.insert(0, Secret::new([8; 32])));
    gate.present(&browser).await.expect("the old key still opens");
    gate.reload(|settings| settings.keys.truncate(1));
    let error = gate.present(&browser).await.unwrap_err();

    assert_eq!(error.reason, SessionErrorReason::Missing);
    assert!(error.set_cookies.is_empty(), "another instance may have the key");
}

#[tokio::test]
async fn sessions_and_refresh_results_survive_a_reload() {
    for tokens in [TokenStorage::SealedCookies, TokenStorage::Server(Store::Memory)] {
        let mut gate = Gate::with(|settings| {
            settings.tokens = tokens;
            settings.keys.clear();
        });
        let before = gate.alice().await;
        gate.advance(700);
        gate.ask(&mut before.clone()).await.unwrap();

        gate.reload(|settings| settings.idle_timeout = Duration::from_secs(900));

        gate.ask(&mut before.clone()).await.expect("the session lives");
        assert_eq!(refreshes(&gate, "ok"), 1, "{tokens:?}");
    }
}

#[tokio::test]
async fn a_requested_refresh_is_performed() {
    for tokens in STORAGES {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        let before = gate.present(&browser).await.unwrap().forward;
        gate.advance(1);
        let request = browser.post("/auth/refresh").body(Body::empty()).unwrap();

        let response = gate.serve(&mut browser, request).await;

        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(support::json(response).await["logged_in"], true);
        assert_ne!(gate.ask(&mut browser).await.unwrap().forward, before, "{tokens:?}");
    }
}

#[tokio::test]
async fn navigations_are_redirected_to_the_login_and_scripts_get_a_401() {
    let gate = Gate::start();
    let location = |request: http::request::Builder| {
        let (head, ()) = request.body(()).unwrap().into_parts();
        match gate.session.login_redirect(&head) {
            Some(LoginRedirect::Location(url)) => Some(url.to_str().unwrap().to_owned()),
            _ => None,
        }
    };
    let plain = |method| Browser::default().request(method, "/app/orders?page=2");
    let wanted = Some("/auth/login?return_to=%2Fapp%2Forders%3Fpage%3D2".to_owned());

    assert_eq!(location(plain(Method::GET).header("sec-fetch-mode", "navigate")), wanted);
    assert_eq!(location(plain(Method::GET).header("accept", "text/html")), wanted);
    let fetch = plain(Method::GET).header("sec-fetch-mode", "cors").header("accept", "text/html");
    assert_eq!(location(fetch), None);
    assert_eq!(location(plain(Method::GET)), None);
    assert_eq!(location(plain(Method::POST).header("sec-fetch-mode", "navigate")), None);
}

#[tokio::test]
async fn each_client_gets_a_response_in_a_format_it_accepts() {
    let gate = Gate::start();
    let led = |fields: &[(&str, &str)]| {
        let mut request = Browser::default().request(Method::GET, "/app");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        gate.session.login_redirect(&head).is_some()
    };
    let page = ("accept", "text/html,application/xhtml+xml");
    let (mode, dest) = ("sec-fetch-mode", "sec-fetch-dest");

    for navigation in [
        &[(mode, "navigate"), (dest, "document"), page][..],
        &[(mode, "navigate"), (dest, "iframe"), page],
        &[page],
    ] {
        assert!(led(navigation), "{navigation:?}");
    }
    for fetched in [
        &[(mode, "cors"), (dest, "empty"), ("accept", "application/json")][..],
        &[(mode, "same-origin"), (dest, "empty"), page],
        &[(mode, "no-cors"), (dest, "image"), ("accept", "image/png")],
        &[(mode, "cors"), (dest, "empty"), ("accept", "text/event-stream")],
        &[("accept", "text/event-stream")],
        &[
            (mode, "websocket"),
            (dest, "websocket"),
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
        ],
        &[("upgrade", "websocket"), ("connection", "upgrade")],
        &[("x-requested-with", "XMLHttpRequest"), ("accept", "*/*")],
        &[(mode, "navigate"), (mode, "cors"), page],
    ] {
        assert!(!led(fetched), "{fetched:?}");
    }
}

#[tokio::test]
async fn a_slow_response_restores_no_tokens_that_were_redeemed_meanwhile() {
    for tokens in [TokenStorage::SealedCookies, TokenStorage::PlainCookies] {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        gate.advance(700);
        // Its upstream takes an hour; meanwhile the user continues, at first with the old cookie.
        let slow = gate.present(&browser).await.unwrap();
        gate.advance(45);
        gate.ask(&mut browser).await.unwrap();
        for _ in 0..3 {
            gate.advance(700);
            gate.ask(&mut browser).await.unwrap();
        }
        let current = browser.clone();

        browser.take(&set_cookies(&slow).await);

        assert_eq!(browser, current, "{tokens:?}");
        gate.advance(60);
        gate.ask(&mut browser).await.expect("nothing was redeemed twice");
    }
}

#[tokio::test]
async fn a_slow_response_restores_no_ended_session() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    gate.advance(700);
    let slow = gate.present(&browser).await.unwrap();
    let before = browser.clone();

    let request = browser.post("/auth/logout").body(Body::empty()).unwrap();
    gate.serve(&mut browser, request).await;
    assert_eq!(set_cookies(&slow).await, [""; 0]);

    // Nor does it replace the next one.
    let mut browser = gate.alice().await;
    gate.advance(700);
    let slow = gate.present(&browser).await.unwrap();
    gate.log_in(&mut browser, "bob", "builder").await;
    assert_eq!(set_cookies(&slow).await, [""; 0]);
    assert_ne!(browser, before);
}

#[tokio::test]
async fn the_last_use_is_recorded_once_a_minute_and_not_at_every_request() {
    let gate = Gate::start();
    let mut browser = gate.alice().await;
    let mut written = 0;
    for _ in 0..60 {
        gate.advance(5);
        written += usize::from(gate.ask(&mut browser).await.unwrap().renewal.is_some());
    }
    assert_eq!(written, 5);
}

#[tokio::test]
async fn cookies_sealed_under_an_old_key_are_resealed_before_it_is_removed() {
    let mut gate = Gate::start();
    let mut browser = gate.alice().await;
    gate.reload(|settings| settings.keys.insert(0, Secret::new([8; 32])));

    gate.advance(61);
    gate.ask(&mut browser).await.expect("the old key still opens");
    gate.reload(|settings| settings.keys.truncate(1));

    gate.ask(&mut browser).await.expect("the new key has sealed it meanwhile");
}

#[tokio::test]
async fn an_expired_refresh_token_is_not_sent() {
    let gate = Gate::start();
    let claims = json!({
        "iss": gate.issuer.url(), "sub": "alice", "aud": API, "exp": 1_800_000_060, "iat": 1_800_000_000,
    });
    let access_token = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
    let tokens = json!({
        "access_token": access_token, "token_type": "Bearer", "expires_in": 60,
        "refresh_token": "refresh", "refresh_expires_in": 120,
    });
    let fault = Fault::json(&tokens);
    gate.issuer.inject(Endpoint::Token, fault, 1);
    let mut browser = gate.alice().await;
    let asked = gate.issuer.count(Endpoint::Token);
    gate.advance(121);

    assert_eq!(gate.ask(&mut browser).await.unwrap_err().reason, SessionErrorReason::Expired);
    assert_eq!(gate.issuer.count(Endpoint::Token), asked);
}

#[tokio::test]
async fn a_resource_is_requested_in_the_operators_spelling() {
    // The issuer registers it without a slash at its end, and compares bytes.
    let gate =
        Gate::with(|settings| settings.resource = Some(ResourceIndicator::parse(API).unwrap()));
    let mut browser = gate.alice().await;

    gate.advance(700);
    gate.ask(&mut browser).await.expect("a refresh asks for it, too");

    let gate = Gate::with(|settings| {
        settings.resource = Some(ResourceIndicator::parse(&format!("{API}/")).unwrap());
    });
    let response = gate.log_in(&mut Browser::default(), "alice", "wonderland").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_key_too_new_to_be_known_ends_no_session() {
    let options =
        DevIssuerConfig { access_lifetime: Duration::from_secs(10), ..DevIssuerConfig::default() };
    let gate = Gate::at(options, |_| {});
    let mut browser = gate.alice().await;
    gate.issuer.rotate_keys().unwrap();
    gate.advance(31);
    gate.ask(&mut browser).await.expect("the first change is seen at once");

    // The second comes before the JWK set may be fetched again.
    gate.issuer.rotate_keys().unwrap();
    gate.advance(8);
    for _ in 0..5 {
        let error = gate.ask(&mut browser).await.unwrap_err();
        assert!(matches!(error.reason, SessionErrorReason::Unavailable { .. }), "{error:?}");
    }
    assert_eq!(refreshes(&gate, "ok"), 2, "it was refreshed at every call");

    gate.advance(30);
    gate.ask(&mut browser).await.expect("the session was never over");
}
