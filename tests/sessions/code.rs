//! Logging in at the issuer, with a code.

use crate::fault_injection::{Endpoint, Fault};
use http::header::LOCATION;
use http::{Response, StatusCode};
use northgate::base::body::Body;
use northgate::dev::issuer::{API, Algorithm};
use northgate::issuer::ResourceIndicator;
use northgate::session::{Flow, SameSite, SessionErrorReason, Settings};
use serde_json::{Value, json};
use url::Url;

use crate::identity::answer_claiming;
use crate::issuer_pages::walk;
use crate::support::{Browser, Gate, text};

pub(crate) fn code(settings: &mut Settings) {
    settings.flow = Flow::Code;
    settings.public_url = Url::parse("https://localhost:8443").unwrap();
    settings.prompt = Some("consent".into());
}

pub(crate) fn location(response: &Response<Body>) -> Url {
    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    let location = response.headers()[LOCATION].to_str().unwrap();
    let base = Url::parse("https://localhost:8443/").unwrap();
    base.join(location).unwrap()
}

pub(crate) fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find_map(|(found, value)| (found == name).then(|| value.into_owned()))
}

impl Gate {
    /// Opens the login, and returns where it redirects to.
    pub(crate) async fn depart(&self, browser: &mut Browser, path: &str) -> Url {
        let request = browser.get(path).body(Body::empty()).unwrap();
        location(&self.serve(browser, request).await)
    }

    /// Comes back from the issuer at `url`.
    pub(crate) async fn come_back(&self, browser: &mut Browser, url: &Url) -> Response<Body> {
        let path = format!("{}?{}", url.path(), url.query().unwrap_or_default());
        let request = browser.get(&path).body(Body::empty()).unwrap();
        self.serve(browser, request).await
    }

    /// A browser in which alice has just logged in at the issuer.
    async fn alice_by_code(&self) -> Browser {
        let mut browser = Browser::default();
        let away = self.depart(&mut browser, "/auth/login").await;
        let back = walk(&away, "allow").await;
        assert_eq!(location(&self.come_back(&mut browser, &back).await).path(), "/");
        browser
    }

    fn logins(&self, result: &str) -> u64 {
        let series =
            format!(r#"northgate_session_logins_total{{session="web",result="{result}"}}"#);
        self.counted(&series)
    }
}

#[tokio::test]
async fn a_login_redirects_to_the_issuer_and_back_to_the_requested_target() {
    let gate = Gate::with(|settings| {
        code(settings);
        // Compared byte for byte there, and so sent in this spelling to both endpoints.
        settings.resource = Some(ResourceIndicator::parse(API).unwrap());
    });
    let mut browser = Browser::default();

    let away = gate.depart(&mut browser, "/auth/login?return_to=%2Fapp%3Fpage%3D2").await;
    assert!(parameter(&away, "request_uri").is_some(), "pushed: {away}");
    assert_eq!(parameter(&away, "state"), None, "nothing else is in the address: {away}");
    let back = walk(&away, "allow").await;
    let response = gate.come_back(&mut browser, &back).await;

    assert_eq!(location(&response).as_str(), "https://localhost:8443/app?page=2");
    assert!(browser.jar.keys().all(|name| !name.contains("login")), "{:?}", browser.jar.keys());
    let signed = gate.ask(&mut browser).await.unwrap();
    assert_eq!(signed.principal.subject.as_deref(), Some("alice"));
    assert_eq!(gate.logins("ok"), 1);
}

#[tokio::test]
async fn an_issuer_without_par_gets_the_request_by_the_browser() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    gate.issuer.inject(Endpoint::PushedAuthorization, Fault::Status(StatusCode::BAD_REQUEST), 1);

    let away = gate.depart(&mut browser, "/auth/login").await;

    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "gateway-web"),
        ("redirect_uri", "https://localhost:8443/auth/callback"),
        ("code_challenge_method", "S256"),
        ("prompt", "consent"),
    ] {
        assert_eq!(parameter(&away, name).as_deref(), Some(value));
    }
    for name in ["state", "nonce", "code_challenge"] {
        assert!(parameter(&away, name).unwrap().len() >= 43, "{name}");
    }
    let back = walk(&away, "allow").await;
    assert_eq!(location(&gate.come_back(&mut browser, &back).await).path(), "/");
}

#[tokio::test]
async fn two_tabs_both_finish() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let one = gate.depart(&mut browser, "/auth/login?return_to=%2Fone").await;
    let two = gate.depart(&mut browser, "/auth/login?return_to=%2Ftwo").await;

    let (one, two) = (walk(&one, "allow").await, walk(&two, "allow").await);

    assert_eq!(location(&gate.come_back(&mut browser, &two).await).path(), "/two");
    assert_eq!(location(&gate.come_back(&mut browser, &one).await).path(), "/one");
    assert!(gate.ask(&mut browser).await.is_ok());
    assert_eq!(gate.logins("ok"), 2);
}

#[tokio::test]
async fn going_back_to_a_finished_login_just_continues() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    gate.come_back(&mut browser, &back).await;

    let again = gate.come_back(&mut browser, &back).await;

    assert_eq!(location(&again).path(), "/");
    assert!(gate.ask(&mut browser).await.is_ok());
}

#[tokio::test]
async fn a_callback_in_another_browser_logs_no_user_in() {
    let gate = Gate::with(code);
    let away = gate.depart(&mut Browser::default(), "/auth/login").await;
    let stolen = walk(&away, "allow").await;
    let asked = gate.issuer.count(Endpoint::Token);
    let mut victim = Browser::default();
    gate.depart(&mut victim, "/auth/login").await;

    let response = gate.come_back(&mut victim, &stolen).await;

    // The browser is redirected to the issuer itself.
    assert_eq!(location(&response).path(), "/authorize");
    assert_eq!(gate.issuer.count(Endpoint::Token), asked, "the code was redeemed");
    assert_eq!(gate.ask(&mut victim).await.unwrap_err().reason, SessionErrorReason::Missing);
}

#[tokio::test]
async fn a_login_without_its_cookie_is_restarted_twice_at_most() {
    let gate = Gate::with(code);
    let mut away = gate.depart(&mut Browser::default(), "/auth/login").await;
    for _ in 0..2 {
        let back = walk(&away, "allow").await;
        // A browser that stores no cookies.
        away = location(&gate.come_back(&mut Browser::default(), &back).await);
        assert_eq!(away.path(), "/authorize");
    }
    let back = walk(&away, "allow").await;

    let response = gate.come_back(&mut Browser::default(), &back).await;

    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(text(response).await.contains("not begun in this browser"));
    assert_eq!(gate.logins("mismatch"), 3);
}

#[tokio::test]
async fn a_forged_callback_is_refused() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    gate.depart(&mut browser, "/auth/login").await;
    for query in ["", "code=a", "code=a&state=b", "error=server_error", "code=a&code=b&state=c"] {
        let url = Url::parse(&format!("https://localhost:8443/auth/callback?{query}")).unwrap();
        let response = gate.come_back(&mut browser, &url).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
    }
    assert_eq!(gate.issuer.count(Endpoint::Token), 0);
}

#[tokio::test]
async fn a_callback_of_another_issuer_is_refused() {
    let gate = Gate::with(code);
    for iss in [Some("https://evil.example"), Some(""), None] {
        let mut browser = Browser::default();
        let away = gate.depart(&mut browser, "/auth/login").await;
        let mut back = walk(&away, "allow").await;
        let kept: Vec<_> =
            back.query_pairs().into_owned().filter(|(name, _)| name != "iss").collect();
        back.query_pairs_mut().clear().extend_pairs(kept);
        if let Some(iss) = iss {
            back.query_pairs_mut().append_pair("iss", iss);
        }
        let asked = gate.issuer.count(Endpoint::Token);

        let response = gate.come_back(&mut browser, &back).await;

        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{iss:?}");
        assert_eq!(gate.issuer.count(Endpoint::Token), asked, "the code was given away");
        let page = text(response).await;
        assert!(page.contains("the authorization server of this site"), "{page}");
    }
}

#[tokio::test]
async fn a_user_who_declines_is_not_logged_in() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login").await;

    let back = walk(&away, "deny").await;
    let response = gate.come_back(&mut browser, &back).await;

    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!((gate.logins("denied"), browser), (1, Browser::default()));
}

#[tokio::test]
async fn an_expired_code_restarts_the_login() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login?return_to=%2Fapp").await;
    let back = walk(&away, "allow").await;
    gate.advance(400); // Codes live five minutes, our login ten.

    let away = location(&gate.come_back(&mut browser, &back).await);
    let back = walk(&away, "allow").await;

    assert_eq!(location(&gate.come_back(&mut browser, &back).await).path(), "/app");
}

#[tokio::test]
async fn an_id_token_must_belong_to_this_login() {
    let gate = Gate::with(code);
    let with = |name: &'static str, value: Value| {
        move |claims: &mut Value| {
            claims[name] = value.clone();
        }
    };
    for (change, status) in [
        (with("nonce", "another".into()), StatusCode::BAD_GATEWAY),
        (with("nonce", json!(null)), StatusCode::BAD_GATEWAY),
        (with("iss", "https://evil.example".into()), StatusCode::BAD_GATEWAY),
        (with("aud", "another".into()), StatusCode::BAD_GATEWAY),
        (with("aud", API.into()), StatusCode::BAD_GATEWAY),
        // For other audiences as well, which are unknown here.
        (with("aud", json!(["gateway-web", "another"])), StatusCode::BAD_GATEWAY),
        (with("azp", "another".into()), StatusCode::BAD_GATEWAY),
        (with("azp", API.into()), StatusCode::BAD_GATEWAY),
        (with("exp", 1_799_999_000.into()), StatusCode::BAD_GATEWAY),
        // For the upstreams as well, whose tokens are accepted here anyway.
        (with("aud", json!(["gateway-web", API])), StatusCode::SEE_OTHER),
        (with("azp", "gateway-web".into()), StatusCode::SEE_OTHER),
    ] {
        let mut browser = Browser::default();
        // Not pushed, so that the nonce can be seen.
        gate.issuer.inject(
            Endpoint::PushedAuthorization,
            Fault::Status(StatusCode::BAD_REQUEST),
            1,
        );
        let away = gate.depart(&mut browser, "/auth/login").await;
        let back = walk(&away, "allow").await;
        let mut claims = json!({
            "iss": gate.issuer.url(), "sub": "alice", "aud": "gateway-web",
            "exp": 1_800_000_600, "iat": 1_800_000_000, "nonce": parameter(&away, "nonce"),
        });
        change(&mut claims);
        gate.issuer.inject(Endpoint::Token, tokens(&gate, &claims), 1);

        let response = gate.come_back(&mut browser, &back).await;

        assert_eq!(response.status(), status, "{claims}");
        assert_eq!(browser == Browser::default(), status != StatusCode::SEE_OTHER);
    }
}

/// A token response with an ID token that claims `claims`.
fn tokens(gate: &Gate, claims: &Value) -> Fault {
    let sign = |typ, claims| gate.issuer.sign(Algorithm::Es256, json!({ "typ": typ }), claims);
    let iss = gate.issuer.url();
    let access = json!({ "iss": iss, "sub": "alice", "aud": API, "exp": 1_800_000_600 });
    let tokens = json!({
        "access_token": sign("at+jwt", access), "token_type": "Bearer", "expires_in": 600,
        "id_token": sign("JWT", claims.clone()),
    });
    Fault::json(&tokens)
}

#[tokio::test]
async fn the_issuers_own_session_is_ended_as_well() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_code().await;
    let request = browser.post("/auth/logout").header("origin", "https://localhost:8443");
    let mut request = request.body(Body::empty()).unwrap();
    request.headers_mut().insert("origin", "https://localhost:8443".parse().unwrap());

    let next = location(&gate.serve(&mut browser, request).await);

    assert!(next.as_str().starts_with(gate.issuer.url()), "{next}");
    let after = parameter(&next, "post_logout_redirect_uri");
    assert_eq!(after.as_deref(), Some("https://localhost:8443/"));
    assert!(parameter(&next, "id_token_hint").is_some());
}

/// Servers and proxies refuse long targets: the user would be stuck on their error page.
#[tokio::test]
async fn an_id_token_too_long_for_a_url_is_no_hint() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    gate.issuer.inject(Endpoint::PushedAuthorization, Fault::Status(StatusCode::BAD_REQUEST), 1);
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    let groups = json!({ "groups": vec!["a-rather-long-name-of-a-group"; 150] });
    let long = answer_claiming(&gate, &away, groups, json!({}));
    gate.issuer.inject(Endpoint::Token, long, 1);
    assert_eq!(location(&gate.come_back(&mut browser, &back).await).path(), "/");
    let mut request = browser.post("/auth/logout").body(Body::empty()).unwrap();
    request.headers_mut().insert("origin", "https://localhost:8443".parse().unwrap());

    let next = location(&gate.serve(&mut browser, request).await);

    assert!(next.as_str().starts_with(gate.issuer.url()), "{next}");
    assert_eq!(parameter(&next, "client_id").as_deref(), Some("gateway-web"));
    assert_eq!(parameter(&next, "id_token_hint"), None);
}

#[tokio::test]
async fn a_strict_cookie_is_found_right_after_the_login() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.cookie.same_site = SameSite::Strict;
    });
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login?return_to=%2Fapp").await;
    let back = walk(&away, "allow").await;

    let response = gate.come_back(&mut browser, &back).await;

    // A redirect here would still be part of the issuer's navigation.
    assert_eq!(response.status(), StatusCode::OK);
    assert!(text(response).await.contains("<meta http-equiv=\"refresh\" content=\"0;url=/app\">"));
}

#[tokio::test]
async fn going_back_to_a_finished_login_keeps_what_it_refreshes() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login").await;
    let back = walk(&away, "allow").await;
    gate.come_back(&mut browser, &back).await;
    gate.advance(700);
    let before = browser.clone();

    gate.come_back(&mut browser, &back).await;

    assert_ne!(browser, before, "the new tokens went nowhere");
    gate.advance(60);
    gate.ask(&mut browser).await.expect("nothing was redeemed twice");
}

#[tokio::test]
async fn a_fresh_code_that_is_refused_is_shown_and_logged_the_first_time() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let away = gate.depart(&mut browser, "/auth/login?return_to=%2Fapp").await;
    let back = walk(&away, "allow").await;
    let body = json!({ "error": "invalid_grant", "error_description": "redirect_uri" });
    let refused = Fault::json_with(StatusCode::BAD_REQUEST, &body);
    gate.issuer.inject(Endpoint::Token, refused, 1);

    let response = gate.come_back(&mut browser, &back).await;

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    let page = text(response).await;
    assert!(page.contains("did not accept the code"), "{page}");
    assert!(page.contains("/auth/login?return_to=%2Fapp"), "the target survives: {page}");
    assert_eq!((gate.logins("rejected"), browser), (1, Browser::default()));
}

#[tokio::test]
async fn a_browser_that_keeps_an_old_cookie_is_stopped_after_two_logins() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    for _ in 0..2 {
        let away = gate.depart(&mut browser, "/auth/login?return_to=%2Fapp").await;
        let back = walk(&away, "allow").await;
        assert_eq!(location(&gate.come_back(&mut browser, &back).await).path(), "/app");
        browser.jar.insert("__Host-web".into(), "1old".into());
    }

    let request = browser.get("/auth/login?return_to=%2Fapp").body(Body::empty()).unwrap();
    let response = gate.serve(&mut browser, request).await;

    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let page = text(response).await;
    assert!(page.contains("another cookie") && page.contains("return_to=%2Fapp"), "{page}");
    // The link on the page begins anew.
    gate.depart(&mut browser, "/auth/login?return_to=%2Fapp").await;
}

#[tokio::test]
async fn the_session_counts_whose_cookie_opens_although_its_name_comes_twice() {
    let gate = Gate::with(code);
    let browser = gate.alice_by_code().await;

    for cookie in [
        format!("__Host-web=1old; {}", browser.cookie()),
        format!("{}; __Host-web=1old; __Host-web.1=x", browser.cookie()),
    ] {
        let request = http::Request::get("/app").header("cookie", cookie).body(()).unwrap();
        let user = gate.session.authenticate(&request.into_parts().0, None).await.unwrap();
        assert_eq!(user.principal.subject.as_deref(), Some("alice"));
    }
}

#[tokio::test]
async fn transient_errors_of_the_issuer_restart_a_login_once() {
    let gate = Gate::with(code);
    for error in ["temporarily_unavailable", "login_required", "interaction_required"] {
        let mut browser = Browser::default();
        gate.issuer.inject(
            Endpoint::PushedAuthorization,
            Fault::Status(StatusCode::BAD_REQUEST),
            2,
        );
        let mut away = gate.depart(&mut browser, "/auth/login?return_to=%2F100%2525").await;
        let answer = |away: &Url| {
            let state = parameter(away, "state").unwrap();
            let mut url = Url::parse("https://localhost:8443/auth/callback").unwrap();
            url.query_pairs_mut()
                .append_pair("error", error)
                .append_pair("state", &state)
                .append_pair("iss", gate.issuer.url());
            url
        };

        away = location(&gate.come_back(&mut browser, &answer(&away)).await);
        assert_eq!(away.path(), "/authorize", "{error}");
        let last = gate.come_back(&mut browser, &answer(&away)).await;

        assert_eq!(last.status(), StatusCode::BAD_GATEWAY, "{error}");
        let page = text(last).await;
        assert!(page.contains("return_to=%2F100%2525"), "{page}");
    }
}

#[tokio::test]
async fn a_long_target_survives_a_login_and_a_restart_without_cookies_keeps_a_short_one() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let long = format!("/search?q={}", "x".repeat(3_000));
    let away = gate.depart(&mut browser, &format!("/auth/login?return_to={long}")).await;
    let back = walk(&away, "allow").await;
    let after = location(&gate.come_back(&mut browser, &back).await);
    assert_eq!(format!("{}?{}", after.path(), after.query().unwrap()), long);

    let away = gate.depart(&mut Browser::default(), "/auth/login?return_to=%2F100%2525").await;
    let back = walk(&away, "allow").await;
    let mut other = Browser::default();
    let away = location(&gate.come_back(&mut other, &back).await);
    let back = walk(&away, "allow").await;

    assert_eq!(location(&gate.come_back(&mut other, &back).await).path(), "/100%25");
}

#[tokio::test]
async fn tabs_that_begin_at_the_same_time_each_come_back_to_their_own_page() {
    let gate = Gate::with(code);
    let mut browser = Browser::default();
    let (mut tabs, empty) = (Vec::new(), Browser::default());
    for tab in 0..8 {
        // No request has the cookies of the others' responses yet.
        let request = empty.get(&format!("/auth/login?return_to=%2Ftab{tab}")).body(Body::empty());
        tabs.push(location(&gate.serve(&mut browser, request.unwrap()).await));
    }

    for (tab, away) in tabs.iter().enumerate() {
        let mut back = walk(away, "allow").await;
        let mut response = gate.come_back(&mut browser, &back).await;
        if location(&response).path() == "/authorize" {
            // It lost its slot to another tab.
            back = walk(&location(&response), "allow").await;
            response = gate.come_back(&mut browser, &back).await;
        }
        assert_eq!(location(&response).path(), format!("/tab{tab}"));
    }
    assert!(browser.jar.keys().all(|name| !name.contains("login")), "{:?}", browser.jar.keys());
}
