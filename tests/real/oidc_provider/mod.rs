//! A certified authorization server that shares no code with us: panva's oidc-provider.

mod sessions;
mod tokens;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::Stdio;

use http::StatusCode;
use reqwest::{Client, Response};
use serde_json::Value;
use url::Url;

use super::gateway::{Echo, Gateway};
use super::npm::node;
use super::support::{Running, free_port};

/// The server, the gateway that trusts it, and an upstream.
pub(crate) struct World {
    provider: Provider,
    pub(crate) gateway: Gateway,
    _echo: Echo,
    http: Client,
    secrets: RefCell<Vec<String>>,
}

impl World {
    /// `None` if oidc-provider is not installed.
    pub(crate) async fn start(
        suite: &str,
        variables: &[(&'static str, &'static str)],
    ) -> Option<Self> {
        let own = free_port();
        let callback = format!("http://127.0.0.1:{own}/sso/callback");
        let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let variables = variables.chain([("REDIRECT_URIS", callback)]).collect();
        let provider = Provider::start(suite, variables)?;
        let echo = Echo::start().await;
        let file = CONFIGURATION.replace("ISSUER", &provider.issuer).replace("ECHO", &echo.url);
        let gateway = Gateway::start_at(own, &file).await;
        let secrets = ["wonderland", "wonderlamp", "gateway-secret", "web-secret"];
        let mut secrets = secrets.map(str::to_owned).to_vec();
        secrets.push(base64url("alice:wonderland"));
        let secrets = RefCell::new(secrets);
        Some(Self { http: provider.http.clone(), provider, gateway, _echo: echo, secrets })
    }

    fn at(&self, path: &str) -> String {
        format!("{}{path}", self.gateway.url)
    }

    /// A token of the client `machine` for itself.
    async fn machine_token(&self, resource: &str) -> String {
        let form = [
            ("grant_type", "client_credentials"),
            ("scope", "orders:read"),
            ("resource", resource),
        ];
        let tokens: Value =
            self.provider.post("/token", "machine", &form).await.json().await.expect("JSON");
        let token = tokens["access_token"].as_str().unwrap_or_else(|| panic!("{tokens}"));
        self.secrets.borrow_mut().push(token.to_owned());
        token.to_owned()
    }

    async fn bearer(&self, path: &str, token: &str) -> Response {
        self.http.get(self.at(path)).bearer_auth(token).send().await.expect("an answer")
    }

    async fn with_cookies(&self, path: &str, cookies: &str) -> Response {
        self.http.get(self.at(path)).header("cookie", cookies).send().await.expect("an answer")
    }

    /// Opens the login at the issuer, and returns where it redirects to.
    async fn depart(&self, jar: &mut Jar, path: &str) -> String {
        let answer = self.with_cookies(path, &jar.cookie()).await;
        assert_eq!(answer.status(), StatusCode::SEE_OTHER);
        self.remember(jar, &answer);
        answer.headers()["location"].to_str().expect("text").to_owned()
    }

    /// Comes back from the issuer.
    async fn come_back(&self, jar: &mut Jar, back: &Url) -> Response {
        for (name, value) in back.query_pairs().filter(|(name, _)| name == "code") {
            assert!(!value.is_empty(), "{name}");
            self.secrets.borrow_mut().push(value.into_owned());
        }
        let answer = self.with_cookies(&back[url::Position::BeforePath..], &jar.cookie()).await;
        self.remember(jar, &answer);
        answer
    }

    async fn log_in_with(&self, jar: &mut Jar) {
        let cookies = self.log_in().await;
        let pairs = cookies.split("; ").filter_map(|pair| pair.split_once('='));
        jar.0.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    fn remember(&self, jar: &mut Jar, answer: &Response) {
        jar.take(answer);
        self.secrets.borrow_mut().extend(jar.0.values().cloned());
    }

    /// Alice's cookies.
    async fn log_in(&self) -> String {
        let form = [("username", "alice"), ("password", "wonderland")];
        let login = self.http.post(self.at("/auth/login")).form(&form);
        let answer = login.header("origin", &self.gateway.url).send().await.expect("an answer");
        let (status, cookies) = (answer.status(), cookies_of(&answer));
        assert!(!cookies.is_empty(), "{status} {}", answer.text().await.unwrap_or_default());
        let values = cookies.split("; ").filter_map(|cookie| cookie.split_once('='));
        self.secrets.borrow_mut().extend(values.map(|(_, value)| value.to_owned()));
        cookies
    }
}

/// After every test: the log contains no token, no cookie, no password and no secret.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let log = self.gateway.log();
        assert!(log.contains("request_id") && log.contains(r#""level":"trace""#), "no log: {log}");
        for secret in self.secrets.borrow().iter() {
            let line = log.lines().find(|line| line.contains(secret.as_str()));
            assert_eq!(line, None, "{secret} is in the log");
        }
    }
}

/// oidc-provider, running.
struct Provider {
    issuer: String,
    http: Client,
    variables: Vec<(&'static str, String)>,
    process: Option<Running>,
    port: u16,
    suite: String,
}

impl Provider {
    fn start(suite: &str, variables: Vec<(&'static str, String)>) -> Option<Self> {
        let suite = format!("oidc-provider: {suite}");
        node(&suite, SCRIPT)?;
        // A new connection each time: those to a server that was stopped are dead.
        let http = Client::builder().no_proxy().pool_max_idle_per_host(0);
        let http = http.redirect(reqwest::redirect::Policy::none());
        let mut provider = Self {
            issuer: String::new(),
            http: http.build().expect("a client"),
            variables,
            process: None,
            port: free_port(),
            suite,
        };
        provider.restart();
        Some(provider)
    }

    /// Starts it, or starts it again, with new keys and no memory.
    fn restart(&mut self) {
        self.stop();
        let mut node = node(&self.suite, SCRIPT).expect("it is installed");
        node.env("PORT", self.port.to_string()).envs(self.variables.clone());
        let mut process = Running::start(node.stdout(Stdio::piped()).stderr(Stdio::null()));
        self.issuer = process.first_line();
        self.process = Some(process);
    }

    fn stop(&mut self) {
        self.process = None;
    }

    /// The number of requests for `path` since its start.
    async fn count(&self, path: &str) -> u64 {
        let counts = self.http.get(format!("{}/control/counts", self.issuer)).send().await;
        let counts: Value = counts.expect("an answer").json().await.expect("JSON");
        counts[path].as_u64().unwrap_or(0)
    }

    async fn order(&self, what: &str, body: Value) {
        let url = format!("{}/control/{what}", self.issuer);
        let answer = self.http.post(url).body(body.to_string()).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
    }

    async fn post(&self, path: &str, client: &str, form: &[(&str, &str)]) -> Response {
        let request = self.http.post(format!("{}{path}", self.issuer)).form(form);
        let secret = format!("{client}-secret");
        request.basic_auth(client, Some(secret)).send().await.expect("an answer")
    }
}

/// Acts as a user on the server's pages, from `away` until it redirects back.
async fn walk(http: &Client, away: &str) -> Url {
    let mut jar = Jar::default();
    let mut next = Url::parse(away).expect("an address");
    let mut form: Option<Vec<(&str, &str)>> = None;
    for _ in 0..12 {
        let request = match form.take() {
            Some(form) => http.post(next.clone()).form(&form),
            None => http.get(next.clone()),
        };
        let answer = request.header("cookie", jar.cookie()).send().await.expect("an answer");
        jar.take(&answer);
        if let Some(location) = answer.headers().get("location") {
            next = next.join(location.to_str().expect("text")).expect("an address");
            if next.path().ends_with("/callback") {
                return next;
            }
            continue;
        }
        let (status, page) = (answer.status(), answer.text().await.expect("a page"));
        assert_eq!(status, StatusCode::OK, "{page}");
        let action = page.split("action=\"").nth(1).and_then(|rest| rest.split('"').next());
        next = next.join(action.unwrap_or_else(|| panic!("{page}"))).expect("an address");
        form = Some(if page.contains("name=\"login\"") {
            vec![("prompt", "login"), ("login", "alice"), ("password", "wonderland")]
        } else {
            vec![("prompt", "consent")]
        });
    }
    panic!("the server did not redirect back");
}

/// A browser's cookies.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Jar(BTreeMap<String, String>);

impl Jar {
    pub(crate) fn take(&mut self, answer: &Response) {
        for field in answer.headers().get_all("set-cookie") {
            let field = field.to_str().expect("text");
            let pair = field.split(';').next().and_then(|pair| pair.split_once('='));
            let (name, value) = pair.expect("a cookie");
            if field.contains("Max-Age=0") || value.is_empty() {
                self.0.remove(name);
            } else {
                self.0.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    pub(crate) fn cookie(&self) -> String {
        let pairs = self.0.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join("; ")
    }
}

/// Returns the `Cookie` field of a browser after `answer`.
fn cookies_of(answer: &Response) -> String {
    let set = answer.headers().get_all("set-cookie").iter();
    let pairs = set.filter_map(|cookie| cookie.to_str().ok()?.split(';').next());
    pairs.collect::<Vec<_>>().join("; ")
}

fn base64url(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
}

const SCRIPT: &str = "oidc-provider.mjs";

const CONFIGURATION: &str = r#"
listen: OWN
issuers:
  main:
    issuer: ISSUER
    audience: ["https://api.test/jwt", "https://api.test/es256", "https://api.test/opaque"]
    client: { id: gateway, secret: gateway-secret }
    introspection: { cache: 1s, negative_cache: 1s }
    password_grant: { scopes: ["orders:read"], resource: "https://api.test/jwt" }
  patient:
    issuer: ISSUER
    audience: "https://api.test/opaque"
    client: { id: gateway, secret: gateway-secret }
    introspection: { cache: 5m }
sessions:
  web:
    issuer: main
    flow: password
    client: { id: web, secret: web-secret }
    public_url: GATEWAY
    scopes: [openid, offline_access, "orders:read"]
    resource: "https://api.test/jwt"
    cookie: { prefix: "", secure: false }
  brief:
    issuer: main
    flow: password
    client: { id: web, secret: web-secret }
    public_url: GATEWAY
    scopes: [openid, "orders:read"]
    resource: "https://api.test/jwt"
    idle_timeout: 3s
    cookie: { prefix: "", secure: false }
    paths: { login: /brief/login, callback: /brief/callback, logout: /brief/logout, status: /brief/session, refresh: /brief/refresh, back_channel_logout: /brief/bye }
  sso:
    issuer: main
    flow: code
    client: { id: web, secret: web-secret }
    public_url: GATEWAY
    scopes: [openid, offline_access, "orders:read"]
    resource: "https://api.test/jwt"
    cookie: { prefix: "", secure: false }
    paths: { login: /sso/login, callback: /sso/callback, logout: /sso/logout, status: /sso/session, refresh: /sso/refresh, back_channel_logout: /sso/bye }
upstreams:
  echo: { targets: [ECHO] }
routes:
  - { id: jwt, path: /jwt, upstream: echo, auth: { jwt: main, scopes: ["orders:read"] } }
  - { id: jwt-only, path: /jwt-only, upstream: echo, auth: { jwt: main, audience: "https://api.test/jwt" } }
  - { id: opaque, path: /opaque, upstream: echo, auth: { introspection: main, scopes: ["orders:read"] } }
  - { id: cached, path: /cached, upstream: echo, auth: { introspection: patient } }
  - { id: basic, path: /basic, upstream: echo, auth: { basic: main } }
  - { id: session, path: /session, upstream: echo, auth: { session: web } }
  - { id: brief, path: /brief, upstream: echo, auth: { session: brief } }
  - { id: sso, path: /app, upstream: echo, auth: { session: sso } }
  - { id: strong, path: /strong, upstream: echo, auth: { session: sso, acr: gold, max_age: 5m } }
"#;
