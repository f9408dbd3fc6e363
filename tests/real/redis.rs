//! Several gateways and one Redis: sessions, refreshes, logouts and counts are the fleet's.

use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use northgate::base::clock::Clock;
use northgate::dev::issuer::{API, DevIssuer, Endpoint, Fault, Options, Running as Issuer};
use reqwest::Response;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::gateway::{Echo, Gateway};
use super::support::{Running, eventually, free_port, programs};

#[tokio::test]
async fn fifty_requests_at_two_gateways_with_one_expired_token_are_one_redeem() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::start("refresh", tokens).await else { return };
        let cookie = fleet.log_in(0).await;
        let redeemed = fleet.issuer.count(Endpoint::Token);
        fleet.let_the_token_expire().await;

        let answers = join_all((0..50).map(|n| fleet.get(n % 2, "/app", &cookie))).await;

        let statuses: Vec<_> = answers.iter().map(|answer| answer.status().as_u16()).collect();
        assert_eq!(statuses, [200; 50], "{tokens}");
        assert_eq!(fleet.issuer.count(Endpoint::Token) - redeemed, 1, "{tokens}");
        if tokens == SEALED {
            // One text for all: browsers put cookies together from whichever answer comes last.
            let new: Vec<_> = answers.iter().map(cookies_of).collect();
            assert!(new.iter().all(|cookie| !cookie.is_empty() && *cookie == new[0]));
            assert_eq!(fleet.get(1, "/app", &new[0]).await.status(), StatusCode::OK);
        }
        // No alarm at the issuer: the next refresh is granted, too.
        let latest = if tokens == SEALED { cookies_of(&answers[0]) } else { cookie };
        fleet.let_the_token_expire().await;
        assert_eq!(fleet.get(1, "/app", &latest).await.status(), StatusCode::OK, "{tokens}");
        assert_eq!(
            fleet
                .counted(r#"northgate_session_refreshes_total{session="web",result="reuse"}"#)
                .await,
            0
        );
    }
}

#[tokio::test]
async fn what_is_not_rotated_is_redeemed_again_once_for_all() {
    for tokens in [SEALED, SERVER] {
        let Some(fleet) = Fleet::with("no rotation", tokens, false).await else { return };
        let mut cookie = fleet.log_in(0).await;
        for round in 0..3 {
            let redeemed = fleet.issuer.count(Endpoint::Token);
            fleet.let_the_token_expire().await;

            let answers = join_all((0..50).map(|n| fleet.get(n % 2, "/app", &cookie))).await;

            for answer in &answers {
                assert_eq!(answer.status(), StatusCode::OK, "{tokens}, round {round}");
            }
            assert_eq!(
                fleet.issuer.count(Endpoint::Token) - redeemed,
                1,
                "{tokens}, round {round}"
            );
            if tokens == SEALED {
                cookie = cookies_of(&answers[0]);
            }
        }
    }
}

#[tokio::test]
async fn a_straggler_at_another_gateway_gets_what_came_of_its_cookie() {
    let Some(fleet) = Fleet::start("straggler", SEALED).await else { return };
    let old = fleet.log_in(0).await;
    fleet.let_the_token_expire().await;
    let first = fleet.get(0, "/app", &old).await;
    let redeemed = fleet.issuer.count(Endpoint::Token);

    let late = fleet.get(1, "/app", &old).await;

    assert_eq!(late.status(), StatusCode::OK);
    assert_eq!(cookies_of(&late), cookies_of(&first));
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed);
}

#[tokio::test]
async fn a_session_on_the_server_is_known_to_every_gateway_and_to_none_after_its_logout() {
    let Some(fleet) = Fleet::start("sessions", SERVER).await else { return };

    let cookie = fleet.log_in(0).await;
    let elsewhere = fleet.get(1, "/app", &cookie).await;
    let logged_out = fleet.post(1, "/auth/logout", &cookie).await;
    let after = fleet.get(0, "/app", &cookie).await;

    assert_eq!(elsewhere.status(), StatusCode::OK);
    assert_eq!(logged_out.status(), StatusCode::OK);
    assert_eq!(after.status(), StatusCode::UNAUTHORIZED);
    // What Redis holds leads to no session and holds no token.
    let held = fleet.redis.everything();
    let id = cookie.split_once('=').expect("a cookie").1;
    assert!(!held.is_empty() && !held.contains(id) && !held.contains(".eyJ"), "{held}");
}

#[tokio::test]
async fn a_copied_cookie_is_renewed_at_no_gateway_once_it_is_logged_out() {
    let Some(fleet) = Fleet::start("logout", SEALED).await else { return };
    // The issuer does not help.
    fleet.issuer.order(Endpoint::Revocation, Fault::Status(StatusCode::NOT_FOUND), 100);
    let cookie = fleet.log_in(0).await;
    assert_eq!(fleet.post(0, "/auth/logout", &cookie).await.status(), StatusCode::OK);

    fleet.let_the_token_expire().await;

    let redeemed = fleet.issuer.count(Endpoint::Token);
    for gateway in [0, 1] {
        let answer = fleet.get(gateway, "/app", &cookie).await;
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{gateway}");
    }
    assert_eq!(fleet.issuer.count(Endpoint::Token), redeemed);
}

#[tokio::test]
async fn nobody_is_logged_out_because_redis_is_away() {
    for tokens in [SEALED, SERVER] {
        let Some(mut fleet) = Fleet::start("absence", tokens).await else { return };
        let mut cookie = fleet.log_in(0).await;
        let other = fleet.log_in(1).await;

        fleet.redis.stop();
        fleet.let_the_token_expire().await;
        let answer = fleet.get(0, "/app", &cookie).await;
        assert_eq!(answer.status(), StatusCode::OK, "{tokens}");
        if tokens == SEALED {
            cookie = cookies_of(&answer);
        } else {
            // A session that only others know is neither there nor over.
            let unknown = fleet.get(0, "/app", &other).await;
            assert_eq!(unknown.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(cookies_of(&unknown), "");
        }
        let new = fleet.log_in(0).await;

        // It comes back empty: what it has lost is put back by who knows it.
        fleet.redis.start();
        fleet.is_there_again().await;
        for cookie in [&cookie, &new] {
            assert_eq!(fleet.get(0, "/app", cookie).await.status(), StatusCode::OK, "{tokens}");
            eventually(Duration::from_secs(5), async || match fleet.get(1, "/app", cookie).await {
                answer if answer.status() == StatusCode::OK => Ok(()),
                answer => Err(format!("{tokens}: {}", answer.status())),
            })
            .await;
        }
    }
}

/// Two gateways, a Redis, an authorization server and a service.
struct Fleet {
    redis: Redis,
    issuer: Issuer,
    gateways: [Gateway; 2],
    http: reqwest::Client,
    _echo: Echo,
}

impl Fleet {
    async fn start(suite: &str, tokens: &str) -> Option<Self> {
        Self::with(suite, tokens, true).await
    }

    /// The same, with an issuer that rotates refresh tokens or does not.
    async fn with(suite: &str, tokens: &str, rotates: bool) -> Option<Self> {
        let redis = Redis::begin(suite)?;
        let mut options = Options::default();
        for client in &mut options.clients {
            client.access_lifetime = Some(LIFE);
            client.rotates_refresh_tokens = rotates;
        }
        let control = Handle::current();
        let issuer =
            DevIssuer::start(([127, 0, 0, 1], 0).into(), Clock::system(), options, &control)
                .expect("an issuer");
        let echo = Echo::start().await;
        let text = CONFIGURATION
            .replace("ISSUER", issuer.url())
            .replace("API", API)
            .replace("TOKENS", tokens)
            .replace("ECHO", &echo.url)
            .replace("REDIS", &redis.url());
        let gateways = [Gateway::start(&text).await, Gateway::start(&text).await];
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let http = http.build().expect("a client");
        let fleet = Self { redis, issuer, gateways, http, _echo: echo };
        fleet.is_there_again().await;
        Some(fleet)
    }

    /// Alice's cookie, fresh from the gateway of that number.
    async fn log_in(&self, gateway: usize) -> String {
        let url = &self.gateways[gateway].url;
        let form = [("username", "alice"), ("password", "wonderland")];
        let login = self.http.post(format!("{url}/auth/login")).header("origin", url).form(&form);
        let answer = login.header("accept", "application/json").send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        cookies_of(&answer)
    }

    async fn get(&self, gateway: usize, path: &str, cookie: &str) -> Response {
        let url = format!("{}{path}", self.gateways[gateway].url);
        self.http.get(url).header("cookie", cookie).send().await.expect("an answer")
    }

    async fn post(&self, gateway: usize, path: &str, cookie: &str) -> Response {
        let url = &self.gateways[gateway].url;
        let request = self.http.post(format!("{url}{path}")).header("origin", url);
        request.header("cookie", cookie).send().await.expect("an answer")
    }

    /// Both processes go by the machine's clock, which nobody can set.
    async fn let_the_token_expire(&self) {
        tokio::time::sleep(LIFE).await;
    }

    /// Both gateways have said, once more than they said otherwise, that Redis is there.
    async fn is_there_again(&self) {
        eventually(Duration::from_secs(10), async || {
            let there = |gateway: &Gateway| {
                let log = gateway.log();
                log.rfind("Redis is there.") > log.rfind("Redis is away")
            };
            self.gateways.iter().all(there).then_some(()).ok_or("Redis is away".to_owned())
        })
        .await;
    }

    /// A series of both gateways' metrics.
    async fn counted(&self, series: &str) -> u64 {
        let mut sum = 0;
        for gateway in &self.gateways {
            let metrics = reqwest::get(format!("{}/metrics", gateway.admin)).await;
            let text = metrics.expect("an answer").text().await.expect("text");
            let lines = text
                .lines()
                .filter_map(|line| line.strip_prefix(series)?.trim().parse::<u64>().ok());
            sum += lines.sum::<u64>();
        }
        sum
    }
}

/// A Redis server that keeps nothing on disk.
struct Redis {
    program: std::path::PathBuf,
    port: u16,
    folder: TempDir,
    process: Option<Running>,
}

impl Redis {
    fn begin(suite: &str) -> Option<Self> {
        let [program] = programs(&format!("Redis: {suite}"), ["redis-server"])?;
        let folder = tempfile::tempdir().expect("a folder");
        let mut redis = Self { program, port: free_port(), folder, process: None };
        redis.start();
        Some(redis)
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn start(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no"]).arg("--dir").arg(self.folder.path());
        self.process = Some(Running::start(command.stdout(Stdio::null()).stderr(Stdio::null())));
    }

    fn stop(&mut self) {
        self.process = None;
    }

    /// Every key and value, as text.
    fn everything(&self) -> String {
        let client = redis::Client::open(self.url()).expect("a URL");
        let mut connection = client.get_connection().expect("it is there");
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys");
        let dump = |key: &String| {
            let value: Vec<u8> =
                redis::cmd("DUMP").arg(key).query(&mut connection).expect("a value");
            format!("{key} {}\n", String::from_utf8_lossy(&value))
        };
        keys.iter().map(dump).collect()
    }
}

/// What `Cookie` a browser would send back.
fn cookies_of(answer: &Response) -> String {
    let set = answer.headers().get_all("set-cookie").iter();
    let pairs = set.filter_map(|cookie| cookie.to_str().ok()?.split(';').next());
    pairs.collect::<Vec<_>>().join("; ")
}

/// How long access tokens live.
const LIFE: Duration = Duration::from_secs(2);

const SEALED: &str = "tokens: sealed_cookies";
const SERVER: &str = "tokens: server\n    store: redis";

const CONFIGURATION: &str = r#"
listen: OWN
redis: { url: REDIS }
issuers:
  main:
    issuer: ISSUER
    audience: API
    client: { id: gateway, secret: gateway-secret }
    leeway: 0s
sessions:
  web:
    issuer: main
    flow: password
    client: { id: gateway-web, secret: gateway-web-secret }
    public_url: GATEWAY
    scopes: [openid, profile, offline_access, "orders:read"]
    keys: [BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=]
    TOKENS
    cookie: { prefix: "", secure: false }
upstreams:
  echo: { targets: [ECHO] }
routes:
  - { id: app, path: /app, upstream: echo, auth: { session: web } }
"#;
