//! gRPC with grpcio (the C core of Google) on both sides: the four shapes, metadata, large messages, errors,
//! deadlines, cancellation, and ten thousand calls.

use std::process::{Command, Stdio};

use super::gateway::Gateway;
use super::support::{Running, folder, free_port, repository};

#[tokio::test]
async fn grpcio_calls_grpcio_through_the_gateway_in_clear_text() {
    calls("in clear text", false).await;
}

#[tokio::test]
async fn grpcio_calls_grpcio_through_the_gateway_over_tls() {
    calls("over TLS", true).await;
}

async fn calls(suite: &str, tls: bool) {
    let Some(pip) = folder(&format!("grpcio {suite}"), "target/real/pip") else { return };
    let script = repository("tests/real/pip/grpc_service.py");
    let mut python = Command::new(pip.join("bin/python"));
    let mut service = Running::start(python.arg(&script).arg("serve").stdout(Stdio::piped()));
    let port = service.first_line();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let certificates = tempfile::tempdir().expect("a folder");
    let (cert, key) = (certificates.path().join("cert.pem"), certificates.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).expect("a file");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
    let keys = certificates.path().join("keys.json");
    std::fs::write(&keys, KEYS).expect("a file");
    let secure = free_port();
    let gateway = Gateway::start(&format!(
        "listen:
  - {{ address: OWN }}
  - {{ address: \"127.0.0.1:{secure}\", tls: {{ cert: {cert}, key: {key} }} }}
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
        keys = keys.display(),
        cert = cert.display(),
        key = key.display(),
    ))
    .await;

    let target =
        if tls { format!("localhost:{secure}") } else { gateway.url.replace("http://", "") };
    let mut client = Command::new(pip.join("bin/python"));
    client.arg(&script).args(["call", &target, "shapes,large,errors,deadlines,many"]);
    if tls {
        client.env("CA", &cert);
    }
    let output = tokio::task::spawn_blocking(move || client.output()).await.expect("it runs");
    let output = output.expect("a program");
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{failed}");
    drop((service, gateway));
}

/// A public key, of which no test has the private one.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"1","alg":"ES256","use":"sig",
"x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
