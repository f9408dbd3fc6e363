//! The page that a login leads back to, on any host of the session.

use http::{Method, StatusCode};
use northgate::base::body::Body;
use northgate::session::{LoginRedirect, ReturnTo, Settings};
use url::Url;

use crate::code::{code, location};
use crate::issuer_pages::walk;
use crate::support::{Browser, Gate};

/// With cookies for every host below `localhost`.
pub(crate) fn wide(settings: &mut Settings) {
    code(settings);
    settings.cookie.prefix = "__Secure-".into();
    settings.cookie.domain = Some("localhost".into());
}

impl Gate {
    /// Navigates to `path` of `host` without a session, logs in, and returns where the login leads.
    async fn led_back_to(&self, host: &str, path: &str) -> Url {
        let mut browser = Browser::default();
        let head =
            http::Request::get(path).header("host", host).header("sec-fetch-mode", "navigate");
        let (head, ()) = head.body(()).unwrap().into_parts();
        let Some(LoginRedirect::Location(login)) = self.session.login_redirect(&head) else {
            panic!("a navigation is redirected")
        };
        let away = self.depart(&mut browser, login.to_str().unwrap()).await;
        let back = walk(&away, "allow").await;
        location(&self.come_back(&mut browser, &back).await)
    }
}

#[tokio::test]
async fn a_login_leads_back_to_any_page_that_the_gateway_was_asked_for() {
    let gate = Gate::with(|settings| {
        code(settings);
        settings.return_to = vec![ReturnTo::Path { path: "/home".into(), below: false }];
    });

    for path in ["/home", "/app//x", "//evil.example/", "/a/%252Fb", "/a/%2Fb", "/a?q=\\d+"] {
        let after = gate.led_back_to("localhost:8443", path).await;

        assert_eq!(after.as_str(), format!("https://localhost:8443{path}"));
    }
}

#[tokio::test]
async fn a_login_leads_back_to_the_host_that_it_began_at_if_its_cookies_reach_it() {
    let (narrow, wide) = (Gate::with(code), Gate::with(wide));

    for (gate, host, origin) in [
        (&wide, "app2.localhost:8443", "https://app2.localhost:8443"),
        (&wide, "localhost:8443", "https://localhost:8443"),
        (&wide, "evil.example", "https://localhost:8443"),
        (&narrow, "app2.localhost:8443", "https://localhost:8443"),
    ] {
        let after = gate.led_back_to(host, "/orders?x=1").await;

        assert_eq!(after.as_str(), format!("{origin}/orders?x=1"), "{host}");
    }
}

#[tokio::test]
async fn a_stranger_asks_for_no_page_of_another_host_and_seals_none() {
    let (one, other) = (
        Gate::with(wide),
        Gate::with(|settings| {
            wide(settings);
            settings.name = "admin".into();
        }),
    );
    let request =
        Browser::default().request(Method::GET, "//x").header("sec-fetch-mode", "navigate");
    let (head, ()) = request.body(()).unwrap().into_parts();
    let Some(LoginRedirect::Location(sealed)) = other.session.login_redirect(&head) else {
        panic!()
    };
    let plain = "/auth/login?return_to=https%3A%2F%2Fapp2.localhost%3A8443%2Fx";

    for login in [plain, sealed.to_str().unwrap()] {
        let mut browser = Browser::default();
        let away = one.depart(&mut browser, login).await;
        let back = walk(&away, "allow").await;

        let after = location(&one.come_back(&mut browser, &back).await);

        assert_eq!(after.as_str(), "https://localhost:8443/", "{login}");
    }
}

#[tokio::test]
async fn a_password_login_leads_back_to_a_page_that_no_stranger_may_ask_for() {
    let gate = Gate::start();
    let mut browser = Browser::default();
    let (head, ()) = browser.get("/app//x").body(()).unwrap().into_parts();
    let Some(LoginRedirect::Location(login)) = gate.session.login_redirect(&head) else { panic!() };
    let login = login.to_str().unwrap();
    let request = browser.get(login).body(Body::empty()).unwrap();
    let page = gate.serve(&mut browser, request).await;
    let page = crate::support::text(page).await;
    let (_, sealed) = login.split_once("return_to=").unwrap();
    assert!(page.contains("name=\"return_to\" value=\"") && !page.contains("/app//x"), "{page}");

    let form = browser
        .post("/auth/login")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from(format!("username=alice&password=wonderland&return_to={sealed}")));
    let response = gate.serve(&mut browser, form.unwrap()).await;

    assert_eq!(response.status(), StatusCode::SEE_OTHER);
    assert_eq!(response.headers()["location"], "https://www.example.com/app//x");
}

#[tokio::test]
async fn a_page_may_ask_for_its_own_url() {
    let gate = Gate::with(code);
    let origin = "https%3A%2F%2Flocalhost%3A8443";
    for (asked, expected) in [
        (format!("{origin}%2Forders%3Fpage%3D2"), "/orders?page=2"),
        (origin.to_owned(), "/"),
        (format!("{origin}%3Fpage%3D2"), "/?page=2"),
        (format!("{origin}1%2Forders"), "/"),
        (format!("{origin}.evil.example%2F"), "/"),
        (format!("{origin}%40evil.example%2F"), "/"),
        (format!("{origin}%2F%2Fevil.example%2F"), "/"),
        ("http%3A%2F%2Flocalhost%3A8443%2Forders".to_owned(), "/"),
    ] {
        let mut browser = Browser::default();
        let away = gate.depart(&mut browser, &format!("/auth/login?return_to={asked}")).await;
        let back = walk(&away, "allow").await;

        let response = gate.come_back(&mut browser, &back).await;

        let expected = format!("https://localhost:8443{expected}");
        assert_eq!(location(&response).as_str(), expected, "{asked}");
    }
}
