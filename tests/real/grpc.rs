//! gRPC with grpcio (the C core of Google) and Tonic on both sides: the four shapes, metadata, large messages, errors,
//! deadlines, cancellation, ten thousand calls, and ten thousand streams at the same time.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::gateway::Gateway;
use super::support::{Running, folder, free_port, repository};

#[tokio::test]
async fn grpcio_calls_grpcio_through_the_gateway_in_clear_text() {
    grpcio("in clear text", false).await;
}

#[tokio::test]
async fn grpcio_calls_grpcio_through_the_gateway_over_tls() {
    grpcio("over TLS", true).await;
}

#[tokio::test]
async fn tonic_calls_tonic_through_the_gateway_in_clear_text() {
    tonic("in clear text", false).await;
}

#[tokio::test]
async fn tonic_calls_tonic_through_the_gateway_over_tls() {
    tonic("over TLS", true).await;
}

async fn grpcio(suite: &str, tls: bool) {
    let Some(pip) = folder(&format!("grpcio {suite}"), "target/real/pip") else { return };
    let script = repository("tests/real/pip/grpc_service.py");
    let python = || {
        let mut command = Command::new(pip.join("bin/python"));
        command.arg(&script);
        command
    };
    let front = Front::start(python().arg("serve")).await;
    front
        .run(
            python().args(["call", &front.address(tls), "shapes,large,errors,deadlines,many"]),
            tls,
        )
        .await;
}

async fn tonic(suite: &str, tls: bool) {
    let Some(built) = folder(&format!("Tonic {suite}"), "target/real/tonic/debug") else { return };
    let twin = || Command::new(built.join("tonic-twin"));
    let front = Front::start(twin().arg("serve")).await;
    let url = format!("{}://{}", if tls { "https" } else { "http" }, front.address(tls));
    front.run(twin().args(["call", &url, "shapes"]), tls).await;
    front.run(twin().args(["call", &url, "streams"]), tls).await;
}

/// A gRPC service, and the gateway in front of it with a listener in clear text and one with TLS.
struct Front {
    gateway: Gateway,
    secure_port: u16,
    certificates: TempDir,
    _service: Running,
}

impl Front {
    /// Runs `service`, which prints its port.
    async fn start(service: &mut Command) -> Self {
        let mut service = Running::start(service.stdout(Stdio::piped()));
        let port = service.first_line();
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let certificates = tempfile::tempdir().expect("a folder");
        let write = |name: &str, content: String| {
            std::fs::write(certificates.path().join(name), content).expect("a file");
            certificates.path().join(name).display().to_string()
        };
        let cert = write("cert.pem", made.cert.pem());
        let key = write("key.pem", made.signing_key.serialize_pem());
        let keys = write("keys.json", KEYS.to_owned());
        let secure_port = free_port();
        let gateway = Gateway::start_quietly(&format!(
            "listen:
  - {{ address: OWN }}
  - {{ address: \"127.0.0.1:{secure_port}\", tls: {{ cert: {cert}, key: {key} }} }}
server: {{ max_body_size: 0 }}
upstreams:
  service: {{ targets: [\"http://127.0.0.1:{port}\"], http2: always, max_connections: 20000 }}
  gone: {{ targets: [\"http://127.0.0.1:1\"], http2: always }}
issuers:
  main: {{ issuer: \"https://id.test\", discovery: off, audience: test, jwks_file: {keys} }}
limits:
  few: {{ rate: 1/h, by: ip }}
routes:
  - {{ id: service, path: /test.Service/**, upstream: service, auth: none }}
  - {{ id: token, path: /refused/Token, upstream: service, auth: {{ jwt: main }} }}
  - {{ id: gone, path: /refused/Gone, upstream: gone, auth: none }}
  - {{ id: limited, path: /refused/Limited, upstream: service, auth: none, limits: [few], rewrite: {{ path: /test.Service/Unary }} }}
  - {{ id: small, path: /refused/Small, upstream: service, auth: none, max_body_size: 10B }}
",
        ))
        .await;
        Self { gateway, secure_port, certificates, _service: service }
    }

    fn address(&self, tls: bool) -> String {
        if tls {
            format!("localhost:{}", self.secure_port)
        } else {
            self.gateway.url.replace("http://", "")
        }
    }

    /// Runs `client`, which fails at the first answer that is not the promised one.
    async fn run(&self, client: &mut Command, tls: bool) {
        if tls {
            client.env("CA", self.certificate());
        }
        let client = client.stdout(Stdio::piped()).stderr(Stdio::piped());
        let client = client.spawn().expect("it was found, so it starts");
        let output = tokio::task::spawn_blocking(move || client.wait_with_output()).await;
        let output = output.expect("it does not panic").expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout);
        let failed = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}\n{failed}");
    }

    fn certificate(&self) -> PathBuf {
        self.certificates.path().join("cert.pem")
    }
}

/// A public key, of which no test has the private one.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1","alg":"ES256","use":"sig",
"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
