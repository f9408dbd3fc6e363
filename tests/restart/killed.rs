//! State that survives a kill: real processes, killed in the middle of their work.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::dpop::{signing_key, thumbprint, token_hash};
use crate::fault_injection::{Endpoint, Fault, TestIssuer};
use base64::Engine as _;
use http::StatusCode;
use northgate::base::clock::Clock;
use northgate::dev::issuer::{Algorithm, DevIssuerConfig, Mint};
use northgate::issuer::keys::signing_key::SigningKey;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_stays_revoked_after_any_number_of_kills() {
    let world = World::start();
    let mut dead: Vec<String> = Vec::new();
    for round in 0..4 {
        let gateway = world.run("").await;
        for token in &dead {
            assert_eq!(gateway.with_token("/jwt", token).await.status(), 401, "round {round}");
        }
        let named = format!("t{round}");
        let token = world.issuer.mint(&Mint::client("api").claim("jti", &*named)).expect("a token");
        assert_eq!(gateway.with_token("/jwt", &token).await.status(), 204);

        let answer = gateway.revoke(&format!("jti={named}")).await;

        gateway.kill();
        assert_eq!(answer.status(), 200);
        let told: Value = answer.json().await.expect("JSON");
        assert_eq!(told.get("lasts"), None, "{told}");
        dead.push(token);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_loses_no_confirmed_revocation() {
    let world = World::start();
    let mut answered = Vec::new();
    for round in 0..5 {
        let gateway = world.run("").await;
        let names: Vec<_> = (0..40).map(|number| format!("r{round}n{number}")).collect();
        let revoking = names.iter().map(|name| {
            let gateway = &gateway;
            async move {
                let answer = timeout(Duration::from_secs(5), gateway.try_revoke(name)).await;
                answer.is_ok_and(|done| done.is_ok_and(|done| done.status() == 200)).then_some(name)
            }
        });
        let revoking = futures_util::future::join_all(revoking);
        let killing = async {
            sleep(Duration::from_millis(3 * (round + 1))).await;
            gateway.kill_now();
        };
        let (done, ()) = tokio::join!(revoking, killing);
        answered.extend(done.into_iter().flatten().cloned());
    }

    let gateway = world.run("").await;
    for name in &answered {
        let token = world.issuer.mint(&Mint::client("api").claim("jti", &**name)).expect("a token");
        assert_eq!(gateway.with_token("/jwt", &token).await.status(), 401, "{name}");
    }
    gateway.kill();
    let files = fs::read_dir(world.state()).expect("the directory").map(Result::unwrap);
    let names: Vec<_> = files.map(|file| file.file_name().into_string().unwrap()).collect();
    let of = |suffix: &str| names.iter().filter(|name| name.ends_with(suffix)).count();
    let unfinished = names.iter().filter(|name| name.contains(".journal.")).count();
    assert_eq!((of(".damaged"), unfinished), (0, 0), "{names:?}");
    assert!(of(".journal") <= 3, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_survives_a_kill_in_any_storage() {
    let world = World::start();
    let gateway = world.run("").await;
    let mut left = Vec::new();
    for session in ["sealed", "plain"] {
        let browser = gateway.log_in(session).await;
        let other = gateway.log_in(session).await;
        let asked = gateway.with_cookies(&format!("/{session}/app"), &browser).await;
        assert_eq!(asked.status(), 204, "{session}");
        let answer = gateway.post(&format!("/{session}/logout"), &browser, "").await;
        assert_eq!(answer.status(), 200, "{session}");
        left.push((session, browser, other));
    }
    gateway.kill();

    let gateway = world.run("").await;
    for (session, browser, other) in &left {
        let path = format!("/{session}/app");
        assert_eq!(gateway.with_cookies(&path, browser).await.status(), 401, "{session}");
        assert_eq!(gateway.with_cookies(&path, other).await.status(), 204, "{session}: another");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_could_not_be_revoked_are_revoked_after_a_kill() {
    let world = World::start();
    let gateway = world.run("").await;
    let browser = gateway.log_in("revoking").await;
    let fault = Fault::Status(StatusCode::SERVICE_UNAVAILABLE);
    world.issuer.inject(Endpoint::Revocation, fault, u32::MAX);
    assert_eq!(gateway.post("/revoking/logout", &browser, "").await.status(), 200);
    gateway.kill();
    let before = world.issuer.count(Endpoint::Revocation);
    world.issuer.clear(Endpoint::Revocation);

    let _gateway = world.run("").await;

    let told = world.issuer.wait_for_calls(Endpoint::Revocation, before + 2);
    timeout(Duration::from_secs(60), told).await.expect("both tokens are revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_session_stays_ended_after_a_kill() {
    let world = World::start();
    let gateway = world.run("").await;
    let first = gateway.log_in("sealed").await;
    let second = gateway.log_in_with("sealed", &first).await;
    gateway.kill();

    let gateway = world.run("").await;

    assert_eq!(gateway.with_cookies("/sealed/app", &first).await.status(), 401);
    assert_eq!(gateway.with_cookies("/sealed/app", &second).await.status(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_ended_by_the_issuer_stay_ended_and_its_token_counts_once() {
    let world = World::start();
    let gateway = world.run("").await;
    let alice = gateway.log_in("sealed").await;
    sleep(Duration::from_millis(1_100)).await;
    let said = world.logout_token("alice");
    assert_eq!(gateway.tell("sealed", &said).await.status(), 200);
    gateway.kill();

    let gateway = world.run("").await;

    assert_eq!(gateway.with_cookies("/sealed/app", &alice).await.status(), 401);
    assert_eq!(gateway.tell("sealed", &said).await.status(), 400, "it was heeded before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_accepted_once_across_a_kill() {
    let world = World::start();
    let key = signing_key();
    let cnf = json!({ "jkt": thumbprint(&key) });
    let token = world.issuer.mint(&Mint::client("api").claim("cnf", cnf)).expect("a token");
    let gateway = world.run("").await;
    let proof = proof(&key, &token);
    assert_eq!(gateway.with_proof(&token, &proof).await.status(), 204);
    gateway.kill();

    let gateway = world.run("").await;

    assert_eq!(gateway.with_proof(&token, &proof).await.status(), 401, "used before");
    let another = self::proof(&key, &token);
    assert_eq!(gateway.with_proof(&token, &another).await.status(), 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_kills_in_a_row_renew_no_quota() {
    let world = World::start();
    let mut admitted = 0;
    for round in 0..4 {
        let gateway = world.run("").await;
        for _ in 0..=round {
            admitted += u32::from(gateway.with_token("/bought", "").await.status() == 204);
        }
        // Two writes later the last request is on disk.
        let written = gateway.state_writes().await + 2;
        timeout(Duration::from_secs(20), async {
            while gateway.state_writes().await < written {
                assert_ne!(gateway.with_token("/jwt", "").await.status(), 200);
                let other = gateway.client.get(format!("{}/other", gateway.url));
                assert_eq!(other.send().await.expect("an answer").status(), 204);
                sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("quotas are written while they change");
        gateway.kill();
    }

    assert_eq!(admitted, 6, "of ten requests in four processes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_reported_and_no_revocation_is_confirmed() {
    let world = World::start();
    // Files of at most 2 KiB, as if the disk were full then.
    let gateway = world.run("trap '' XFSZ; ulimit -f 4;").await;
    let alice = gateway.log_in("sealed").await;
    let mut refused = None;
    for number in 0..200 {
        let answer = gateway.revoke(&format!("jti=a-rather-long-name-{number}")).await;
        if answer.status() != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a disk that is full");
    assert_eq!(refused.status(), 503);
    let told: Value = refused.json().await.expect("JSON");
    assert!(told["error"].as_str().is_some_and(|told| told.contains("state_dir")), "{told}");

    let answer = gateway.post("/sealed/logout", &alice, "").await;
    assert_eq!(answer.status(), 503, "a logout that would not last");
    assert!(answer.headers().get("set-cookie").is_none(), "it can be asked for again");
    assert_eq!(gateway.with_cookies("/sealed/app", &alice).await.status(), 401, "ended here");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_state_directory_the_operator_is_told_how_long_a_revocation_lasts() {
    let world = World::without_state();
    let gateway = world.run("").await;

    let told: Value = gateway.revoke("jti=t1").await.json().await.expect("JSON");

    assert!(told["lasts"].as_str().is_some_and(|lasts| lasts.contains("restart")), "{told}");
}

/// An issuer, and the files of a gateway that is started repeatedly.
struct World {
    directory: TempDir,
    issuer: TestIssuer,
}

impl World {
    fn start() -> Self {
        Self::of("state_dir: state,")
    }

    fn without_state() -> Self {
        Self::of("")
    }

    fn of(state: &str) -> Self {
        let options =
            DevIssuerConfig { algorithms: vec![Algorithm::Es256], ..DevIssuerConfig::default() };
        let address = "127.0.0.1:0".parse().expect("an address");
        let issuer = TestIssuer::start(address, Clock::system(), options, &Handle::current());
        let issuer = issuer.expect("a free port");
        let directory = TempDir::new().expect("a directory");
        let file = directory.path().join("gateway.yaml");
        let text = FILE.replace("ISSUER", issuer.url()).replace("STATE", state);
        fs::write(file, text).expect("written");
        let key = base64::engine::general_purpose::STANDARD.encode([7; 32]);
        let key_file = directory.path().join("key");
        fs::write(&key_file, key).expect("written");
        fs::set_permissions(key_file, fs::Permissions::from_mode(0o600)).expect("its own");
        let world = Self { directory, issuer };
        fs::create_dir(world.state()).expect("made");
        fs::set_permissions(world.state(), fs::Permissions::from_mode(0o700)).expect("its own");
        world
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Runs the gateway in a shell, after the commands in `before`.
    async fn run(&self, before: &str) -> Gateway {
        let mut process = Command::new("sh")
            .args(["-c", &format!("{before} exec \"$0\" run --config \"$1\"")])
            .arg(env!("CARGO_BIN_EXE_northgate"))
            .arg(self.directory.path().join("gateway.yaml"))
            .stdout(Stdio::piped())
            // With a full disk, writing the log fails as well.
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let mut lines = BufReader::new(process.stdout.take().expect("its log")).lines();
        let mut address = |what: &str| {
            let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains(what));
            let line: Value = serde_json::from_str(&line.expect("it listens")).expect("JSON");
            let fields = if line["address"].is_string() { &line } else { &line["fields"] };
            format!("http://{}", fields["address"].as_str().expect("an address"))
        };
        let (url, operator) = (address("Listening."), address("Admin listener bound."));
        std::thread::spawn(move || lines.for_each(drop));
        let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
        let client = client.build().expect("a client");
        let gateway = Gateway { process: std::sync::Mutex::new(process), url, operator, client };
        let ready = async {
            while gateway.ask_operator("/readyz").await.status() != 200 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(20), ready).await.expect("it is ready");
        gateway
    }

    /// A logout token for a subject.
    fn logout_token(&self, subject: &str) -> String {
        let now = Clock::system().now().as_secs();
        let header = json!({ "typ": "logout+jwt" });
        let claims = json!({
            "iss": self.issuer.url(), "aud": "gateway-web", "sub": subject, "iat": now, "exp": now + 120,
            "jti": format!("logout-{subject}"),
            "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
        });
        self.issuer.sign(Algorithm::Es256, header, claims)
    }
}

/// A running gateway.
struct Gateway {
    process: std::sync::Mutex<Child>,
    url: String,
    operator: String,
    client: Client,
}

impl Gateway {
    async fn with_token(&self, path: &str, token: &str) -> Response {
        let request = self.client.get(format!("{}{path}", self.url)).bearer_auth(token);
        request.send().await.expect("an answer")
    }

    async fn with_proof(&self, token: &str, proof: &str) -> Response {
        let request = self.client.get(format!("{}/dpop", self.url)).header("Host", "api.test");
        let request =
            request.header("Authorization", format!("DPoP {token}")).header("DPoP", proof);
        request.send().await.expect("an answer")
    }

    async fn with_cookies(&self, path: &str, browser: &Browser) -> Response {
        let request = self.client.get(format!("{}{path}", self.url)).header("Host", "localhost");
        request.header("Cookie", browser.cookie()).send().await.expect("an answer")
    }

    async fn post(&self, path: &str, browser: &Browser, form: &str) -> Response {
        let request = self.client.post(format!("{}{path}", self.url)).header("Host", "localhost");
        let request = request
            .header("Sec-Fetch-Site", "same-origin")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .header("Cookie", browser.cookie());
        request.body(form.to_owned()).send().await.expect("an answer")
    }

    async fn log_in(&self, session: &str) -> Browser {
        self.log_in_with(session, &Browser::default()).await
    }

    async fn log_in_with(&self, session: &str, before: &Browser) -> Browser {
        let path = format!("/{session}/login");
        let answer = self.post(&path, before, "username=alice&password=wonderland").await;
        assert_eq!(answer.status(), 200, "{session}");
        let mut browser = Browser(before.0.clone());
        for field in answer.headers().get_all("set-cookie") {
            let field = field.to_str().expect("text");
            let pair = field.split(';').next().and_then(|pair| pair.split_once('='));
            let (name, value) = pair.expect("a cookie");
            browser.0.insert(name.to_owned(), value.to_owned());
        }
        browser
    }

    async fn tell(&self, session: &str, token: &str) -> Response {
        let form = format!("logout_token={token}");
        self.post(&format!("/{session}/told"), &Browser::default(), &form).await
    }

    async fn ask_operator(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.operator)).send().await.expect("an answer")
    }

    async fn state_writes(&self) -> u32 {
        let metrics = self.ask_operator("/metrics").await.text().await.expect("text");
        let series = "northgate_state_writes_total{result=\"ok\"} ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |count| count.parse().expect("a number"))
    }

    async fn revoke(&self, form: &str) -> Response {
        self.try_post_revoke(form.to_owned()).await.expect("an answer")
    }

    async fn try_revoke(&self, id: &str) -> reqwest::Result<Response> {
        self.try_post_revoke(format!("jti={id}")).await
    }

    async fn try_post_revoke(&self, form: String) -> reqwest::Result<Response> {
        let request = self.client.post(format!("{}/-/revoke", self.operator));
        request.header("Content-Type", "application/x-www-form-urlencoded").body(form).send().await
    }

    fn kill(self) {
        self.kill_now();
    }

    /// SIGKILL: the process can do nothing more.
    fn kill_now(&self) {
        let mut process = self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // It may have ended by itself.
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill_now();
    }
}

/// A browser with its cookies.
#[derive(Default)]
struct Browser(BTreeMap<String, String>);

impl Browser {
    fn cookie(&self) -> String {
        let pairs = self.0.iter().map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join("; ")
    }
}

fn proof(key: &SigningKey, token: &str) -> String {
    static NUMBER: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
    let header = json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": key.public_jwk() });
    let claims = json!({
        "jti": format!("proof-{number}"), "htm": "GET", "htu": "http://api.test/dpop",
        "iat": Clock::system().now().as_secs(), "ath": token_hash(token),
    });
    key.sign_jwt(&header, &claims).expect("a signature")
}

const FILE: &str = "
version: 1
listen: 127.0.0.1:0
admin: { listen: 127.0.0.1:0 }
server: { STATE workers: 1 }
logging: { format: json }
issuers:
  main: { issuer: \"ISSUER\", audience: \"https://api.localhost\" }
sessions:
  sealed: { issuer: main, flow: password, client: { id: gateway-web, secret: gateway-web-secret }, public_url: \"https://localhost\",
    keys: [{ file: key }], scopes: [openid, offline_access], revoke_on_logout: false,
    paths: { login: /sealed/login, callback: /sealed/back, logout: /sealed/logout, status: /sealed/who, refresh: /sealed/new, back_channel_logout: /sealed/told } }
  revoking: { issuer: main, flow: password, client: { id: gateway-web, secret: gateway-web-secret }, public_url: \"https://localhost\",
    keys: [{ file: key }], scopes: [openid, offline_access], paths: { base: /revoking } }
  plain: { issuer: main, flow: password, client: { id: gateway-web, secret: gateway-web-secret }, public_url: \"https://localhost\",
    tokens: plain_cookies, keys: [{ file: key }], scopes: [openid, offline_access], revoke_on_logout: false,
    paths: { login: /plain/login, callback: /plain/back, logout: /plain/logout, status: /plain/who, refresh: /plain/new, back_channel_logout: /plain/told } }
limits:
  monthly: { quota: 6/month, by: ip }
  other: { quota: 1000000/month, by: ip }
routes:
  - { id: bought, path: /bought, respond: { status: 204 }, auth: none, limits: [monthly] }
  - { id: other, path: /other, respond: { status: 204 }, auth: none, limits: [other] }
  - { id: jwt, path: /jwt, respond: { status: 204 }, auth: { jwt: main } }
  - { id: dpop, path: /dpop, respond: { status: 204 }, auth: { jwt: main, dpop: true } }
  - { id: sealed, path: /sealed/app, respond: { status: 204 }, auth: { session: sealed } }
  - { id: revoking, path: /revoking/app, respond: { status: 204 }, auth: { session: revoking } }
  - { id: plain, path: /plain/app, respond: { status: 204 }, auth: { session: plain } }
";
