//! Usage for bills: real processes, killed at any moment.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

#[tokio::test(flavor = "multi_thread")]
async fn admitted_usage_is_billed_once_through_any_number_of_kills() {
    let world = World::start();
    let mut admitted = 0;
    for round in 1..=3 {
        let mut gateway = world.run();
        for _ in 0..10 * round {
            admitted += i64::from(gateway.get("/").await == 204);
        }
        let all = || units(&world.in_file()) >= admitted && units(&world.received()) >= admitted;
        billed("every destination", all).await;
        gateway.kill();
        assert_eq!(units(&world.in_file()), admitted, "round {round}");
    }

    // Killed at any moment, a little of the last second may be missing.
    let billed = admitted;
    for round in 0..5 {
        let mut gateway = world.run();
        for _ in 0..20 {
            admitted += i64::from(gateway.get("/").await == 204);
        }
        sleep(Duration::from_millis(137 * round)).await;
        gateway.kill();
    }
    // The server refuses some batches at first: they wait for the next process.
    for _ in 0..20 {
        world.run().stop().await;
        if units(&world.received()) == units(&world.in_file()) {
            break;
        }
    }

    let file = world.in_file();
    assert!((billed..=admitted).contains(&units(&file)), "{} of {admitted}", units(&file));
    assert_eq!(units(&world.received()), units(&file), "every destination has the same");
    let ids: HashSet<_> = file.iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), file.len(), "no event is in the file twice");
    let event = &file[0];
    assert_eq!((&event["specversion"], &event["data"]["limit"]), (&json!("1.0"), &json!("daily")));
    assert_eq!(event["data"]["key"], json!({ "header:x-customer": SHOWN }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_delays_no_other_destination_and_gets_everything_later() {
    let world = World::start();
    let file = world.directory.path().join("gateway.yaml");
    let receiver = fs::read_to_string(&file).expect("the file");
    let away = receiver.lines().map(|line| match line.split_once("url: ") {
        Some((before, _)) => format!("{before}url: \"http://127.0.0.1:1/\" }} }}\n"),
        None => format!("{line}\n"),
    });
    fs::write(&file, away.collect::<String>()).expect("written");

    let mut gateway = world.run();
    for batch in 1..=2 {
        assert_eq!(gateway.get("/").await, 204);
        billed("the file", || units(&world.in_file()) == batch).await;
    }
    let status = gateway.operator("/-/usage").await;
    gateway.stop().await;
    fs::write(&file, receiver).expect("written");
    let _gateway = world.run();

    billed("the server", || units(&world.received()) == 2).await;
    assert_eq!(status["metering"]["destinations"]["http"], json!(2), "{status}");
    assert_eq!(world.in_file().len(), 2, "the file has each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_consumers_and_reset_them() {
    let world = World::start();
    let gateway = world.run();
    for _ in 0..5 {
        assert_eq!(gateway.get("/few").await, 204);
    }
    assert_eq!(gateway.get("/few").await, 429);

    let limits = gateway.operator("/-/limits").await;
    let few =
        limits["limits"].as_array().and_then(|all| all.iter().find(|one| one["limit"] == "few"));
    let few = few.expect("the limit");
    assert_eq!((&few["keys"], &few["used_up"]), (&json!(1), &json!(1)), "{few}");
    let top = &few["top"][0];
    assert_eq!(
        (&top["used"], &top["left"], &top["key"]["ip"]),
        (&json!(5), &json!(0), &json!("127.0.0.1"))
    );
    let usage = gateway.operator("/-/usage").await;
    assert!(usage["usage"].to_string().contains("\"few\""), "{usage}");

    for (form, status) in [
        ("", 400),
        ("limit=", 400),
        ("limit=none", 404),
        ("limit=few&colour=red", 400),
        ("limit=few&client=app", 400),
        ("ip=127.0.0.1&iss=nowhere", 400),
        ("limit=few&iss=nowhere", 400),
        ("ip=127.0.0.l", 400),
    ] {
        assert_eq!(gateway.reset(form).await.0, status, "{form}");
    }
    assert_eq!(gateway.get("/few").await, 429);
    let (status, done) = gateway.reset("ip=127.0.0.1").await;
    assert_eq!((status, &done["reset"]["few"]), (200, &json!(1)), "{done}");
    assert_eq!(done["skipped"], json!(["daily"]));
    assert_eq!(gateway.get("/few").await, 204);
    let (_, done) = gateway.reset("limit=few").await;
    assert_eq!(done["reset"], json!({ "few": 1 }));
    let (status, done) = gateway.reset("limit=daily&header:X-Customer=acme").await;
    assert_eq!((status, &done["reset"]), (200, &json!({ "daily": 0 })));
}

/// The files of a gateway, and a server that receives its events.
struct World {
    directory: TempDir,
    received: Arc<Mutex<Vec<Value>>>,
}

impl World {
    fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        let state = directory.path().join("state");
        fs::create_dir(&state).expect("made");
        fs::set_permissions(state, fs::Permissions::from_mode(0o700)).expect("its own");
        let received = Arc::new(Mutex::new(Vec::new()));
        let url = receiver(Arc::clone(&received));
        let file = FILE.replace("URL", &url);
        fs::write(directory.path().join("gateway.yaml"), file).expect("written");
        Self { directory, received }
    }

    fn run(&self) -> Gateway {
        Gateway::run(&self.directory.path().join("gateway.yaml"))
    }

    fn in_file(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.directory.path().join("usage.jsonl"));
        let text = text.unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// The events by id: one that was sent again counts once.
    fn received(&self) -> Vec<Value> {
        let mut known = HashSet::new();
        let events = self.received.lock().unwrap_or_else(PoisonError::into_inner).clone();
        events.into_iter().filter(|event| known.insert(event["id"].to_string())).collect()
    }
}

/// Waits until `has_all` is true of a destination.
async fn billed(destination: &str, has_all: impl Fn() -> bool) {
    let waited = timeout(Duration::from_secs(60), async {
        while !has_all() {
            sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "{destination} has not all");
}

fn units(events: &[Value]) -> i64 {
    events.iter().filter_map(|event| event["data"]["units"].as_i64()).sum()
}

/// Receives batches of events; every third request fails.
fn receiver(received: Arc<Mutex<Vec<Value>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/usage", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap_or(0);
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                continue;
            }
            let status = if number % 3 == 2 { "503 Service Unavailable" } else { "204 No Content" };
            if number % 3 != 2
                && let Ok(Value::Array(events)) = serde_json::from_slice(&body)
            {
                received.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
            }
            let head =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
        }
    });
    url
}

/// A running gateway.
struct Gateway {
    process: Child,
    url: String,
    operator: String,
    client: Client,
}

impl Gateway {
    fn run(file: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_northgate"))
            .args(["run", "--config"])
            .arg(file)
            .stdout(Stdio::piped())
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
        let client = Client::builder().no_proxy().build().expect("a client");
        Self { process, url, operator, client }
    }

    async fn get(&self, path: &str) -> u16 {
        let request = self.client.get(format!("{}{path}", self.url)).header("X-Customer", "acme");
        request.send().await.expect("an answer").status().as_u16()
    }

    async fn operator(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.operator)).send().await;
        answer.expect("an answer").json().await.expect("JSON")
    }

    async fn reset(&self, form: &str) -> (u16, Value) {
        let request = self.client.post(format!("{}/-/limits/reset", self.operator));
        let request = request.header("Content-Type", "application/x-www-form-urlencoded");
        let answer = request.body(form.to_owned()).send().await.expect("an answer");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }

    /// SIGKILL: the process can do nothing more.
    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// SIGTERM, and the end of the process.
    async fn stop(&mut self) {
        let id = self.process.id().to_string();
        assert!(Command::new("kill").arg(id).status().is_ok_and(|status| status.success()));
        let ended = async {
            while self.process.try_wait().expect("its end").is_none() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), ended).await.expect("it ends");
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The first digits of the SHA-256 of `acme`.
const SHOWN: &str = "sha256:822b33ad87c1";

const FILE: &str = "
version: 1
listen: 127.0.0.1:0
admin: { listen: 127.0.0.1:0 }
server: { state_dir: state, workers: 1 }
logging: { format: json }
metering: { interval: 1s, file: usage.jsonl, http: { url: \"URL\" } }
limits:
  daily: { quota: 1000000/day, by: \"header:X-Customer\", metered: true }
  few: { quota: 5/month, by: ip }
routes:
  - { id: all, path: /, respond: { status: 204 }, auth: none, limits: [daily] }
  - { id: few, path: /few, respond: { status: 204 }, auth: none, limits: [few] }
";
