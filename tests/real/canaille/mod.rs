//! Canaille, an authorization server built on Authlib, with behaviour of its own: a wrong password is an
//! `invalid_request`, ID tokens and access tokens name several audiences, keys have no `alg`.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use reqwest::{Client, Response};
use serde_json::Value;
use url::{Url, form_urlencoded};

use super::gateway::{Echo, Gateway};
use super::oidc_provider::Jar;
use super::support::{Running, eventually, folder, free_port, repository};

#[tokio::test]
async fn tokens_of_every_kind_are_accepted_and_others_are_not() {
    let Some(world) = World::start("tokens", 300).await else { return };
    let form = [("grant_type", "client_credentials"), ("scope", "orders:read")];
    let reference = world.token(&form).await;
    let form = [
        ("grant_type", "password"),
        ("username", "alice"),
        ("password", "wonderland"),
        ("scope", "openid orders:read"),
    ];
    let signed = world.token(&form).await;

    assert!(signed.starts_with("ey") && !reference.contains('.'));
    for (path, token, status) in [
        ("/jwt", &*signed, StatusCode::OK),
        ("/opaque", &signed, StatusCode::OK),
        ("/opaque", &reference, StatusCode::OK),
        ("/opaque", "nonsense", StatusCode::UNAUTHORIZED),
        ("/jwt", &reference, StatusCode::UNAUTHORIZED),
    ] {
        let answer = world.http.get(world.at(path)).bearer_auth(token).send().await;
        assert_eq!(answer.expect("an answer").status(), status, "{path} {token}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_counted_and_no_failure_of_the_server() {
    let Some(world) = World::start("passwords", 300).await else { return };
    for (password, status) in [("wonderland", StatusCode::OK), ("wrong", StatusCode::UNAUTHORIZED)]
    {
        let basic = world.http.get(world.at("/basic")).basic_auth("alice", Some(password));
        assert_eq!(basic.send().await.expect("an answer").status(), status);
    }

    // The failure with Basic credentials counts here as well.
    for _ in 0..4 {
        let answer = world.log_in(&mut Jar::default(), "wrong").await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    }

    let answer = world.log_in(&mut Jar::default(), "wonderland").await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_session_is_refreshed_once_for_fifty_requests_and_survives_new_keys() {
    let Some(mut world) = World::start("refresh", 4).await else { return };
    let mut jar = Jar::default();
    assert_eq!(world.log_in(&mut jar, "wonderland").await.status(), StatusCode::OK);
    let asked = world.count("/oauth/token").await;

    // It is refreshed after half of its lifetime.
    let before = jar.clone();
    eventually(Duration::from_secs(10), async || {
        let crowd = join_all((0..50).map(|_| world.get("/session", &before))).await;
        for answer in &crowd {
            assert_eq!(answer.status(), StatusCode::OK);
            jar.take(answer);
        }
        if jar == before { Err("not renewed".to_owned()) } else { Ok(()) }
    })
    .await;
    assert_eq!(world.count("/oauth/token").await - asked, 1);

    // The server has lost every token, and signs with other keys.
    world.restart();
    eventually(Duration::from_secs(10), async || {
        let answer = world.get("/session", &jar).await;
        jar.take(&answer);
        match answer.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    assert_eq!(world.log_in(&mut jar, "wonderland").await.status(), StatusCode::OK);
    assert_eq!(world.get("/session", &jar).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_user_logs_in_on_its_pages_and_out_again() {
    let Some(world) = World::start("code", 300).await else { return };
    let mut jar = Jar::default();
    let away = world.get("/sso/login?return_to=%2Fapp%3Fpage%3D2", &jar).await;
    jar.take(&away);

    let back = world.walk(&location(&away)).await;
    let answer = world.get(&back[url::Position::BeforePath..], &jar).await;
    jar.take(&answer);

    assert_eq!(
        answer.status(),
        StatusCode::SEE_OTHER,
        "{}",
        answer.text().await.unwrap_or_default()
    );
    assert_eq!(answer.headers()["location"], "/app?page=2");
    let seen: Value = world.get("/app", &jar).await.json().await.expect("JSON");
    assert_eq!(seen["headers"]["x-auth-subject"], "alice");
    assert_eq!(seen["headers"]["cookie"], Value::Null);

    let logout = world.http.post(world.at("/sso/logout")).header("origin", &world.gateway.url);
    let logout = logout.header("accept", "text/html").header("cookie", jar.cookie());
    let next = location(&logout.send().await.expect("an answer"));
    assert!(next.starts_with(&format!("{}/oauth/end_session?", world.issuer)), "{next}");
    assert_eq!(world.count("/oauth/revoke").await, 2);
    assert_eq!(world.get("/app", &jar).await.status(), StatusCode::UNAUTHORIZED);
}

/// The server, the gateway that trusts it, and an upstream.
struct World {
    issuer: String,
    gateway: Gateway,
    http: Client,
    python: Command,
    server: Option<Running>,
    _echo: Echo,
}

impl World {
    /// `None` if Canaille is not installed. Its access tokens live for `lifetime` seconds.
    async fn start(suite: &str, lifetime: u64) -> Option<Self> {
        let installed = folder(&format!("canaille: {suite}"), "target/real/pip/bin")?;
        let (port, own) = (free_port(), free_port());
        let mut python = Command::new(installed.join("python"));
        python
            .arg("-B")
            .arg(repository("tests/real/pip/canaille_server.py"))
            .env("PORT", port.to_string())
            .env("ACCESS_TOKEN_TTL", lifetime.to_string())
            .env("REDIRECT_URI", format!("http://127.0.0.1:{own}/sso/callback"))
            .env("LOGOUT_URI", format!("http://127.0.0.1:{own}/"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut server = Running::start(&mut python);
        let issuer = server.first_line();
        let echo = Echo::start().await;
        let file = CONFIGURATION.replace("ISSUER", &issuer).replace("ECHO", &echo.url);
        let gateway = Gateway::start_at(own, &file).await;
        let http = Client::builder().no_proxy().pool_max_idle_per_host(0);
        let http = http.redirect(reqwest::redirect::Policy::none()).build().expect("a client");
        Some(Self { issuer, gateway, http, python, server: Some(server), _echo: echo })
    }

    fn restart(&mut self) {
        self.server = None;
        let mut server = Running::start(&mut self.python);
        assert_eq!(server.first_line(), self.issuer);
        self.server = Some(server);
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.gateway.url)
    }

    async fn get(&self, path: &str, jar: &Jar) -> Response {
        let request = self.http.get(self.at(path)).header("cookie", jar.cookie());
        request.send().await.expect("an answer")
    }

    async fn log_in(&self, jar: &mut Jar, password: &str) -> Response {
        let form = [("username", "alice"), ("password", password)];
        let request = self.http.post(self.at("/auth/login")).form(&form);
        let answer = request.header("origin", &self.gateway.url).send().await.expect("an answer");
        jar.take(&answer);
        answer
    }

    /// A token that the client `gateway` gets for `form`.
    async fn token(&self, form: &[(&str, &str)]) -> String {
        let request = self.http.post(format!("{}/oauth/token", self.issuer)).form(form);
        let request = request.basic_auth("gateway", Some("gateway-secret"));
        let tokens: Value = request.send().await.expect("an answer").json().await.expect("JSON");
        tokens["access_token"].as_str().unwrap_or_else(|| panic!("{tokens}")).to_owned()
    }

    /// The number of requests for `path` since the server started.
    async fn count(&self, path: &str) -> u64 {
        let counts = self.http.get(format!("{}/control/counts", self.issuer)).send().await;
        let counts: Value = counts.expect("an answer").json().await.expect("JSON");
        counts[path].as_u64().unwrap_or(0)
    }

    /// Acts as a user on the server's pages, from `away` until it redirects back.
    async fn walk(&self, away: &str) -> Url {
        let (mut jar, mut form) = (Jar::default(), None);
        let mut next = Url::parse(away).expect("an address");
        for _ in 0..12 {
            let request = match form.take() {
                Some(form) => self
                    .http
                    .post(next.clone())
                    .body(form)
                    .header("content-type", "application/x-www-form-urlencoded"),
                None => self.http.get(next.clone()),
            };
            let answer = request.header("cookie", jar.cookie()).send().await.expect("an answer");
            jar.take(&answer);
            if answer.status().is_redirection() {
                next = next.join(&location(&answer)).expect("an address");
                if next.path().ends_with("/callback") {
                    return next;
                }
                continue;
            }
            form = Some(filled(&answer.text().await.expect("a page")));
        }
        panic!("the server did not redirect back");
    }
}

/// The form of a page, as alice fills it in.
fn filled(page: &str) -> String {
    let typed = HashMap::from([("login", "alice"), ("password", "wonderland")]);
    let mut form = form_urlencoded::Serializer::new(String::new());
    for input in page.split("<input").skip(1).filter_map(|rest| rest.split('>').next()) {
        let attribute = |name: &str| input.split(&format!(" {name}=\"")).nth(1)?.split('"').next();
        if let Some(name) = attribute("name") {
            let value = typed.get(name).copied().or_else(|| attribute("value"));
            form.append_pair(name, value.unwrap_or_default());
        }
    }
    form.finish()
}

fn location(answer: &Response) -> String {
    answer.headers()["location"].to_str().expect("text").to_owned()
}

const CONFIGURATION: &str = r#"
listen: OWN
issuers:
  main:
    issuer: ISSUER
    audience: [gateway, web]
    # What it signs with unless it is told otherwise.
    algorithms: [RS512]
    client: { id: gateway, secret: gateway-secret }
    # Without `openid` its tokens have no `sub`.
    password_grant: { scopes: [openid, "orders:read"] }
sessions:
  web:
    issuer: main
    flow: password
    client: { id: web, secret: web-secret }
    public_url: GATEWAY
    scopes: [openid, "orders:read"]
    cookie: { prefix: "", secure: false }
  sso:
    issuer: main
    flow: code
    client: { id: web, secret: web-secret }
    public_url: GATEWAY
    scopes: [openid, "orders:read"]
    cookie: { prefix: "", secure: false }
    paths: { login: /sso/login, callback: /sso/callback, logout: /sso/logout, status: /sso/session, refresh: /sso/refresh, back_channel_logout: /sso/bye }
upstreams:
  echo: { targets: [ECHO] }
routes:
  - { id: jwt, path: /jwt, upstream: echo, auth: { jwt: main } }
  - { id: opaque, path: /opaque, upstream: echo, auth: { introspection: main, scopes: ["orders:read"] } }
  - { id: basic, path: /basic, upstream: echo, auth: { basic: main } }
  - { id: session, path: /session, upstream: echo, auth: { session: web } }
  - { id: sso, path: /app, upstream: echo, auth: { session: sso } }
"#;
