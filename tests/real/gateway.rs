//! The built gateway, run as an operator runs it, and a service behind it.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use super::support::{Running, eventually, free_port};

/// `northgate run`, with a file of its own.
pub(crate) struct Gateway {
    /// Where clients connect.
    pub(crate) url: String,
    /// Where the operator does.
    pub(crate) admin: String,
    folder: TempDir,
    process: Option<Running>,
}

impl Gateway {
    /// Writes a configuration of `sections`, runs the gateway with it, and waits until it is ready.
    /// In the text, `OWN` stands for its
    /// own address, and `GATEWAY` for the URL of it.
    pub(crate) async fn start(sections: &str) -> Self {
        Self::start_at(free_port(), sections).await
    }

    /// The same, on a port that was chosen before: an authorization server knows it.
    pub(crate) async fn start_at(own: u16, sections: &str) -> Self {
        // All that can be said: what must never be in a log must not be in this one.
        Self::start_with(own, sections, "trace").await
    }

    /// The same as [`Gateway::start`], for many requests: with the log of an operator.
    pub(crate) async fn start_quietly(sections: &str) -> Self {
        Self::start_with(free_port(), sections, "info").await
    }

    async fn start_with(own: u16, sections: &str, log: &str) -> Self {
        let admin = free_port();
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!("version: 1\nadmin: {{ listen: 127.0.0.1:{admin} }}\n{sections}");
        let address = format!("127.0.0.1:{own}");
        let text = text.replace("OWN", &address).replace("GATEWAY", &format!("http://{address}"));
        fs::write(folder.path().join("gateway.yaml"), text).expect("a file");
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut gateway = Self { url: url(own), admin: url(admin), folder, process: None };
        let mut process = Running::start(
            Command::new(env!("CARGO_BIN_EXE_northgate"))
                .arg("run")
                .arg("--config")
                .arg(gateway.folder.path().join("gateway.yaml"))
                .env("RUST_LOG", log)
                .stdout(gateway.log_file("stdout"))
                .stderr(gateway.log_file("stderr")),
        );
        let ready = format!("{}/readyz", gateway.admin);
        eventually(Duration::from_secs(30), async || {
            assert!(!process.has_ended(), "the gateway does not start");
            match reqwest::get(&ready).await {
                Ok(answer) if answer.status().is_success() => Ok(()),
                Ok(answer) => Err(answer.text().await.unwrap_or_default()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        gateway.process = Some(process);
        gateway
    }

    /// Changes its configuration, and has it taken over.
    pub(crate) async fn reload(&self, from: &str, to: &str) {
        let file = self.folder.path().join("gateway.yaml");
        let text = fs::read_to_string(&file).expect("its file");
        fs::write(file, text.replace(from, to)).expect("a file");
        let url = format!("{}/-/reload", self.admin);
        let answer = reqwest::Client::new().post(url).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
    }

    /// Ends it as a service manager does, and waits until it has ended.
    pub(crate) fn terminate(&mut self) {
        self.process.take().expect("it runs").terminate();
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        self.process.as_ref().expect("it runs").signal(name);
    }

    /// Waits until it has ended, and well.
    pub(crate) fn wait(&mut self) {
        self.process.take().expect("it runs").wait();
    }

    /// Ends it at once, as no service manager would.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// All that it wrote so far.
    pub(crate) fn log(&self) -> String {
        let read = |name| fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        read("stdout") + &read("stderr")
    }

    fn log_file(&self, name: &str) -> File {
        let path: &Path = self.folder.path();
        File::create(path.join(name)).expect("a file")
    }
}

impl Drop for Gateway {
    #[expect(clippy::print_stderr, reason = "a failed test tells its story")]
    fn drop(&mut self) {
        self.process = None;
        if std::thread::panicking() {
            let log = self.log();
            let trace = |line: &&str| !line.contains(r#""level":"trace""#);
            let told = log.lines().filter(trace).collect::<Vec<_>>();
            eprintln!("the gateway said:\n{}", told.join("\n"));
        }
    }
}

/// A service that answers with what it was sent.
pub(crate) struct Echo {
    /// Where it listens.
    pub(crate) url: String,
}

impl Echo {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        Handle::current().spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(|request| async move {
                    Ok::<_, core::convert::Infallible>(echo(&request))
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer);
                // A client that leaves is no failure of the service's.
                Handle::current().spawn(async { drop(serving.await) });
            }
        });
        Self { url }
    }
}

/// Method, path and header fields as JSON; `/status/503` answers with that.
fn echo(request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let fields = request.headers().iter().map(|(name, value)| {
        (name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes())))
    });
    let body = json!({
        "method": request.method().as_str(),
        "path": path,
        "headers": fields.collect::<Map<_, _>>(),
    });
    let status = path.split_once("/status/").and_then(|(_, status)| status.parse().ok());
    Response::builder()
        .status(status.unwrap_or(200))
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()))
        .expect("a response")
}
