//! Logins and logouts by scripts, which cannot follow a redirect to the issuer.

use http::header::{LOCATION, WWW_AUTHENTICATE};
use http::{Method, Response, StatusCode};
use northgate::base::body::Body;
use serde_json::json;

use crate::code::code;
use crate::support::{Browser, Gate, json as content};

const HX_REDIRECT: &str = "hx-redirect";
const HTMX: (&str, &str) = ("hx-request", "true");
const TURBO: (&str, &str) = ("x-turbo-request-id", "1");
const FETCH: (&str, &str) = ("sec-fetch-mode", "cors");

fn names_no_location(response: &Response<Body>) -> bool {
    response.headers().get(LOCATION).is_none()
}

#[tokio::test]
async fn a_script_that_logs_out_is_told_where_the_issuer_ends_its_session() {
    for script in [HTMX, TURBO, FETCH] {
        let gate = Gate::with(code);
        let mut browser = Browser::default();
        gate.log_in_with(&mut browser, json!({})).await;
        let request = browser.post("/auth/logout").header(script.0, script.1);
        let request = request.header("accept", "text/html").body(Body::empty()).unwrap();

        let response = gate.serve(&mut browser, request).await;

        assert_eq!(response.status(), StatusCode::OK, "{script:?}");
        assert!(names_no_location(&response), "{script:?}");
        let end = format!("{}/", gate.issuer.url());
        if script == HTMX {
            let to = response.headers()[HX_REDIRECT].to_str().unwrap();
            assert!(to.starts_with(&end) && to.contains("id_token_hint"), "{to}");
            let text = crate::support::text(response).await;
            assert_eq!(text, "", "htmx would show it");
        } else {
            let told = content(response).await;
            assert!(told["end_session"].as_str().unwrap().starts_with(&end), "{told}");
        }
        assert_eq!(browser, Browser::default(), "{script:?}");
    }
}

#[tokio::test]
async fn a_script_that_asks_for_the_login_is_told_to_navigate_there() {
    let gate = Gate::with(code);
    let login = "/auth/login?return_to=%2Forders";
    for script in [HTMX, TURBO, FETCH] {
        let mut browser = Browser::default();
        let request = browser.request(Method::GET, login).header(script.0, script.1);
        let request = request.header("accept", "text/html").body(Body::empty()).unwrap();

        let response = gate.serve(&mut browser, request).await;

        assert!(names_no_location(&response), "{script:?}");
        assert_eq!(browser, Browser::default(), "no login has begun: {script:?}");
        if script == HTMX {
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()[HX_REDIRECT], login);
        } else {
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{script:?}");
            assert!(response.headers().contains_key(WWW_AUTHENTICATE), "{script:?}");
            assert_eq!(content(response).await["login"], login, "{script:?}");
        }
    }
}

#[tokio::test]
async fn a_password_that_htmx_posts_leads_to_the_wanted_page() {
    let gate = Gate::start();
    let mut browser = Browser::default();
    let form = "username=alice&password=wonderland";
    let request = browser
        .post("/auth/login?return_to=%2Forders")
        .header(HTMX.0, HTMX.1)
        .header("content-type", "application/x-www-form-urlencoded");

    let response = gate.serve(&mut browser, request.body(Body::from(form)).unwrap()).await;

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[HX_REDIRECT], "/orders");
    assert!(gate.ask(&mut browser).await.is_ok());
}
