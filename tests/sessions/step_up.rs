//! Logging in again for what a route demands (RFC 9470).

use core::time::Duration;

use http::{Method, Response, StatusCode};
use northgate::base::body::Body;
use northgate::session::{Csrf, LoginRedirect, ReturnTo};
use northgate::token::authentication_level::AuthenticationLevel;
use serde_json::{Value, json};
use url::Url;

use crate::code::{code, location, parameter};
use crate::fault_injection::{Endpoint, Fault};
use crate::identity::{answer, answer_claiming};
use crate::issuer_pages::walk;
use crate::support::{Browser, Gate, NOW, text};
use crate::targets::wide;

fn gold() -> AuthenticationLevel {
    AuthenticationLevel { acr: ["gold".into()].into(), max_age: Some(Duration::from_secs(300)) }
}

impl Gate {
    /// A browser in which alice has logged in with nothing but a password.
    async fn alice_by_password(&self) -> Browser {
        let mut browser = Browser::default();
        let away = self.depart_unpushed(&mut browser, "/auth/login").await;
        let back = walk(&away, "allow").await;
        self.issuer.inject(Endpoint::Token, answer(self, &away, json!({})), 1);
        self.come_back(&mut browser, &back).await;
        assert!(self.ask(&mut browser).await.is_ok());
        browser
    }

    pub(crate) async fn depart_unpushed(&self, browser: &mut Browser, path: &str) -> Url {
        let not_pushed = Fault::Status(StatusCode::BAD_REQUEST);
        self.issuer.inject(Endpoint::PushedAuthorization, not_pushed, 1);
        self.depart(browser, path).await
    }

    /// Refuses a request with these header fields for want of a better login.
    async fn refuse(&self, browser: &Browser, request: http::request::Builder) -> LoginRedirect {
        let user = self.present(browser).await.unwrap();
        let (head, body) = request.body(Body::from("a=1&b=2")).unwrap().into_parts();
        let subject = user.principal.subject.clone();
        self.session.step_up(&head, body, &gold(), subject).await.unwrap()
    }

    /// Logs in at `url` with these claims in the ID token.
    async fn log_in_at(&self, browser: &mut Browser, url: &str, claims: Value) -> Response<Body> {
        let away = self.depart_unpushed(browser, url).await;
        assert_eq!(parameter(&away, "acr_values").as_deref(), Some("gold"));
        assert_eq!(parameter(&away, "max_age").as_deref(), Some("300"));
        let back = walk(&away, "allow").await;
        self.issuer.inject(Endpoint::Token, answer_claiming(self, &away, claims, json!({})), 1);
        self.come_back(browser, &back).await
    }
}

fn post(browser: &Browser) -> http::request::Builder {
    let form = "application/x-www-form-urlencoded";
    browser.post("/orders?x=1").header("sec-fetch-mode", "navigate").header("content-type", form)
}

fn strong() -> Value {
    json!({ "acr": "gold", "auth_time": 1_800_000_000 })
}

#[tokio::test]
async fn a_page_is_shown_after_a_stronger_login() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;
    let LoginRedirect::Location(url) = gate.refuse(&browser, browser.get("/orders?x=1")).await
    else {
        panic!("a navigation is redirected")
    };

    let response = gate.log_in_at(&mut browser, url.to_str().unwrap(), strong()).await;

    let after = location(&response);
    assert_eq!((after.path(), after.query()), ("/orders", Some("x=1")));
    let user = gate.ask(&mut browser).await.unwrap();
    assert!(gold().is_met_by(&user.principal, gate.clock.now()));
}

#[tokio::test]
async fn a_posted_form_is_sent_exactly_once_after_a_stronger_login() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;
    let url = gate.refuse(&browser, post(&browser)).await.url().clone();
    let response = gate.log_in_at(&mut browser, url.to_str().unwrap(), strong()).await;
    assert_eq!(location(&response).path(), "/orders");
    let form = browser.jar.iter().find(|(name, _)| name.contains(".form")).unwrap();
    let foreign = format!("{}={}; {}", form.0, form.1, gate.alice_by_password().await.cookie());
    let back = |path: &str| browser.get(path).body(()).unwrap().into_parts().0;

    assert!(gate.session.resume_form(&mut back("/orders")).await.is_none(), "another address");
    let mut other = back("/orders?x=1");
    other.headers.insert("cookie", foreign.parse().unwrap());
    assert!(gate.session.resume_form(&mut other).await.is_none(), "another session");
    let mut head = back("/orders?x=1");
    let form = gate.session.resume_form(&mut head).await.unwrap();

    assert_eq!(head.method, Method::POST);
    assert_eq!(head.headers["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(&*form.content().collect(100).await.unwrap(), b"a=1&b=2");
    assert!(gate.session.authenticate(&head, None).await.is_ok(), "it comes from this origin");
    assert!(gate.session.resume_form(&mut back("/orders?x=1")).await.is_none(), "sent twice");

    drop(form);
    let form = gate.session.resume_form(&mut back("/orders?x=1")).await.expect("it was not sent");
    assert!(form.forget()[0].to_str().unwrap().contains("Max-Age=0"));
    assert!(gate.session.resume_form(&mut back("/orders?x=1")).await.is_none(), "it was sent");
}

#[tokio::test]
async fn a_posted_form_that_may_have_arrived_is_not_sent_again() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;
    let url = gate.refuse(&browser, post(&browser)).await.url().clone();
    gate.log_in_at(&mut browser, url.to_str().unwrap(), strong()).await;
    let back = || browser.get("/orders?x=1").body(()).unwrap().into_parts().0;
    let form = gate.session.resume_form(&mut back()).await.expect("the form");

    form.arrival().set(true);
    drop(form);

    assert!(gate.session.resume_form(&mut back()).await.is_none());
}

#[tokio::test]
async fn a_posted_form_comes_from_the_page_that_has_posted_it() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.csrf = Csrf::Off;
    });
    for (origin, site) in [
        (Some("https://www.example.com"), "same-origin"),
        (Some("https://evil.example"), "same-site"),
        (None, "none"),
    ] {
        let mut browser = gate.alice_by_password().await;
        let mut posted = browser
            .request(Method::POST, "/orders")
            .header("sec-fetch-mode", "navigate")
            .header("sec-fetch-site", site);
        if let Some(origin) = origin {
            posted = posted.header("origin", origin).header("referer", format!("{origin}/page"));
        }
        let url = gate.refuse(&browser, posted).await.url().clone();
        gate.log_in_at(&mut browser, url.to_str().unwrap(), strong()).await;

        let back = browser.get("/orders").header("sec-fetch-site", "cross-site");
        let back = back.header("referer", "https://auth.example.com/");
        let mut head = back.body(()).unwrap().into_parts().0;
        gate.session.resume_form(&mut head).await.expect("the form");

        let field = |name| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(field("origin").as_deref(), origin);
        assert_eq!(field("referer"), origin.map(|origin| format!("{origin}/page")));
        assert_eq!(head.headers.get_all("sec-fetch-site").iter().collect::<Vec<_>>(), [site]);
    }
}

#[tokio::test]
async fn a_posted_form_is_sent_to_its_own_host_alone() {
    let gate = Gate::with(wide);
    let mut browser = gate.alice_by_password().await;
    let at = |browser: &Browser, host: &str| {
        let request = http::Request::get("/pay").header("host", host);
        request.header("cookie", browser.cookie()).body(()).unwrap().into_parts().0
    };
    let posted = http::Request::post("/pay")
        .header("host", "app2.localhost:8443")
        .header("origin", "https://app2.localhost:8443")
        .header("cookie", browser.cookie())
        .header("sec-fetch-mode", "navigate");
    let url = gate.refuse(&browser, posted).await.url().clone();

    let response = gate.log_in_at(&mut browser, url.to_str().unwrap(), strong()).await;

    assert_eq!(location(&response).as_str(), "https://app2.localhost:8443/pay");
    let elsewhere = gate.session.resume_form(&mut at(&browser, "localhost:8443")).await;
    assert!(elsewhere.is_none(), "the service of another host got it");
    let own = gate.session.resume_form(&mut at(&browser, "app2.localhost:8443")).await;
    assert!(own.is_some());
}

#[tokio::test]
async fn forms_of_two_tabs_are_both_sent_whatever_their_addresses() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.return_to = vec![ReturnTo::Path { path: "/home".into(), below: false }];
    });
    let mut browser = gate.alice_by_password().await;
    let paths = ["/one//x", "/two/%252F?q=\\d"];
    for path in paths {
        let posted = browser.post(path).header("sec-fetch-mode", "navigate");
        let url = gate.refuse(&browser, posted).await.url().clone();
        let response = gate.log_in_at(&mut browser, url.to_str().unwrap(), strong()).await;
        assert_eq!(location(&response).as_str(), format!("https://localhost:8443{path}"));
    }

    for path in paths {
        let mut head = browser.get(path).body(()).unwrap().into_parts().0;
        assert!(gate.session.resume_form(&mut head).await.is_some(), "{path}");
    }
}

#[tokio::test]
async fn stronger_logins_for_several_routes_in_a_minute_are_no_loop() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;

    for _ in 0..4 {
        let url = gate.refuse(&browser, browser.get("/orders")).await.url().clone();
        gate.advance(1);
        let now = gate.clock.now().as_secs();
        let claims = json!({ "acr": "gold", "auth_time": now, "iat": now });
        let response = gate.log_in_at(&mut browser, url.to_str().unwrap(), claims).await;

        assert_eq!(location(&response).path(), "/orders");
    }
}

#[tokio::test]
async fn logins_that_are_too_old_for_a_route_at_once_end_on_a_page() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;
    // Within what the clocks may differ: the login counts, and the route refuses it.
    let old = json!({ "acr": "gold", "auth_time": NOW.as_secs() - 330 });
    let url = gate.refuse(&browser, browser.get("/orders")).await.url().clone();
    for _ in 0..2 {
        let response = gate.log_in_at(&mut browser, url.to_str().unwrap(), old.clone()).await;
        assert_eq!(location(&response).path(), "/orders");
    }

    let request = browser.get(url.to_str().unwrap()).body(Body::empty()).unwrap();
    let response = gate.serve(&mut browser, request).await;

    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(text(response).await.contains("stronger or more recent"));
}

#[tokio::test]
async fn another_user_does_not_send_the_form() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;
    let url = gate.refuse(&browser, post(&browser)).await.url().clone();
    let mut claims = strong();
    claims["sub"] = "bob".into();

    gate.log_in_at(&mut browser, url.to_str().unwrap(), claims).await;

    let mut head = browser.get("/orders?x=1").body(()).unwrap().into_parts().0;
    assert!(gate.session.resume_form(&mut head).await.is_none());
}

#[tokio::test]
async fn a_login_that_is_no_stronger_ends_on_a_page_and_not_in_a_loop() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;
    let url = gate.refuse(&browser, browser.get("/orders")).await.url().clone();

    let weak = json!({ "acr": "silver", "auth_time": 1_800_000_000 });
    let response = gate.log_in_at(&mut browser, url.to_str().unwrap(), weak).await;

    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(text(response).await.contains("stronger or more recent"));
}

#[tokio::test]
async fn scripts_are_told_the_url_of_the_login() {
    let gate = Gate::with(code);
    let browser = gate.alice_by_password().await;
    let fetch = browser.request(Method::GET, "/api").header("sec-fetch-mode", "cors");

    let led = gate.refuse(&browser, fetch).await;

    assert!(
        matches!(&led, LoginRedirect::Named(url) if url.to_str().unwrap().contains("step_up="))
    );
}

#[tokio::test]
async fn demands_that_the_gateway_did_not_seal_are_ignored() {
    let gate = Gate::with(code);
    let away = gate
        .depart_unpushed(&mut Browser::default(), "/auth/login?step_up=gold&acr_values=gold")
        .await;

    assert_eq!(parameter(&away, "acr_values"), None);
}

#[tokio::test]
async fn demands_that_another_session_sealed_are_ignored() {
    let one = Gate::with(code);
    let other = Gate::with(|settings| {
        code(settings);
        settings.name = "admin".into();
    });
    let browser = one.alice_by_password().await;
    let url = one.refuse(&browser, browser.get("/orders")).await.url().clone();

    let away = other.depart_unpushed(&mut Browser::default(), url.to_str().unwrap()).await;

    assert_eq!(parameter(&away, "acr_values"), None);
}

#[tokio::test]
async fn a_stronger_login_whose_code_is_refused_ends_on_a_page_and_not_in_a_loop() {
    let gate = Gate::with(code);
    let mut browser = gate.alice_by_password().await;
    gate.advance(1);
    let url = gate.refuse(&browser, browser.get("/orders")).await.url().clone();
    let away = gate.depart(&mut browser, url.to_str().unwrap()).await;
    let back = walk(&away, "allow").await;
    gate.issuer.inject(Endpoint::Token, Fault::invalid_grant(), 1);

    let response = gate.come_back(&mut browser, &back).await;

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(text(response).await.contains("did not accept the code"));
    let rejected = r#"northgate_session_logins_total{session="web",result="rejected"}"#;
    assert_eq!(gate.counted(rejected), 1);
}

#[tokio::test]
async fn a_stronger_login_is_as_recent_as_the_configured_max_age_demands() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.authorize_parameters = vec![("max_age".into(), "60".into())];
    });
    let mut browser = Browser::default();
    gate.log_in_claiming(&mut browser, strong(), json!({})).await;
    let url = gate.refuse(&browser, browser.get("/orders")).await.url().clone();
    // The link can be passed on.
    let mut stranger = Browser::default();
    let away = gate.depart_unpushed(&mut stranger, url.to_str().unwrap()).await;
    let back = walk(&away, "allow").await;
    let old = json!({ "acr": "gold", "auth_time": NOW.as_secs() - 200 });
    gate.issuer.inject(Endpoint::Token, answer_claiming(&gate, &away, old, json!({})), 1);

    let response = gate.come_back(&mut stranger, &back).await;

    assert_eq!(parameter(&away, "max_age").as_deref(), Some("60"));
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(gate.ask(&mut stranger).await.is_err(), "it was logged in");
}
