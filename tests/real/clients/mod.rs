//! Clients that people run, through one route for every path: what they send arrives, and what is answered comes back.

mod browser;
mod docker;
mod git;
mod npm;
mod pip;
mod promql;
mod rate_limit;
mod s3;
mod webdav;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::gateway::Gateway;
use super::support::{Running, eventually, folder, free_port, repository};

/// A gateway with a single route, in clear text and over TLS.
struct Route {
    gateway: Gateway,
    /// Where clients connect with TLS, by a certificate that they do not know.
    secure: String,
    _certificates: TempDir,
}

impl Route {
    /// Starts the gateway in front of `service`, with more keys for the upstream.
    async fn start(service: &str, more: &str) -> Self {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificates = tempfile::tempdir().expect("a folder");
        let (cert, key) =
            (certificates.path().join("cert.pem"), certificates.path().join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).expect("a file");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
        let secure = format!("localhost:{}", free_port());
        let gateway = Gateway::start_quietly(&format!(
            "listen:
  - {{ address: OWN }}
  - {{ address: \"{address}\", tls: {{ cert: {cert}, key: {key} }} }}
server: {{ max_body_size: 1GiB }}
upstreams:
  service: {{ targets: [\"{service}\"]{more} }}
routes:
  - {{ id: all, path: /**, upstream: service, auth: none }}
",
            address = secure.replace("localhost", "127.0.0.1"),
            cert = cert.display(),
            key = key.display(),
        ))
        .await;
        Self { gateway, secure: format!("https://{secure}"), _certificates: certificates }
    }

    /// The same, in front of a script of `tests/real/pip`.
    async fn to_script(suite: &str, script: &str, arguments: &[&str]) -> Option<(Script, Self)> {
        let service = Script::start(suite, script, arguments)?;
        let route = Self::start(&service.url, "").await;
        Some((service, route))
    }

    /// Where clients connect without TLS, as a host and a port.
    fn clear(&self) -> &str {
        self.gateway.url.trim_start_matches("http://")
    }
}

/// A script of `tests/real/pip` that serves.
struct Script {
    url: String,
    _process: Running,
}

impl Script {
    fn start(suite: &str, script: &str, arguments: &[&str]) -> Option<Self> {
        let mut command = python(suite, script)?;
        let mut process = Running::start(command.args(arguments).stdout(Stdio::piped()));
        Some(Self { url: format!("http://127.0.0.1:{}", process.first_line()), _process: process })
    }
}

/// The command that runs a script of `tests/real/pip`; `None` after saying that `suite` is left out.
fn python(suite: &str, script: &str) -> Option<Command> {
    let installed: PathBuf = folder(suite, "target/real/pip")?;
    let mut command = Command::new(installed.join("bin/python"));
    command.arg(repository("tests/real/pip").join(script)).stderr(Stdio::null());
    Some(command)
}

/// Waits until a program listens on `port`.
async fn listens(port: u16) {
    eventually(Duration::from_secs(20), async || {
        TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| error.to_string())
    })
    .await;
}
