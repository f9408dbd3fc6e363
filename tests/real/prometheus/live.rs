//! Every query of every dashboard returns data: a real Prometheus scrapes a real gateway under traffic.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use northgate::base::clock::Clock;
use northgate::dev::issuer::{API, DevIssuer, DevIssuerConfig};
use northgate::observe::metrics::FAMILIES;
use regex::Regex;
use reqwest::{Client, Method};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::gateway::{Echo, Gateway};
use crate::redis::Redis;
use crate::support::{Running, eventually, free_port, programs, repository, run};

#[tokio::test]
async fn every_query_of_every_dashboard_returns_data() {
    let suite = "prometheus: dashboards";
    let Some([prometheus, promtool]) = programs(suite, ["prometheus", "promtool"]) else { return };
    let Some(redis) = Redis::begin(suite) else { return };
    let issuer = DevIssuer::start(
        "127.0.0.1:0".parse().expect("an address"),
        Clock::system(),
        DevIssuerConfig::default(),
        &Handle::current(),
    );
    let issuer = issuer.expect("a free port");
    let (echo, tls) = (Echo::start().await, free_port());
    let state = tempfile::tempdir().expect("a folder");
    let file = CONFIGURATION
        .replace("ISSUER", issuer.url())
        .replace("AUDIENCE", API)
        .replace("ECHO", &echo.url)
        .replace("CLOSED", &format!("http://127.0.0.1:{}", free_port()))
        .replace("REDIS", &redis.url())
        .replace("STATE", &state.path().display().to_string())
        .replace("TLS", &format!("127.0.0.1:{tls}"));
    let gateway = Gateway::start(&file).await;
    let clients = Clients::new(&gateway, issuer.url(), tls).await;
    let rules = repository("dashboards/rules.yml");
    let prometheus = Prometheus::start(&prometheus, &gateway, &rules);

    // Rates need two scrapes with something between them.
    let mut open = prometheus.queries();
    assert!(open.len() > 100, "only {} queries found", open.len());
    eventually(Duration::from_secs(120), async || {
        clients.traffic().await;
        let mut left = Vec::new();
        for query in core::mem::take(&mut open) {
            if let Err(why) = prometheus.ask(&query).await {
                left.push(Query { why, ..query });
            }
        }
        open = left;
        let faults =
            open.iter().map(|query| format!("{}: {}\n  {}", query.place, query.why, query.text));
        if open.is_empty() { Ok(()) } else { Err(faults.collect::<Vec<_>>().join("\n")) }
    })
    .await;

    let text = reqwest::get(format!("{}/metrics", gateway.admin)).await.expect("an answer");
    let text = text.text().await.expect("text");
    let missing =
        FAMILIES.iter().filter(|family| !text.contains(&format!("# TYPE {} ", family.name)));
    let missing: Vec<_> = missing.map(|family| family.name).collect();
    assert!(missing.is_empty(), "not counted: {missing:?}");
    run(Command::new(promtool).args(["check", "metrics"]), &text);
}

/// What a dashboard asks.
#[derive(Clone, Debug)]
struct Query {
    /// Dashboard and panel.
    place: String,
    text: String,
    /// For the whole range, or for now.
    range: bool,
    /// Labels that its legend names.
    legend: Vec<String>,
    /// Why it has no answer yet.
    why: String,
}

/// Prometheus, scraping one gateway and evaluating rules each second.
pub(super) struct Prometheus {
    pub(super) url: String,
    http: Client,
    instance: String,
    _process: Running,
    _folder: TempDir,
}

impl Prometheus {
    pub(super) fn start(program: &Path, gateway: &Gateway, rules: &Path) -> Self {
        let (folder, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let instance = gateway.admin.trim_start_matches("http://").to_owned();
        let file = folder.path().join("prometheus.yml");
        let text = fs::read_to_string(repository("dashboards/prometheus.yml")).expect("a file");
        let text = text
            .replace("127.0.0.1:9901", &instance)
            .replace("scrape_interval: 15s", "scrape_interval: 1s\n  evaluation_interval: 1s")
            .replace("[rules.yml]", &format!("[{}]", rules.display()));
        assert!(text.contains(&instance) && text.contains("interval: 1s"), "{text}");
        fs::write(&file, text).expect("a file");
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self {
            url: format!("http://127.0.0.1:{port}"),
            http: Client::builder().no_proxy().build().expect("a client"),
            instance,
            _process: Running::start(&mut command),
            _folder: folder,
        }
    }

    /// Every query of every dashboard: with all values chosen, and with one.
    fn queries(&self) -> Vec<Query> {
        let folder = fs::read_dir(repository("dashboards")).expect("a folder");
        let files = folder.map(|entry| entry.expect("a file").path());
        let boards = files.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let mut queries = Vec::new();
        for path in boards {
            let board: Value =
                serde_json::from_str(&fs::read_to_string(&path).expect("a file")).expect("JSON");
            let title = &board["title"];
            let mut add = |place: &str, text: &Value, range: bool, legend: &Value| {
                let Some(text) = text.as_str().filter(|text| !text.is_empty()) else { return };
                let legend = words(r"\{\{\s*(\w+)\s*\}\}", legend.as_str().unwrap_or_default());
                for (chosen, job, instance) in [
                    ("all", ".*".to_owned(), ".*".to_owned()),
                    (
                        "one",
                        "northgate".to_owned(),
                        regex::escape(&self.instance).replace('\\', "\\\\"),
                    ),
                ] {
                    queries.push(Query {
                        place: format!("{title} / {place} ({chosen})"),
                        text: substituted(text, &job, &instance),
                        range,
                        legend: legend.clone(),
                        why: "not asked yet".to_owned(),
                    });
                }
            };
            for panel in board["panels"].as_array().into_iter().flatten() {
                for target in panel["targets"].as_array().into_iter().flatten() {
                    let range = target["range"] == true;
                    add(
                        &panel["title"].to_string(),
                        &target["expr"],
                        range,
                        &target["legendFormat"],
                    );
                }
            }
            for note in board["annotations"]["list"].as_array().into_iter().flatten() {
                add("annotation", &note["expr"], true, &note["textFormat"]);
            }
            for variable in board["templating"]["list"].as_array().into_iter().flatten() {
                // `label_values(metric, label)`: there must be such a series, and it must have the label.
                let inside = variable["query"]["query"].as_str().and_then(|text| {
                    text.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(", ")
                });
                if let Some((series, label)) = inside {
                    let legend = Value::from(format!("{{{{{label}}}}}"));
                    add(&format!("${label}"), &series.into(), false, &legend);
                }
            }
        }
        queries
    }

    /// Fine if there is a number for it, under every label that the legend names.
    async fn ask(&self, query: &Query) -> Result<(), String> {
        let now = Clock::system().now().as_secs();
        let (path, time) = if query.range {
            let (start, end) = ((now - 30).to_string(), now.to_string());
            ("query_range", vec![("start", start), ("end", end), ("step", "2".to_owned())])
        } else {
            ("query", vec![("time", now.to_string())])
        };
        let form = time.into_iter().chain([("query", query.text.clone())]).collect::<Vec<_>>();
        let answer = self.http.post(format!("{}/api/v1/{path}", self.url)).form(&form).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer: Value = answer.json().await.map_err(|error| error.to_string())?;
        let Some(series) = answer["data"]["result"].as_array() else {
            return Err(answer.to_string());
        };
        if series.is_empty() {
            return Err("no series".to_owned());
        }
        if !series.iter().any(has_number) {
            return Err("no number".to_owned());
        }
        for label in &query.legend {
            if series.iter().any(|one| one["metric"][label].as_str().is_none()) {
                return Err(format!("a series has no label {label}"));
            }
        }
        Ok(())
    }
}

/// Whether a series of an answer has a sample that is a number.
fn has_number(series: &Value) -> bool {
    let many = series["values"].as_array().into_iter().flatten();
    let samples = many.chain(Some(&series["value"]));
    samples.filter_map(|sample| sample[1].as_str()?.parse::<f64>().ok()).any(f64::is_finite)
}

/// The query as Grafana sends it.
fn substituted(text: &str, job: &str, instance: &str) -> String {
    let text = text
        .replace("$__rate_interval", "20s")
        .replace("$__range", "1m")
        .replace("$job", job)
        .replace("$instance", instance)
        .replace("$slo", "99.9");
    // The others, with all values chosen.
    let variable = Regex::new(r"\$\w+").expect("a pattern");
    variable.replace_all(&text, ".*").into_owned()
}

fn words(pattern: &str, text: &str) -> Vec<String> {
    let pattern = Regex::new(pattern).expect("a pattern");
    let found = pattern.captures_iter(text).map(|found| found[1].to_owned());
    found.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Clients of every kind, some of whom are refused.
struct Clients {
    http: Client,
    gateway: String,
    tls: String,
    signed: String,
    reference: String,
    cookies: String,
}

impl Clients {
    async fn new(gateway: &Gateway, issuer: &str, tls: u16) -> Self {
        let http = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_danger_accept_invalid_certs(true)
            .build()
            .expect("a client");
        let token = async |client: &str, scope: &str| {
            let request = http.post(format!("{issuer}/token"));
            let request = request.basic_auth(client, Some(format!("{client}-secret")));
            let request = request.form(&[("grant_type", "client_credentials"), ("scope", scope)]);
            let tokens: Value =
                request.send().await.expect("an answer").json().await.expect("JSON");
            tokens["access_token"].as_str().unwrap_or_else(|| panic!("{tokens}")).to_owned()
        };
        let (signed, reference) =
            (token("api", "orders:read").await, token("partner", "partners:read").await);
        let login = http
            .post(format!("{}/auth/login", gateway.url))
            .header("origin", &gateway.url)
            .form(&[("username", "alice"), ("password", "wonderland")]);
        let answer = login.send().await.expect("an answer");
        let cookies = answer.headers().get_all("set-cookie").iter();
        let cookies = cookies.filter_map(|cookie| cookie.to_str().ok()?.split(';').next());
        let cookies = cookies.collect::<Vec<_>>().join("; ");
        let tls = format!("https://localhost:{tls}");
        Self { http, gateway: gateway.url.clone(), tls, signed, reference, cookies }
    }

    /// A second's worth of everything. What matters is that it is asked, not how it is answered.
    async fn traffic(&self) {
        let get = |path: &str| self.http.get(format!("{}{path}", self.gateway));
        let wrong = self.signed.replace('.', ".x");
        for _ in 0..3 {
            let requests = [
                get("/public/a"),
                get("/public/status/500"),
                get("/nowhere"),
                get("/gone"),
                get("/jwt"),
                get("/jwt").bearer_auth(&self.signed),
                get("/jwt").bearer_auth(&wrong),
                get("/reference").bearer_auth(&self.reference),
                get("/reference").bearer_auth("unknown"),
                get("/basic").basic_auth("alice", Some("wonderland")),
                get("/session").header("cookie", &self.cookies),
                self.http.post(format!("{}/public/a", self.gateway)).body("a body"),
                self.http.request(Method::DELETE, format!("{}/public/a", self.gateway)),
                self.http.get(format!("{}/public/a", self.tls)),
            ];
            for request in requests {
                drop(request.send().await.expect("an answer"));
            }
        }
    }
}

const CONFIGURATION: &str = r#"
listen: [OWN, { address: "TLS", tls: self_signed }]
logging: { access: errors }
server: { state_dir: STATE }
redis: { url: REDIS }
issuers:
  main:
    issuer: ISSUER
    audience: AUDIENCE
    client: { id: gateway, secret: gateway-secret }
    password_grant: { scopes: ["orders:read"] }
    introspection: { accept_without_audience: true }
sessions:
  web:
    issuer: main
    flow: password
    client: { id: gateway-web, secret: gateway-web-secret }
    public_url: GATEWAY
    scopes: [openid, offline_access, "orders:read"]
    cookie: { prefix: "", secure: false }
limits:
  spike: { rate: 2/s, by: ip }
  daily: { quota: 1000000/day, by: client, store: redis }
upstreams:
  echo: { targets: [ECHO] }
  closed: { targets: [CLOSED] }
routes:
  - { id: public, path: /public/**, methods: [GET, POST], upstream: echo, auth: none, limits: [spike] }
  - { id: gone, path: /gone, upstream: closed, auth: none }
  - { id: jwt, path: /jwt, upstream: echo, auth: { jwt: main, scopes: ["orders:read"] }, limits: [daily] }
  - { id: reference, path: /reference, upstream: echo, auth: { introspection: main } }
  - { id: basic, path: /basic, upstream: echo, auth: { basic: main } }
  - { id: session, path: /session, upstream: echo, auth: { session: web } }
"#;
