//! A browser without a screen, and the code flow walked with it.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use serde_json::Value;
use url::Url;

use crate::support::Issuer;

/// A browser: it keeps one cookie, and follows redirects as long as they stay at the issuer.
pub(crate) struct Browser<'a> {
    issuer: &'a Issuer,
    pub(crate) cookie: Option<String>,
}

pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) location: Option<String>,
    text: String,
}

impl<'a> Browser<'a> {
    pub(crate) fn new(issuer: &'a Issuer) -> Self {
        Self { issuer, cookie: None }
    }

    pub(crate) async fn open(&mut self, path: &str) -> Page {
        let mut page = self.send(self.issuer.http.get(self.issuer.at(path))).await;
        while let Some(path) = page.location.clone().filter(|to| to.starts_with('/')) {
            page = self.send(self.issuer.http.get(self.issuer.at(&path))).await;
        }
        page
    }

    pub(crate) async fn post(&mut self, path: &str, form: &[(&str, &str)]) -> Page {
        let page = self.send(self.issuer.http.post(self.issuer.at(path)).form(form)).await;
        match &page.location {
            Some(path) if path.starts_with('/') => self.open(&path.clone()).await,
            _ => page,
        }
    }

    pub(crate) async fn log_in(&mut self, page: &Page, username: &str, password: &str) -> Page {
        let request = page.request();
        let form = [("request", &*request), ("username", username), ("password", password)];
        self.post("/authorize/login", &form).await
    }

    pub(crate) async fn decide(&mut self, page: &Page, decision: &str, scopes: &[&str]) -> Page {
        let request = page.request();
        let boxes: Vec<_> = scopes.iter().map(|scope| format!("scope {scope}")).collect();
        let mut form = vec![("request", &*request), ("decision", decision)];
        form.extend(boxes.iter().map(|name| (&**name, "on")));
        self.post("/authorize/consent", &form).await
    }

    async fn send(&mut self, mut request: reqwest::RequestBuilder) -> Page {
        if let Some(cookie) = &self.cookie {
            request = request.header(COOKIE, cookie);
        }
        let answer = request.send().await.expect("an answer");
        let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
        if let Some(cookie) = answer.headers().get(SET_COOKIE).map(text) {
            self.cookie = cookie.split(';').next().map(str::to_owned);
        }
        Page {
            status: answer.status(),
            location: answer.headers().get(LOCATION).map(text),
            text: answer.text().await.expect("a page"),
        }
    }
}

impl Page {
    pub(crate) fn html(&self) -> &str {
        &self.text
    }

    /// What the page's form calls the request.
    fn request(&self) -> String {
        between(&self.text, "name=\"request\" value=\"", "\"")
    }

    /// What the client is told.
    pub(crate) fn back(&self) -> HashMap<String, String> {
        assert_eq!(self.status, StatusCode::SEE_OTHER, "{}", self.text);
        let location = Url::parse(self.location.as_ref().expect("a location")).expect("a URL");
        assert!(location.as_str().starts_with("https://localhost:8443/auth/callback?"));
        location.query_pairs().into_owned().collect()
    }
}

/// A request of `gateway-web`, but for what is `changed`; an empty value leaves a parameter out.
pub(crate) fn authorize(changed: &[(&str, &str)]) -> String {
    let usual = [
        ("response_type", "code"),
        ("client_id", "gateway-web"),
        ("redirect_uri", "https://localhost:8443/auth/callback"),
        ("scope", "openid offline_access orders:read"),
        ("state", "a state"),
        ("nonce", "a nonce"),
        ("code_challenge", CHALLENGE),
        ("code_challenge_method", "S256"),
    ];
    let kept = usual.into_iter().filter(|(name, _)| changed.iter().all(|(other, _)| other != name));
    let url = Url::parse_with_params("http://x/", kept.chain(changed.iter().copied()));
    format!("/authorize?{}", url.expect("a URL").query().expect("a query"))
}

/// A code for everything that [`authorize`] asks for.
pub(crate) async fn code(issuer: &Issuer) -> String {
    let mut browser = Browser::new(issuer);
    let page = browser.open(&authorize(&[])).await;
    let page = browser.log_in(&page, "alice", "wonderland").await;
    let back = browser.decide(&page, "allow", &["offline_access", "orders:read"]).await.back();
    back["code"].clone()
}

/// Redeems a code as `gateway-web`, but for what is `changed`.
pub(crate) async fn redeem(
    issuer: &Issuer,
    code: &str,
    changed: &[(&str, &str)],
) -> (StatusCode, Value) {
    let usual = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("redirect_uri", "https://localhost:8443/auth/callback"),
        ("code_verifier", VERIFIER),
    ];
    let kept = usual.into_iter().filter(|(name, _)| changed.iter().all(|(other, _)| other != name));
    let form: Vec<_> = kept.chain(changed.iter().copied()).collect();
    let client = changed.iter().find(|(name, _)| *name == "client").map_or("gateway-web", |c| c.1);
    issuer.token(client, &form).await
}

pub(crate) fn claims(token: &Value) -> Value {
    let part = token.as_str().expect("a token").split('.').nth(1).expect("claims");
    let json = URL_SAFE_NO_PAD.decode(part).expect("base64url");
    serde_json::from_slice(&json).expect("JSON")
}

pub(crate) fn between(text: &str, before: &str, after: &str) -> String {
    let (_, rest) = text.split_once(before).expect("the beginning");
    rest.split_once(after).expect("the end").0.to_owned()
}

/// RFC 7636, appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
