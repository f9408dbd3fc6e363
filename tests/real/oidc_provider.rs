//! A certified authorization server that shares no code with us: panva's oidc-provider.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use northgate::base::clock::Clock;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use url::Url;

use super::gateway::{Echo, Gateway};
use super::npm::node;
use super::support::{Running, eventually, free_port};

#[tokio::test]
async fn fifty_requests_with_one_token_cost_one_introspection() {
    let Some(world) = World::start("introspection", &[]).await else { return };
    let token = world.machine_token("https://api.test/opaque").await;

    let answers = join_all((0..50).map(|_| world.bearer("/opaque", &token))).await;

    assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(world.provider.count("/token/introspection").await, 1);
}

#[tokio::test]
async fn a_signed_and_a_reference_token_reach_the_service() {
    let Some(world) = World::start("tokens", &[]).await else { return };

    for (path, resource) in [
        ("/jwt", "https://api.test/jwt"),
        ("/jwt", "https://api.test/es256"),
        ("/opaque", "https://api.test/opaque"),
    ] {
        let token = world.machine_token(resource).await;
        let answer = world.bearer(path, &token).await;
        assert_eq!(answer.status(), StatusCode::OK, "{resource}");
        let seen: Value = answer.json().await.expect("JSON");
        assert_eq!(seen["headers"]["x-auth-client"], "machine", "{resource}");
        assert_eq!(seen["headers"]["authorization"], format!("Bearer {token}"), "{resource}");
    }
}

#[tokio::test]
async fn a_token_for_somebody_else_is_refused() {
    let Some(world) = World::start("audience", &[]).await else { return };

    let narrow =
        world.bearer("/jwt-only", &world.machine_token("https://api.test/es256").await).await;
    let spoiled = world.machine_token("https://api.test/jwt").await.replace('.', ".e");
    let spoiled = world.bearer("/jwt", &spoiled).await;
    let unknown = world.bearer("/opaque", "no-such-token").await;

    for answer in [narrow, spoiled, unknown] {
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
        let challenge = answer.headers()["www-authenticate"].to_str().expect("text").to_owned();
        assert!(challenge.contains(r#"error="invalid_token""#), "{challenge}");
    }
}

#[tokio::test]
async fn a_revoked_token_ends_within_the_caches_bound() {
    let Some(world) = World::start("revocation", &[]).await else { return };
    let token = world.machine_token("https://api.test/opaque").await;
    assert_eq!(world.bearer("/opaque", &token).await.status(), StatusCode::OK);

    world.provider.post("/token/revocation", "machine", &[("token", &token)]).await;

    eventually(Duration::from_secs(5), async || {
        match world.bearer("/opaque", &token).await.status() {
            StatusCode::UNAUTHORIZED => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_key_rotation_costs_nobody_a_401() {
    let Some(mut world) = World::start("key rotation", &[]).await else { return };
    let old = world.machine_token("https://api.test/jwt").await;
    assert_eq!(world.bearer("/jwt", &old).await.status(), StatusCode::OK);

    // It makes new keys whenever it starts.
    world.provider.restart();
    let new = world.machine_token("https://api.test/jwt").await;

    assert_eq!(world.bearer("/jwt", &new).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_is_one_fetch() {
    let Some(world) = World::start("unknown keys", &[]).await else { return };
    let token = world.machine_token("https://api.test/jwt").await;
    assert_eq!(world.bearer("/jwt", &token).await.status(), StatusCode::OK);
    let before = world.provider.count("/jwks").await;
    let (_, rest) = token.split_once('.').expect("a JWT");

    let forged = (0..50).map(|number| {
        let header = json!({ "alg": "RS256", "typ": "at+jwt", "kid": format!("forged-{number}") });
        let token = format!("{}.{rest}", base64url(&header.to_string()));
        let world = &world;
        async move { world.bearer("/jwt", &token).await.status() }
    });
    let answers = join_all(forged).await;

    assert!(answers.iter().all(|status| *status == StatusCode::UNAUTHORIZED), "{answers:?}");
    let fetched = world.provider.count("/jwks").await - before;
    assert!(fetched <= 1, "{fetched} fetches");
}

#[tokio::test]
async fn an_absent_server_is_503_and_what_is_known_goes_on() {
    let Some(mut world) = World::start("absence", &[]).await else { return };
    let (jwt, opaque) = (
        world.machine_token("https://api.test/jwt").await,
        world.machine_token("https://api.test/opaque").await,
    );
    let never_seen = world.machine_token("https://api.test/opaque").await;
    assert_eq!(world.bearer("/jwt", &jwt).await.status(), StatusCode::OK);
    assert_eq!(world.bearer("/cached", &opaque).await.status(), StatusCode::OK);

    world.provider.stop();

    assert_eq!(world.bearer("/jwt", &jwt).await.status(), StatusCode::OK);
    assert_eq!(world.bearer("/cached", &opaque).await.status(), StatusCode::OK);
    let answer = world.bearer("/cached", &never_seen).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn basic_credentials_become_a_token_once() {
    let Some(world) = World::start("Basic", &[]).await else { return };
    let asked = world.provider.count("/token").await;

    let with = |password| world.http.get(world.at("/basic")).basic_auth("alice", Some(password));
    let answers = join_all((0..20).map(|_| with("wonderland").send())).await;
    let wrong = with("wonderlamp").send().await.expect("an answer");

    for answer in answers {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        let seen: Value = answer.json().await.expect("JSON");
        let bearer = seen["headers"]["authorization"].as_str().expect("a token");
        assert!(bearer.starts_with("Bearer ey"), "the service sees no token");
        assert_eq!(seen["headers"]["x-auth-subject"], "alice");
    }
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(world.provider.count("/token").await - asked, 2);
}

#[tokio::test]
async fn twenty_requests_share_one_refresh_and_the_session_lives_on() {
    let Some(world) = World::start("refresh", &[("ACCESS_TOKEN_TTL", "2")]).await else { return };
    let cookies = world.log_in().await;
    let clock = Clock::system();
    let ended = clock.now().plus_secs(2);
    eventually(Duration::from_secs(5), async || {
        if clock.now() > ended { Ok(()) } else { Err("the token is still good".to_owned()) }
    })
    .await;
    let asked = world.provider.count("/token").await;

    let answers = join_all((0..20).map(|_| world.with_cookies("/session", &cookies))).await;

    assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(world.provider.count("/token").await - asked, 1);
    let renewed = cookies_of(&answers[0]);
    assert!(!renewed.is_empty(), "the refreshed session has no new cookie");

    // Had a second request redeemed the old refresh token, the server would have ended the family.
    assert_eq!(world.with_cookies("/session", &renewed).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn logout_ends_the_session_here_and_there() {
    let Some(world) = World::start("logout", &[]).await else { return };
    let cookies = world.log_in().await;

    let answer = world
        .http
        .post(world.at("/auth/logout"))
        .header("origin", &world.gateway.url)
        .header("cookie", &cookies)
        .send()
        .await
        .expect("an answer");

    assert!(
        answer.status().is_redirection() || answer.status().is_success(),
        "{}",
        answer.status()
    );
    eventually(Duration::from_secs(5), async || {
        match world.provider.count("/token/revocation").await {
            0 => Err("nothing was revoked".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn however_often_a_crowd_comes_with_an_expired_token_it_is_one_redeem() {
    let Some(world) = World::start("refresh races", &[("ACCESS_TOKEN_TTL", "4")]).await else {
        return;
    };
    // NORTHGATE_ROUNDS=1000 for a long night.
    let rounds = std::env::var_os("NORTHGATE_ROUNDS").and_then(|text| text.to_str()?.parse().ok());
    let mut jar = Jar::default();
    world.log_in_with(&mut jar).await;
    for round in 0..rounds.unwrap_or(8) {
        let (clock, before) = (Clock::system(), jar.clone());
        let due = clock.now().plus_secs(3);
        eventually(Duration::from_secs(6), async || {
            if clock.now() > due { Ok(()) } else { Err("the token is still good".to_owned()) }
        })
        .await;
        let asked = world.provider.count("/token").await;

        let cookie = jar.cookie();
        let crowd = join_all((0..50).map(|_| world.with_cookies("/session", &cookie))).await;

        for answer in &crowd {
            assert_eq!(answer.status(), StatusCode::OK, "round {round}");
            jar.take(answer);
        }
        assert_eq!(world.provider.count("/token").await - asked, 1, "round {round}");
        assert_ne!(jar, before, "round {round}: no new cookie");
        // Whoever was on the way with the old cookie, too.
        let straggler = world.with_cookies("/session", &before.cookie()).await;
        assert_eq!(straggler.status(), StatusCode::OK, "round {round}");
    }
}

#[tokio::test]
async fn a_session_outlives_its_issuers_absence() {
    let Some(world) = World::start("absence in a session", &[("ACCESS_TOKEN_TTL", "2")]).await
    else {
        return;
    };
    let mut jar = Jar::default();
    world.log_in_with(&mut jar).await;
    world
        .provider
        .order("faults", json!({ "path": "/token", "status": 503, "times": 100_000 }))
        .await;

    eventually(Duration::from_secs(60), async || {
        let answer = world.with_cookies("/session", &jar.cookie()).await;
        jar.take(&answer);
        match answer.status() {
            StatusCode::SERVICE_UNAVAILABLE => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
    world.provider.order("reset", json!({})).await;

    eventually(Duration::from_secs(60), async || {
        let answer = world.with_cookies("/session", &jar.cookie()).await;
        jar.take(&answer);
        match answer.status() {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => panic!("the session ended"),
            status => Err(status.to_string()),
        }
    })
    .await;
}

#[tokio::test]
async fn keys_that_change_in_mid_session_log_nobody_out() {
    let Some(world) = World::start("keys in a session", &[("ACCESS_TOKEN_TTL", "4")]).await else {
        return;
    };
    let mut jar = Jar::default();
    world.log_in_with(&mut jar).await;
    assert_eq!(world.with_cookies("/session", &jar.cookie()).await.status(), StatusCode::OK);

    world.provider.order("keys", json!({})).await;

    // Through the old token's end, and the new one's.
    let (clock, asked) = (Clock::system(), world.provider.count("/token").await);
    let end = clock.now().plus_secs(9);
    while clock.now() < end {
        let answer = world.with_cookies("/session", &jar.cookie()).await;
        assert_eq!(answer.status(), StatusCode::OK);
        jar.take(&answer);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(world.provider.count("/token").await - asked >= 2);
}

#[tokio::test]
async fn a_person_logs_in_there_by_a_pushed_request() {
    let Some(world) = World::start("code", &[]).await else { return };
    let mut jar = Jar::default();

    let away = world.depart(&mut jar, "/sso/login?return_to=%2Fapp%3Fpage%3D2").await;
    assert!(away.contains("request_uri=") && !away.contains("code_challenge"), "{away}");
    assert_eq!(world.provider.count("/request").await, 1);
    let back = walk(&world.http, &away).await;
    let iss = back.query_pairs().find(|(name, _)| name == "iss").map(|(_, iss)| iss.into_owned());
    assert_eq!(iss.as_deref(), Some(&*world.provider.issuer));
    let answer = world.come_back(&mut jar, &back).await;

    assert_eq!(answer.status(), StatusCode::SEE_OTHER);
    assert_eq!(answer.headers()["location"], "/app?page=2");
    let seen: Value = world.with_cookies("/app", &jar.cookie()).await.json().await.expect("JSON");
    assert!(
        seen["headers"]["authorization"].as_str().is_some_and(|text| text.starts_with("Bearer ey"))
    );
    assert_eq!(seen["headers"]["cookie"], Value::Null);

    // The way back is taken twice: the code is used up, and the session goes on.
    let again = world.come_back(&mut jar, &back).await;
    assert_eq!(
        (again.status(), &again.headers()["location"]),
        (StatusCode::SEE_OTHER, &"/".parse().unwrap())
    );
    assert_eq!(world.with_cookies("/app", &jar.cookie()).await.status(), StatusCode::OK);

    // And out again, there as well.
    let logout = world.http.post(world.at("/sso/logout")).header("origin", &world.gateway.url);
    let logout = logout.header("accept", "text/html").header("cookie", jar.cookie());
    let answer = logout.send().await.expect("an answer");
    let next = answer.headers()["location"].to_str().expect("text").to_owned();
    assert!(next.starts_with(&format!("{}/session/end?", world.provider.issuer)), "{next}");
    assert_eq!(world.provider.count("/token/revocation").await, 2);
}

#[tokio::test]
async fn two_tabs_log_in_at_once() {
    let Some(world) = World::start("two tabs", &[]).await else { return };
    let mut jar = Jar::default();
    let one = world.depart(&mut jar, "/sso/login?return_to=%2Fone").await;
    let two = world.depart(&mut jar, "/sso/login?return_to=%2Ftwo").await;

    let (one, two) = (walk(&world.http, &one).await, walk(&world.http, &two).await);

    for (back, path) in [(two, "/two"), (one, "/one")] {
        let answer = world.come_back(&mut jar, &back).await;
        assert_eq!(
            (answer.status(), &answer.headers()["location"]),
            (StatusCode::SEE_OTHER, &path.parse().unwrap())
        );
        assert_eq!(world.with_cookies("/app", &jar.cookie()).await.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn an_answer_mixed_up_with_another_servers_is_refused() {
    let Some(world) = World::start("mix-up", &[]).await else { return };
    for iss in [Some("https://evil.example"), None] {
        let mut jar = Jar::default();
        let away = world.depart(&mut jar, "/sso/login").await;
        let mut back = walk(&world.http, &away).await;
        let kept: Vec<_> =
            back.query_pairs().into_owned().filter(|(name, _)| name != "iss").collect();
        back.query_pairs_mut().clear().extend_pairs(kept);
        if let Some(iss) = iss {
            back.query_pairs_mut().append_pair("iss", iss);
        }
        let asked = world.provider.count("/token").await;

        let answer = world.come_back(&mut jar, &back).await;

        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{iss:?}");
        assert_eq!(world.provider.count("/token").await, asked, "the code was given away");
        assert_eq!(
            world.with_cookies("/app", &jar.cookie()).await.status(),
            StatusCode::UNAUTHORIZED
        );
    }
}

/// The server, the gateway that trusts it, and a service behind.
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

    /// Opens the login at the issuer, and says where it leads.
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

/// Whatever a test did: the log has no token, no cookie, no password and no secret in it.
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

    /// How often `path` was asked for since it started.
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

/// What a person does on the server's pages, from `away` until it sends the browser back.
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
    panic!("nobody was sent back");
}

/// What a browser holds.
#[derive(Clone, Debug, Default, PartialEq)]
struct Jar(BTreeMap<String, String>);

impl Jar {
    fn take(&mut self, answer: &Response) {
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

    fn cookie(&self) -> String {
        let pairs = self.0.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join("; ")
    }
}

/// What `Cookie` a browser would send back.
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
"#;
