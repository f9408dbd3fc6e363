//! Clients register, by themselves or by a form (RFC 7591).

use http::StatusCode;
use serde_json::{Value, json};

use crate::support::start;

#[tokio::test]
async fn a_registered_program_gets_tokens_with_its_id_and_secret() {
    let issuer = start();
    let metadata = json!({
        "client_name": "A robot",
        "grant_types": ["client_credentials"],
        "scope": "orders:read",
    });

    let answer = issuer.http.post(issuer.at("/register")).json(&metadata).send().await;

    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(answer.headers()["cache-control"], "no-store");
    let client: Value = answer.json().await.expect("JSON");
    assert_eq!(client["client_secret_expires_at"], 0);
    let text = |name: &str| client[name].as_str().expect("text").to_owned();
    let request = issuer.http.post(issuer.at("/token"));
    let request = request.basic_auth(text("client_id"), Some(text("client_secret")));
    let tokens = request.form(&[("grant_type", "client_credentials")]).send().await;
    assert_eq!(tokens.expect("an answer").status(), StatusCode::OK);
}

#[tokio::test]
async fn refuses_redirect_uris_that_could_lead_anywhere() {
    let issuer = start();
    let uris = [
        "http://shop.example.com/callback",
        "https://shop.example.com/callback#fragment",
        "javascript:alert(1)",
        "/callback",
    ];

    for uri in uris {
        let metadata = json!({ "redirect_uris": [uri] });
        let answer = issuer.http.post(issuer.at("/register")).json(&metadata).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"], "invalid_redirect_uri", "{uri}");
    }
}

#[tokio::test]
async fn refuses_metadata_it_does_not_understand() {
    let issuer = start();
    let cases = [
        json!([]),
        json!({ "grant_types": ["implicit"], "redirect_uris": ["https://a.example.com/"] }),
        json!({ "grant_types": "client_credentials" }),
        json!({ "grant_types": ["client_credentials"], "scope": "admin" }),
        json!({ "grant_types": ["client_credentials"], "token_endpoint_auth_method": "none" }),
        json!({ "grant_types": ["client_credentials"], "token_endpoint_auth_method": "private_key_jwt" }),
    ];

    for metadata in cases {
        let answer = issuer.http.post(issuer.at("/register")).json(&metadata).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{metadata}");
        let body: Value = answer.json().await.expect("JSON");
        assert_eq!(body["error"], "invalid_client_metadata", "{metadata}");
    }
}

#[tokio::test]
async fn the_form_answers_with_id_and_secret() {
    let issuer = start();
    let form = [("client_name", "<b>Mine</b>"), ("scope", "orders:read")];

    let answer = issuer.http.post(issuer.at("/register")).form(&form).send().await;

    let answer = answer.expect("an answer");
    assert_eq!(answer.status(), StatusCode::CREATED);
    let page = answer.text().await.expect("a page");
    assert!(page.contains("Client secret"));
    assert!(page.contains("&#60;b&#62;Mine&#60;/b&#62;") && !page.contains("<b>Mine"));
}

#[tokio::test]
async fn another_sites_page_cannot_use_the_forms() {
    let issuer = start();

    for path in ["/register", "/rotate"] {
        let request = issuer.http.post(issuer.at(path)).header("sec-fetch-site", "cross-site");
        let answer = request.form(&[("client_name", "Theirs")]).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    }
}
