//! Logging in with a user name and a password.

use core::net::IpAddr;

use crate::fault_injection::{Endpoint, Fault};
use futures_util::future::join_all;
use http::header::{CACHE_CONTROL, LOCATION, RETRY_AFTER, SET_COOKIE, WWW_AUTHENTICATE};
use http::{Method, Request, StatusCode};
use northgate::base::body::Body;
use northgate::dev::issuer::{API, Algorithm, DevIssuerConfig, TokenFormat};
use northgate::session::{ReturnTo, Store, TokenStorage};
use serde_json::json;

use crate::support::{Browser, Gate, HOME, json, text};

#[tokio::test]
async fn a_form_login_redirects_with_a_sealed_cookie() {
    let gate = Gate::start();
    let mut browser = Browser::default();

    let response = gate.log_in(&mut browser, "alice", "wonderland").await;

    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    assert_eq!(response.headers()[LOCATION], "/");
    assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
    for cookie in response.headers().get_all(SET_COOKIE) {
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.starts_with("__Host-web"), "{cookie}");
        assert!(cookie.ends_with("; Path=/; Secure; HttpOnly; SameSite=Lax"), "{cookie}");
        assert!(!cookie.contains(".eyJ"), "a token can be read: {cookie}");
    }
    assert_eq!(gate.counted(r#"northgate_session_logins_total{session="web",result="ok"}"#), 1);
}

#[tokio::test]
async fn a_program_gets_json() {
    let gate = Gate::start();
    let mut browser = Browser::default();
    let request = Request::post("/auth/login")
        .header("content-type", "application/json")
        .body(Body::from(r#"{"username": "alice", "password": "wonderland"}"#));

    let response = gate.serve(&mut browser, request.unwrap()).await;

    assert_eq!(response.status(), StatusCode::OK);
    let told = json(response).await;
    assert_eq!(told["logged_in"], true);
    assert_eq!(told["name"], "Alice Liddell");
    assert_eq!(told["access_token_ends_at"], 1_800_000_600);
    assert_eq!(told["idle_ends_at"], 1_800_001_800);
    assert_eq!(told["ends_at"], 1_800_043_200);
    assert!(gate.ask(&mut browser).await.is_ok());
}

#[tokio::test]
async fn a_user_is_named_by_the_id_token_if_the_access_token_has_no_name() {
    let mut options = DevIssuerConfig::default();
    for client in &mut options.clients {
        client.tokens = TokenFormat::Reference;
    }
    let gate = Gate::at(options, |_| {});
    let says = json!({ "active": true, "aud": API, "scope": "orders:read", "username": "alice" });
    let fault = Fault::json(&says);
    gate.issuer.inject(Endpoint::Introspection, fault, 100);
    let browser = gate.alice().await;

    for _ in 0..2 {
        let principal = gate.present(&browser).await.unwrap().principal;
        assert_eq!(principal.subject.as_deref(), Some("alice"));
        assert_eq!(principal.claim("sub"), Some(&json!("alice")));
    }
}

#[tokio::test]
async fn a_failed_login_reveals_nothing_about_the_name() {
    let gate = Gate::start();
    let mut answers = Vec::new();
    for user in ["alice", "unknown"] {
        let mut browser = Browser::default();
        let response = gate.log_in(&mut browser, user, "wrong").await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(response.headers()[WWW_AUTHENTICATE], "Cookie form-action=\"/auth/login\"");
        assert_eq!(browser, Browser::default());
        answers.push(text(response).await.replace(user, "…"));
    }
    assert_eq!(answers[0], answers[1]);
    assert!(answers[0].contains("The user name or the password is wrong."));
}

#[tokio::test]
async fn the_time_of_a_failed_login_reveals_nothing_either() {
    let gate = Gate::start();
    gate.log_in(&mut Browser::default(), "alice", "wrong").await;
    let slow = core::time::Duration::from_millis(60);
    gate.issuer.inject(Endpoint::Token, Fault::Delay(slow), 1);
    let mut took = Vec::new();
    for _ in 0..2 {
        let began = tokio::time::Instant::now();
        gate.log_in(&mut Browser::default(), "alice", "wrong").await;
        took.push(began.elapsed().as_millis());
    }
    // Both take at least a whole step, however long the issuer took.
    assert!(took.iter().all(|took| *took >= 200), "{took:?}");
}

#[tokio::test]
async fn guessing_ends_after_five_failures() {
    let gate = Gate::start();
    for _ in 0..5 {
        let response = gate.log_in(&mut Browser::default(), "alice", "guess").await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    }
    let asked = gate.issuer.count(Endpoint::Token);

    let response = gate.log_in(&mut Browser::default(), "alice", "wonderland").await;

    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()[RETRY_AFTER], "60");
    assert_eq!(gate.issuer.count(Endpoint::Token), asked, "the issuer was asked all the same");
    gate.advance(60);
    assert_eq!(gate.log_in(&mut Browser::default(), "alice", "wonderland").await.status(), 303);
}

#[tokio::test]
async fn a_password_over_plain_http_is_refused() {
    let gate = Gate::start();
    for method in [Method::GET, Method::POST] {
        let request = || Browser::default().request(method.clone(), "/auth/login");
        let body = || Body::from("username=alice&password=wonderland");
        let form = "application/x-www-form-urlencoded";
        let request = || request().header("content-type", form).body(body()).unwrap();

        let refused = gate.session.serve(request(), HOME, false).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        let loopback = [127, 0, 0, 1].into();
        assert_eq!(gate.session.serve(request(), loopback, false).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn of_twenty_simultaneous_logins_only_the_allowed_number_reaches_the_issuer() {
    for json in [false, true] {
        let gate = Gate::start();
        let guesses = (0..20).map(|guess| {
            let gate = &gate;
            async move {
                let (kind, body) = if json {
                    let body = json!({ "username": "alice", "password": guess.to_string() });
                    ("application/json", body.to_string())
                } else {
                    let form = format!("username=alice&password={guess}");
                    ("application/x-www-form-urlencoded", form)
                };
                let request = Browser::default().post("/auth/login").header("content-type", kind);
                let request = request.body(Body::from(body)).unwrap();
                gate.session.serve(request, HOME, true).await.status()
            }
        });

        let told = join_all(guesses).await;

        assert_eq!(gate.issuer.count(Endpoint::Token), 5, "json: {json}");
        let count = |status| told.iter().filter(|told| **told == status).count();
        assert_eq!(count(StatusCode::UNAUTHORIZED), 5);
        assert_eq!(count(StatusCode::TOO_MANY_REQUESTS), 15);
    }
}

#[tokio::test]
async fn a_stranger_cannot_lock_out_a_chosen_user() {
    let gate = Gate::start();
    let stranger = IpAddr::from([203, 0, 113, 9]);
    for guess in 0..8 {
        let request = Browser::default()
            .post("/auth/login")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(format!("username=alice&password={guess}")));
        gate.session.serve(request.unwrap(), stranger, true).await;
    }

    let response = gate.log_in(&mut Browser::default(), "alice", "wonderland").await;

    assert_eq!(response.status(), 303);
}

#[tokio::test]
async fn a_cross_site_page_cannot_log_a_user_in() {
    let gate = Gate::with(|settings| {
        settings.return_to =
            vec![ReturnTo::SameOrigin, ReturnTo::Origin("https://app.example.com".into())];
    });
    let send = async |origin: &str, site: &str| {
        let request = Browser::default()
            .request(Method::POST, "/auth/login")
            .header("origin", origin)
            .header("sec-fetch-site", site)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from("username=alice&password=wonderland"));
        gate.session.serve(request.unwrap(), HOME, true).await.status()
    };

    assert_eq!(send("https://evil.example", "cross-site").await, StatusCode::FORBIDDEN);
    assert_eq!(send("https://shop.example.com", "same-site").await, StatusCode::FORBIDDEN);
    assert_eq!(send("null", "cross-site").await, StatusCode::FORBIDDEN);
    assert_eq!(gate.issuer.count(Endpoint::Token), 0);
    assert_eq!(send("https://www.example.com", "same-origin").await, StatusCode::OK);
    assert_eq!(send("https://app.example.com", "same-site").await, StatusCode::OK);
}

#[tokio::test]
async fn a_login_leads_to_the_requested_target_but_to_no_other_site() {
    let gate = Gate::start();
    let login = async |return_to: &str| {
        let request = Browser::default()
            .post("/auth/login")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(format!("username=alice&password=wonderland&return_to={return_to}")));
        let response = gate.serve(&mut Browser::default(), request.unwrap()).await;
        response.headers()[LOCATION].to_str().unwrap().to_owned()
    };

    assert_eq!(login("%2Fapp%2Forders%3Fpage%3D2").await, "/app/orders?page=2");
    let long = format!("/app?q={}", "x".repeat(2_000));
    assert_eq!(login(&long.replace('/', "%2F")).await, long);
    for evil in ["%2F%2Fevil.example", "%2F%5Cevil.example", "https%3A%2F%2Fevil.example"] {
        assert_eq!(login(evil).await, "/", "{evil}");
    }
}

#[tokio::test]
async fn the_form_preserves_the_target() {
    let gate = Gate::start();
    let form = async |query: &str| {
        let request = Browser::default().get(&format!("/auth/login?return_to={query}"));
        let request = request.body(Body::empty()).unwrap();
        text(gate.session.serve(request, HOME, true).await).await
    };

    assert!(form("%2Fapp").await.contains("name=\"return_to\" value=\"/app\""));
    assert!(!form("%2F%2Fevil.example").await.contains("evil"));
}

#[tokio::test]
async fn every_login_is_a_new_session_and_ends_the_one_before() {
    for tokens in [TokenStorage::SealedCookies, TokenStorage::Server(Store::Memory)] {
        let gate = Gate::with(|settings| settings.tokens = tokens);
        let mut browser = gate.alice().await;
        let before = browser.clone();
        let first = gate.present(&before).await.unwrap().session;

        gate.log_in(&mut browser, "alice", "wonderland").await;

        let second = gate.ask(&mut browser).await.unwrap();
        assert_ne!(second.session, first);
        gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
        let error = gate.present(&before).await.unwrap_err();
        assert_eq!(error.set_cookies, [""; 0], "a straggler would clear the new session's cookies");
    }
}

#[tokio::test]
async fn an_unavailable_issuer_is_reported_as_unavailable() {
    let gate = Gate::start();
    gate.issuer.inject(Endpoint::Token, Fault::Status(StatusCode::BAD_GATEWAY), u32::MAX);

    let response = gate.log_in(&mut Browser::default(), "alice", "wonderland").await;

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key(RETRY_AFTER));
}

#[tokio::test]
async fn tokens_that_fit_no_cookie_are_a_clear_error() {
    let gate = Gate::start();
    gate.alice().await;
    let claims = json!({
        "iss": gate.issuer.url(), "sub": "alice", "aud": API, "exp": 1_800_000_060,
    });
    let access_token = gate.issuer.sign(Algorithm::Es256, json!({ "typ": "at+jwt" }), claims);
    let tokens = json!({
        "access_token": access_token, "token_type": "Bearer", "expires_in": 60,
        "refresh_token": "x".repeat(25_000),
    });
    let fault = Fault::json(&tokens);
    gate.issuer.inject(Endpoint::Token, fault, 1);
    let mut browser = Browser::default();

    let response = gate.log_in(&mut browser, "alice", "wonderland").await;

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(text(response).await.contains("too large for cookies"));
    assert_eq!(browser, Browser::default());
    gate.issuer.wait_for_calls(Endpoint::Revocation, 2).await;
}

#[tokio::test]
async fn malformed_logins_are_refused_without_calling_the_issuer() {
    let gate = Gate::start();
    let send = async |kind: &str, body: String| {
        let request = Browser::default()
            .request(Method::POST, "/auth/login")
            .header("content-type", kind)
            .body(Body::from(body));
        gate.session.serve(request.unwrap(), HOME, true).await.status()
    };
    let (form, json) = ("application/x-www-form-urlencoded", "application/json");

    for (kind, body, status) in [
        ("text/plain", "username=a&password=b", 415),
        (form, "username=a", 400),
        (form, "username=&password=b", 400),
        (form, "username=a&password=b&username=c", 400),
        (form, "username=a%00&password=b", 400),
        (json, r#"{"username": "a"}"#, 400),
        (json, r#"{"username": "a", "username": "b", "password": "c"}"#, 400),
        (json, r#"["a", "b", null, 1]"#, 400),
        (json, "{", 400),
    ] {
        assert_eq!(send(kind, body.to_owned()).await, status, "{body}");
    }
    assert_eq!(send(form, "x".repeat(20_000)).await, 413);
    assert_eq!(gate.issuer.count(Endpoint::Token), 0);
}
