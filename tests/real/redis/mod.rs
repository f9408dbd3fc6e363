//! Several instances and one Redis share sessions, refreshes, logouts and revocations.

mod faults;
mod limits;
mod proofs;
mod revocation;
mod sessions;
mod topologies;
mod unusable;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::fault_injection::TestIssuer as Issuer;
use http::StatusCode;
use northgate::base::clock::Clock;
use northgate::dev::issuer::{API, DevIssuerConfig};
use reqwest::{RequestBuilder, Response};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::gateway::{Echo, Gateway};
use super::support::{Running, eventually, free_port, programs};

/// Two instances of the gateway, a Redis, an authorization server and an upstream.
struct Fleet {
    redis: Redis,
    issuer: Issuer,
    gateways: [Gateway; 2],
    slow: Slow,
    http: reqwest::Client,
    /// The configuration of each instance.
    text: String,
    life: Duration,
    _echo: Echo,
}

impl Fleet {
    async fn start(suite: &str, tokens: &str) -> Option<Self> {
        Self::with_tokens_of(LIFE, suite, tokens).await
    }

    /// Starts them with access tokens of this lifetime.
    async fn with_tokens_of(life: Duration, suite: &str, tokens: &str) -> Option<Self> {
        Self::with(suite, tokens, life, true).await
    }

    /// Starts them with an issuer that rotates refresh tokens or does not.
    async fn with(suite: &str, tokens: &str, life: Duration, rotates: bool) -> Option<Self> {
        let redis = Redis::begin(suite)?;
        let mut options = DevIssuerConfig::default();
        for client in &mut options.clients {
            client.access_lifetime = Some(life);
            client.rotates_refresh_tokens = rotates;
        }
        let control = Handle::current();
        let issuer = Issuer::start(([127, 0, 0, 1], 0).into(), Clock::system(), options, &control)
            .expect("an issuer");
        let (echo, slow) = (Echo::start().await, Slow::start().await);
        let text = CONFIGURATION
            .replace("ISSUER", issuer.url())
            .replace("API", API)
            .replace("TOKENS", tokens)
            .replace("ECHO", &echo.url)
            .replace("SLOW", &slow.url)
            .replace("REDIS", &redis.url());
        let gateways = [Gateway::start(&text).await, Gateway::start(&text).await];
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
        let http = http.build().expect("a client");
        let fleet = Self { redis, issuer, gateways, slow, http, text, life, _echo: echo };
        fleet.is_there_again().await;
        Some(fleet)
    }

    /// Starts an instance anew with a state directory, without which it confirms no logout that Redis does not have.
    async fn keep_state_of(&mut self, gateway: usize, directory: &Path) {
        let text = format!("server: {{ state_dir: {} }}\n{}", directory.display(), self.text);
        self.gateways[gateway] = Gateway::start(&text).await;
        self.is_there_again().await;
    }

    /// Alice's cookie, new from the instance of that number.
    async fn log_in(&self, gateway: usize) -> String {
        let answer = self.try_to_log_in(gateway).await;
        assert_eq!(answer.status(), StatusCode::OK);
        cookies_of(&answer)
    }

    async fn try_to_log_in(&self, gateway: usize) -> Response {
        let url = &self.gateways[gateway].url;
        let form = [("username", "alice"), ("password", "wonderland")];
        let login = self.http.post(format!("{url}/auth/login")).header("origin", url).form(&form);
        login.header("accept", "application/json").send().await.expect("an answer")
    }

    fn request(&self, gateway: usize, path: &str, cookie: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.gateways[gateway].url);
        self.http.get(url).header("cookie", cookie)
    }

    async fn get(&self, gateway: usize, path: &str, cookie: &str) -> Response {
        self.request(gateway, path, cookie).send().await.expect("an answer")
    }

    async fn post(&self, gateway: usize, path: &str, cookie: &str) -> Response {
        let url = &self.gateways[gateway].url;
        let request = self.http.post(format!("{url}{path}")).header("origin", url);
        request.header("cookie", cookie).send().await.expect("an answer")
    }

    /// Sleeps, because both processes use the system's clock, which tests cannot set.
    async fn let_the_token_expire(&self) {
        tokio::time::sleep(self.life).await;
    }

    /// Waits until both gateways have logged last that they are connected to Redis.
    async fn is_there_again(&self) {
        eventually(Duration::from_secs(10), async || {
            let there = |gateway: &Gateway| {
                let log = gateway.log();
                log.rfind("Connected to Redis.") > log.rfind("using local state only")
            };
            self.gateways.iter().all(there).then_some(()).ok_or("Redis is unavailable".to_owned())
        })
        .await;
    }

    /// The sum of a series of both instances' metrics.
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

/// A slow upstream: `/slow` responds once it may, `/events` and `/feed` never end.
struct Slow {
    url: String,
    /// The number of requests for `/slow`.
    come: watch::Receiver<u32>,
    /// Whether they may be responded to.
    may_answer: watch::Sender<bool>,
}

impl Slow {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let (coming, come) = watch::channel(0);
        let (may_answer, answering) = watch::channel(false);
        Handle::current().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (coming, answering) = (coming.clone(), answering.clone());
                // A closed connection is no failure of the upstream's.
                Handle::current().spawn(async { drop(serve(stream, coming, answering).await) });
            }
        });
        Self { url, come, may_answer }
    }

    /// Waits for that number of requests for `/slow`.
    async fn reached(&self, times: u32) {
        self.come.clone().wait_for(|come| *come >= times).await.expect("it runs");
    }
}

/// Serves one request, and closes the connection.
async fn serve(
    mut stream: TcpStream,
    coming: watch::Sender<u32>,
    mut answering: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut lines = BufReader::new(reading).lines();
    let first = lines.next_line().await?.unwrap_or_default();
    while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
    if first.contains("/slow") {
        coming.send_modify(|come| *come += 1);
        if answering.wait_for(|may| *may).await.is_ok() {
            writing
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await?;
        }
        return Ok(());
    }
    writing.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
    loop {
        writing.write_all(b"5\r\ntick\n\r\n").await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A Redis server without persistence.
pub(crate) struct Redis {
    program: std::path::PathBuf,
    port: u16,
    folder: TempDir,
    /// Arguments besides its address and its folder.
    arguments: Vec<String>,
    process: Option<Running>,
}

impl Redis {
    pub(crate) fn begin(suite: &str) -> Option<Self> {
        Self::begin_with(suite, &[])
    }

    /// The same, with more `arguments`.
    fn begin_with(suite: &str, arguments: &[&str]) -> Option<Self> {
        let [program] = programs(&format!("Redis: {suite}"), ["redis-server"])?;
        let folder = tempfile::tempdir().expect("a folder");
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut redis = Self { program, port: free_port(), folder, arguments, process: None };
        redis.start();
        Some(redis)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn start(&mut self) {
        let mut command = Command::new(&self.program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no"]).arg("--dir").arg(self.folder.path());
        command.args(&self.arguments);
        self.process = Some(Running::start(command.stdout(Stdio::null()).stderr(Stdio::null())));
        let began = tokio::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "it does not start");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn stop(&mut self) {
        self.process = None;
    }

    /// Stops responding without losing data.
    fn fall_silent(&self) {
        self.process.as_ref().expect("it runs").signal("STOP");
    }

    fn speak_again(&self) {
        self.process.as_ref().expect("it runs").signal("CONT");
    }

    fn connection(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).expect("a URL");
        client.get_connection().expect("it is there")
    }

    /// Returns the result of `command`.
    fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let (name, arguments) = command.split_first().expect("a command");
        redis::cmd(name).arg(arguments).query(&mut self.connection()).expect("an answer")
    }

    /// Returns the one key with this prefix.
    fn key(&self, begins: &str) -> String {
        let keys: Vec<String> = self.ask(&["KEYS", &format!("{begins}*")]);
        let [key] = &keys[..] else { panic!("{begins}: {keys:?}") };
        key.clone()
    }

    /// Every key and value, as text.
    fn everything(&self) -> String {
        let mut connection = self.connection();
        let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).expect("keys");
        let dump = |key: &String| {
            let value: Vec<u8> =
                redis::cmd("DUMP").arg(key).query(&mut connection).expect("a value");
            format!("{key} {}\n", String::from_utf8_lossy(&value))
        };
        keys.iter().map(dump).collect()
    }
}

/// Returns the `Cookie` field of a browser after `answer`.
fn cookies_of(answer: &Response) -> String {
    let set = answer.headers().get_all("set-cookie").iter();
    let pairs = set.filter_map(|cookie| cookie.to_str().ok()?.split(';').next());
    pairs.collect::<Vec<_>>().join("; ")
}

/// The lifetime of access tokens.
const LIFE: Duration = Duration::from_secs(2);

const SEALED: &str = "tokens: sealed_cookies";
const PLAIN: &str = "tokens: plain_cookies";
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
    paths: { back_channel_logout: /auth/back-channel }
    keys: [BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=]
    TOKENS
    cookie: { prefix: "", secure: false }
upstreams:
  echo: { targets: [ECHO] }
  slow: { targets: [SLOW] }
routes:
  - { id: api, path: /api, upstream: echo, auth: { jwt: main } }
  - { id: bound, path: /bound, upstream: echo, auth: { jwt: main, dpop: true } }
  - { id: feed, path: /feed, upstream: slow, auth: { jwt: main } }
  - { id: events, path: /events, upstream: slow, auth: { session: web } }
  - { id: slow, path: /slow, upstream: slow, auth: { session: web } }
  - { id: app, path: /app, upstream: echo, auth: { session: web } }
"#;
