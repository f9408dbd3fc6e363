//! A person's way: the client's request, a login, consent, and back with a code.

use core::time::Duration;
use std::io;
use std::sync::{Arc, Mutex};

use http::StatusCode;
use http::header::SET_COOKIE;
use northgate::dev::issuer::{Client, GrantType, Mint};
use serde_json::Value;
use url::Url;

use crate::browser::{Browser, authorize, claims, code, redeem};
use crate::support::{start, start_knowing};

#[tokio::test]
async fn a_person_logs_in_agrees_and_the_client_gets_tokens() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);

    let page = browser.open(&authorize(&[])).await;
    assert!(page.html().contains("wants to know who you are"));
    let page = browser.log_in(&page, "alice", "wonderland").await;
    assert!(page.html().contains("You are <strong>alice</strong>"));
    let back = browser.decide(&page, "allow", &["offline_access", "orders:read"]).await.back();

    assert_eq!(back["state"], "a state");
    assert_eq!(back["iss"], issuer.running.url());
    let (status, tokens) = redeem(&issuer, &back["code"], &[]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(tokens["scope"], "offline_access openid orders:read");
    assert!(tokens["refresh_token"].is_string());
    let id_token = claims(&tokens["id_token"]);
    assert_eq!((&id_token["nonce"], &id_token["sub"]), (&"a nonce".into(), &"alice".into()));
}

#[tokio::test]
async fn a_person_may_grant_less_than_was_asked_for() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;
    let page = browser.log_in(&page, "alice", "wonderland").await;

    let back = browser.decide(&page, "allow", &[]).await.back();

    let (_, tokens) = redeem(&issuer, &back["code"], &[]).await;
    assert_eq!(tokens["scope"], "openid");
    assert_eq!(tokens.get("refresh_token"), None);
}

#[tokio::test]
async fn a_consent_form_that_names_a_scope_the_client_did_not_ask_for_is_refused_and_logged() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;
    let page = browser.log_in(&page, "alice", "wonderland").await;

    for (decision, extra) in [("allow", "orders:write"), ("allow", "admin"), ("deny", "email")] {
        let refused = browser.decide(&page, decision, &["orders:read", extra]).await;
        assert_eq!((refused.status, refused.location), (StatusCode::BAD_REQUEST, None), "{extra}");
        let line = log.line(extra);
        assert!(line.contains("WARN") && line.contains("gateway-web"), "{line}");
    }

    // Nothing was granted: neither a code nor a consent that a later request could use.
    let back = browser.open(&authorize(&[("prompt", "none")])).await.back();
    assert_eq!(back["error"], "consent_required");
    // The page itself is still good.
    let back = browser.decide(&page, "allow", &["orders:read"]).await.back();
    let (_, tokens) = redeem(&issuer, &back["code"], &[]).await;
    assert_eq!(tokens["scope"], "openid orders:read");
}

#[tokio::test]
async fn a_person_can_say_no() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;
    let page = browser.log_in(&page, "alice", "wonderland").await;

    let back = browser.decide(&page, "deny", &["orders:read"]).await.back();

    assert_eq!((&*back["error"], &*back["state"]), ("access_denied", "a state"));
    assert!(!back.contains_key("code"));
}

#[tokio::test]
async fn a_wrong_password_shows_the_form_again() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;

    let refused = browser.log_in(&page, "alice", "<guess>").await;

    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.html().contains("is wrong"));
    assert_eq!(browser.log_in(&refused, "alice", "wonderland").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_user_who_is_logged_in_and_has_consented_is_not_asked_again() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;
    let page = browser.log_in(&page, "alice", "wonderland").await;
    browser.decide(&page, "allow", &["offline_access", "orders:read"]).await.back();

    assert!(browser.open(&authorize(&[])).await.back().contains_key("code"));
    assert!(browser.open(&authorize(&[("prompt", "none")])).await.back().contains_key("code"));
    let asked = browser.open(&authorize(&[("prompt", "consent")])).await;
    assert!(asked.html().contains("What you allow"));
    let asked = browser.open(&authorize(&[("scope", "openid orders:write")])).await;
    assert!(asked.html().contains("What you allow"));
    let asked = browser.open(&authorize(&[("prompt", "login")])).await;
    assert!(asked.html().contains("Password"));
    issuer.clock.advance(Duration::from_secs(61));
    let asked = browser.open(&authorize(&[("max_age", "60")])).await;
    assert!(asked.html().contains("Password"));
}

#[tokio::test]
async fn a_prompt_for_a_login_is_satisfied_by_that_login() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);

    let page = browser.open(&authorize(&[("prompt", "login"), ("max_age", "0")])).await;
    let page = browser.log_in(&page, "alice", "wonderland").await;
    issuer.clock.advance(Duration::from_secs(5));
    let back = browser.decide(&page, "allow", &["orders:read"]).await.back();

    assert!(back.contains_key("code"));
}

#[tokio::test]
async fn prompt_none_shows_no_page() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);

    let back = browser.open(&authorize(&[("prompt", "none")])).await.back();

    assert_eq!(back["error"], "login_required");
}

#[tokio::test]
async fn a_redirect_uri_must_be_the_registered_one_to_the_byte() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let uris = [
        "https://localhost:8443/auth/callback/",
        "https://localhost:8443/auth/callback?x=1",
        "https://localhost:8443/auth/../auth/callback",
        "https://LOCALHOST:8443/auth/callback",
        "https://evil.example.com/auth/callback",
        "",
    ];

    for uri in uris {
        let page = browser.open(&authorize(&[("redirect_uri", uri)])).await;
        assert_eq!(page.status, StatusCode::BAD_REQUEST, "{uri}");
        assert_eq!(page.location, None);
    }
}

#[tokio::test]
async fn a_bad_request_of_a_known_client_is_told_to_the_client() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let cases: [(&str, &str, &str); 8] = [
        ("response_type", "token", "unsupported_response_type"),
        ("response_mode", "fragment", "invalid_request"),
        ("scope", "openid admin", "invalid_scope"),
        ("code_challenge", "", "invalid_request"),
        ("code_challenge_method", "plain", "invalid_request"),
        ("prompt", "none login", "invalid_request"),
        ("resource", "https://elsewhere.example.com", "invalid_target"),
        ("request", "eyJhbGciOiJub25lIn0.e30.", "request_not_supported"),
    ];

    for (name, value, error) in cases {
        let back = browser.open(&authorize(&[(name, value)])).await.back();
        assert_eq!((&*back["error"], &*back["state"]), (error, "a state"), "{name}");
        assert_eq!(back["iss"], issuer.running.url());
    }
    let twice = format!("{}&nonce=another", authorize(&[]));
    assert_eq!(browser.open(&twice).await.back()["error"], "invalid_request");
}

#[tokio::test]
async fn a_pushed_request_is_known_by_its_name_once_and_for_a_minute() {
    let issuer = start();
    let form = Url::parse(&format!("http://x{}", authorize(&[]))).expect("a URL");
    let form: Vec<_> = form.query_pairs().into_owned().collect();
    let push = async || {
        let request = issuer.http.post(issuer.at("/par")).form(&form);
        let request = request.basic_auth("gateway-web", Some("gateway-web-secret"));
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::CREATED);
        let name = answer.json::<Value>().await.expect("JSON")["request_uri"].clone();
        let query = [("client_id", "gateway-web"), ("request_uri", name.as_str().expect("text"))];
        let url = Url::parse_with_params("http://x/", query).expect("a URL");
        format!("/authorize?{}", url.query().expect("a query"))
    };
    let mut browser = Browser::new(&issuer);
    let path = push().await;

    let page = browser.open(&path).await;
    assert_eq!(browser.open(&path).await.status, StatusCode::BAD_REQUEST);
    let page = browser.log_in(&page, "alice", "wonderland").await;
    let back = browser.decide(&page, "allow", &["orders:read"]).await.back();
    assert_eq!(
        (redeem(&issuer, &back["code"], &[]).await.0, &*back["state"]),
        (StatusCode::OK, "a state")
    );

    let late = push().await;
    issuer.clock.advance(Duration::from_secs(60));
    assert_eq!(browser.open(&late).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_bad_pushed_request_is_told_to_the_program() {
    let issuer = start();
    let form = [("response_type", "code"), ("redirect_uri", "https://evil.example.com/")];
    let request = issuer.http.post(issuer.at("/par")).form(&form);
    let request = request.basic_auth("gateway-web", Some("gateway-web-secret"));

    let answer = request.send().await.expect("an answer");

    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(answer.json::<Value>().await.expect("JSON")["error"], "invalid_request");
}

#[tokio::test]
async fn a_code_is_good_for_one_client_one_redirect_uri_and_one_verifier() {
    let other =
        Client::confidential("other", "other-secret").grants(&[GrantType::AuthorizationCode]);
    let issuer = start_knowing(other);
    let code = code(&issuer).await;

    for changed in [
        ("redirect_uri", "https://localhost:8443/elsewhere"),
        ("code_verifier", "another-verifier-that-no-code-was-issued-for"),
        ("client", "other"),
    ] {
        let (status, body) = redeem(&issuer, &code, &[changed]).await;
        assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &"invalid_grant".into()));
    }
    assert_eq!(redeem(&issuer, &code, &[]).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_code_lives_five_minutes() {
    let issuer = start();
    let (young, old) = (code(&issuer).await, code(&issuer).await);

    issuer.clock.advance(Duration::from_secs(299));
    assert_eq!(redeem(&issuer, &young, &[]).await.0, StatusCode::OK);
    issuer.clock.advance(Duration::from_secs(1));
    assert_eq!(redeem(&issuer, &old, &[]).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_code_used_twice_ends_what_it_gave() {
    let issuer = start();
    let code = code(&issuer).await;
    let (_, tokens) = redeem(&issuer, &code, &[]).await;
    assert_eq!(issuer.introspect(&tokens["access_token"]).await["active"], true);

    let (status, body) = redeem(&issuer, &code, &[]).await;

    assert_eq!((status, &body["error"]), (StatusCode::BAD_REQUEST, &"invalid_grant".into()));
    assert_eq!(issuer.introspect(&tokens["access_token"]).await["active"], false);
    assert_eq!(issuer.refresh(&tokens["refresh_token"]).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_form_from_another_browser_is_refused() {
    let issuer = start();
    let (mut alice, mut mallory) = (Browser::new(&issuer), Browser::new(&issuer));
    let hers = alice.open(&authorize(&[])).await;
    let his = mallory.open(&authorize(&[])).await;

    let stolen = mallory.log_in(&hers, "alice", "wonderland").await;
    let planted = alice.log_in(&his, "alice", "wonderland").await;

    assert_eq!(stolen.status, StatusCode::BAD_REQUEST);
    assert_eq!(planted.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_cookie_from_before_the_login_is_worth_nothing() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;
    let planted = browser.cookie.clone();
    let page = browser.log_in(&page, "alice", "wonderland").await;
    browser.decide(&page, "allow", &["offline_access", "orders:read"]).await.back();

    browser.cookie = planted;

    let back = browser.open(&authorize(&[("prompt", "none")])).await.back();
    assert_eq!(back["error"], "login_required");
}

#[tokio::test]
async fn a_page_left_open_too_long_is_refused() {
    let issuer = start();
    let mut browser = Browser::new(&issuer);
    let page = browser.open(&authorize(&[])).await;

    issuer.clock.advance(Duration::from_secs(600));

    let refused = browser.log_in(&page, "alice", "wonderland").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn pages_cannot_be_framed_scripted_or_kept() {
    let issuer = start();
    let request = issuer.http.get(issuer.at(&authorize(&[])));

    let page = request.send().await.expect("an answer");

    let policy = page.headers()["content-security-policy"].to_str().expect("text");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert!(policy.contains("form-action 'self' https://localhost:8443;"));
    assert_eq!(page.headers()["cache-control"], "no-store");
    let cookie = page.headers()[SET_COOKIE].to_str().expect("text");
    assert!(cookie.ends_with("; Path=/authorize; HttpOnly; SameSite=Lax"));
}

#[tokio::test]
async fn a_minted_persons_token_says_who_it_is() {
    let issuer = start();
    let mint = Mint::client("gateway").user("bob").scopes("orders:read");

    let token = issuer.running.mint(&mint).expect("a token");

    let claims = claims(&token.into());
    assert_eq!((&claims["sub"], &claims["client_id"]), (&"bob".into(), &"gateway".into()));
    assert_eq!(claims["groups"], serde_json::json!(["customers", "staff"]));
}

/// A log that a test can read.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// The line that contains `word`.
    fn line(&self, word: &str) -> String {
        let text = String::from_utf8(self.0.lock().expect("an intact log").clone()).expect("text");
        text.lines().find(|line| line.contains(word)).unwrap_or_default().to_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("an intact log").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
