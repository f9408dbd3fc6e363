//! The gateway as a client of its issuer, known by the certificate it shows (RFC 8705 §2.1).

use core::net::SocketAddr;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rcgen::CertifiedKey;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::support::{Gateway, Upstream, noon};

#[test]
fn the_gateway_shows_its_certificate_where_that_is_how_it_proves_itself() {
    let world = World::start("auth: tls_client_auth, cert: gateway.pem, key: gateway-key.pem");

    assert_eq!(world.ask(), 200);

    let heard = world.issuer.heard();
    let (certificate, request) = heard.first().expect("a question");
    assert_eq!(certificate, &world.certificate);
    assert!(request.ends_with("client_id=gateway"), "{request}");
    assert!(!request.to_lowercase().contains("authorization:"), "{request}");
}

#[test]
fn without_its_client_certificate_the_gateway_admits_no_caller() {
    let world = World::start("secret: { file: secret }");

    assert_eq!(world.ask(), 503);

    assert!(world.issuer.heard().is_empty());
    assert!(world.service.seen().is_empty());
}

/// A gateway, and an issuer over TLS that answers no client without the gateway's certificate.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
    certificate: CertificateDer<'static>,
}

impl World {
    fn start(client: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let pair = |name: &str| {
            rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate")
        };
        let (server, ours) = (pair("localhost"), pair("gateway"));
        write(directory.path(), "ca.pem", &server.cert.pem());
        write(directory.path(), "gateway.pem", &ours.cert.pem());
        write(directory.path(), "gateway-key.pem", &ours.signing_key.serialize_pem());
        write(directory.path(), "secret", "a-secret");
        let issuer = Issuer::start(&server, ours.cert.der());
        let service = Upstream::polite();
        let url = format!("https://localhost:{}", issuer.address.port());
        let text = format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\" }}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
             server: {{ workers: 1 }}\nissuers:\n  main:\n    issuer: \"{url}\"\n    audience: api\n\
             \x20   discovery: off\n    ca_file: ca.pem\n    client: {{ id: gateway, {client} }}\n\
             \x20   endpoints: {{ introspection: \"{url}/introspect\" }}\n\
             upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
             \x20 - {{ id: reference, path: /, upstream: service, auth: {{ introspection: main }} }}\n",
            service.url()
        );
        let gateway = Gateway::within(directory, noon(), &text);
        Self { gateway, service, issuer, certificate: ours.cert.der().clone() }
    }

    fn ask(&self) -> u16 {
        self.gateway.get("/", "Authorization: Bearer a-token\r\n").status
    }
}

/// An introspection endpoint that says yes to everything, but only to whom it knows.
struct Issuer {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// The certificate that was shown, and the request as it came.
type Heard = (CertificateDer<'static>, String);

impl Issuer {
    fn start(
        CertifiedKey { cert, signing_key }: &CertifiedKey<rcgen::KeyPair>,
        client: &CertificateDer<'static>,
    ) -> Self {
        let provider = Arc::new(default_provider());
        let mut clients = RootCertStore::empty();
        clients.add(client.clone()).expect("a root");
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(clients), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(clients.build().expect("a verifier"))
            .with_single_cert(
                vec![cert.der().clone()],
                PrivateKeyDer::try_from(signing_key.serialize_der()).expect("a key"),
            )
            .expect("a pair");
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = socket.local_addr().expect("an address");
        let heard = Arc::new(Mutex::default());
        let (config, hears) = (Arc::new(config), Arc::clone(&heard));
        thread::spawn(move || {
            for stream in socket.incoming().map_while(Result::ok) {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a server");
                hear(StreamOwned::new(connection, stream), &hears);
            }
        });
        Self { address, heard }
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers one request, if it comes.
fn hear(mut stream: StreamOwned<ServerConnection, std::net::TcpStream>, heard: &Mutex<Vec<Heard>>) {
    let (mut request, mut bytes) = (String::new(), [0; 4096]);
    while !request.ends_with("client_id=gateway") {
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(count) => request.push_str(&String::from_utf8_lossy(&bytes[..count])),
        }
    }
    let certificate =
        stream.conn.peer_certificates().expect("a certificate")[0].clone().into_owned();
    heard.lock().unwrap_or_else(PoisonError::into_inner).push((certificate, request));
    let body = r#"{"active":true,"aud":"api","sub":"alice"}"#;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    // Whether it arrives is for the gateway to say.
    let _ = stream.write_all(answer.as_bytes()).and_then(|()| stream.flush());
}

fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("a file");
}
