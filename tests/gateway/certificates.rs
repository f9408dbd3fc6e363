//! Clients that show a certificate, and tokens that are good with one certificate only (RFC 8705).

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use northgate::dev::issuer::Mint;
use rcgen::{CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned,
    SupportedProtocolVersion, version,
};
use serde_json::{Value, json};

use crate::support::{Answer, Client, Gateway, Issuer, Upstream, eventually, start_issuer};

#[test]
fn required_client_certificates_must_be_of_the_authority() {
    let world = World::start("required");
    let stranger = Authority::new("stranger");

    for versions in [&[&version::TLS13][..], &[&version::TLS12]] {
        let ask = |identity: Option<&Identity>| {
            world
                .ask_with(&world.client(versions, identity), "/open", "")
                .map(|answer| answer.status)
        };
        assert_eq!(ask(Some(&world.authority.client("alice", 2100))), Some(200));
        assert_eq!(ask(None), None);
        assert_eq!(ask(Some(&world.authority.client("late", 2020))), None);
        assert_eq!(ask(Some(&stranger.client("alice", 2100))), None);
        assert_eq!(ask(Some(&Identity::self_signed("alice"))), None);
        assert_eq!(ask(Some(&world.authority.server("alice"))), None, "a server's certificate");
    }
    assert_eq!(world.service.seen().len(), 2);
    eventually("the failures' count", || {
        let text = world.gateway.metrics.render();
        let line = |line: &&str| {
            line.starts_with("northgate_tls_handshake_failures_total")
                && line.contains(r#"reason="client_certificate""#)
        };
        text.lines().find(line).is_some_and(|line| line.ends_with(" 10"))
    });
}

#[test]
fn optional_client_certificates_may_be_absent_but_not_invalid() {
    let world = World::start("optional");
    let ask =
        |identity: Option<&Identity>| world.ask(identity, "/open", "").map(|answer| answer.status);

    assert_eq!(ask(None), Some(200));
    assert_eq!(ask(Some(&world.authority.client("alice", 2100))), Some(200));
    assert_eq!(ask(Some(&Authority::new("stranger").client("alice", 2100))), None);
    assert_eq!(ask(Some(&world.authority.client("late", 2020))), None);
}

#[test]
fn a_token_that_is_bound_to_a_certificate_is_good_with_that_one_alone() {
    let world = World::start("optional");
    let (alice, mallory) =
        (world.authority.client("alice", 2100), world.authority.client("mallory", 2100));
    let (token, unbound) = (world.bound_to(&alice), world.issuer.jwt());
    let of_key = world.mint(json!({ "jkt": alice.thumbprint() }));
    let of_both = world.mint(json!({ "x5t#S256": alice.thumbprint(), "jkt": alice.thumbprint() }));
    let in_lower_case = world.mint(json!({ "x5t#s256": alice.thumbprint() }));

    // Twice: the second time the verdict on the token is known.
    for _ in 0..2 {
        for path in ["/mtls", "/any"] {
            let ask = |identity: Option<&Identity>, token: &str| {
                let answer = world.ask(identity, path, &bearer(token)).expect("a handshake");
                if answer.status != 200 {
                    let challenge = answer.field("www-authenticate").expect("a challenge");
                    assert!(challenge.contains(r#"error="invalid_token""#), "{challenge}");
                }
                answer.status
            };
            assert_eq!(ask(Some(&alice), &token), 200, "{path}");
            assert_eq!(ask(Some(&mallory), &token), 401, "{path}: another's certificate");
            assert_eq!(ask(None, &token), 401, "{path}: no certificate");
            assert_eq!(ask(Some(&alice), &of_key), 401, "{path}: bound to a key");
            assert_eq!(ask(Some(&alice), &of_both), 401, "{path}: bound to two things");
            assert_eq!(ask(Some(&alice), &in_lower_case), 401, "{path}: bound to the unknown");
            let unbound_is_good = if path == "/mtls" { 401 } else { 200 };
            assert_eq!(ask(Some(&alice), &unbound), unbound_is_good, "{path}: bound to nothing");
            // In the clear nothing can be proved.
            let plain = world.plain(path, &bearer(&token));
            assert_eq!(plain.status, 401, "{path}: in the clear");
        }
    }
    // Whatever a client says about certificates in fields is no certificate, and reaches no service.
    let claims = format!(
        "{}X-Forwarded-Client-Cert: Hash={}\r\nX-Client-Cert: x\r\n",
        bearer(&token),
        alice.thumbprint()
    );
    assert_eq!(world.ask(None, "/any", &claims).expect("a handshake").status, 401);
    assert_eq!(world.ask(Some(&alice), "/any", &claims).expect("a handshake").status, 200);
    let seen = world.service.seen().pop().expect("the request");
    assert!(!seen.head.to_lowercase().contains("client-cert"), "{}", seen.head);
    assert_eq!(seen.field("authorization"), Some(&*format!("Bearer {token}")));
    // A proof with a key is no way around the certificate.
    let dpop = format!("Authorization: DPoP {token}\r\nDPoP: x\r\n");
    assert_eq!(world.ask(Some(&alice), "/mtls", &dpop).expect("a handshake").status, 401);
}

/// CVE-2025-23419
#[test]
fn no_session_is_resumed_where_certificates_are_shown() {
    for mode in ["required", "optional"] {
        let world = World::start(mode);
        let alice = world.authority.client("alice", 2100);
        for versions in [&[&version::TLS13][..], &[&version::TLS12]] {
            // One configuration, and with it one memory of sessions.
            let config = world.client(versions, Some(&alice));
            for _ in 0..2 {
                let mut client = world.connect(&config).expect("a handshake");
                client.send(request("/mtls", &bearer(&world.bound_to(&alice))));
                assert_eq!(client.answer().status, 200);
                assert_ne!(client.stream.conn.handshake_kind(), Some(HandshakeKind::Resumed));
            }
        }
    }
}

#[test]
fn another_authority_holds_from_the_reload_on() {
    let world = World::start("required");
    let (old, other) = (world.authority.client("alice", 2100), Authority::new("other"));
    let config = world.client(&[&version::TLS13], Some(&old));
    assert_eq!(world.ask_with(&config, "/open", "").expect("a handshake").status, 200);

    std::fs::write(world.directory.join("ca.pem"), other.pem()).expect("a file");
    world.gateway.replace(&world.text).expect("it loads");

    assert!(world.ask_with(&config, "/open", "").is_none());
    let new = other.client("alice", 2100);
    assert_eq!(world.ask(Some(&new), "/open", "").expect("a handshake").status, 200);
}

#[test]
fn the_gateways_metadata_says_that_certificates_are_taken() {
    let world = World::start("optional");

    let document = world.plain("/.well-known/oauth-protected-resource/mtls", "");

    let document: Value = serde_json::from_slice(&document.body).expect("JSON");
    assert_eq!(document["tls_client_certificate_bound_access_tokens"], true);
    assert_eq!(document["dpop_bound_access_tokens_required"], false);
}

/// A gateway with one listener over TLS that asks for certificates, and one in the clear.
struct World {
    gateway: Gateway,
    service: Upstream,
    issuer: Issuer,
    authority: Authority,
    server: CertificateDer<'static>,
    directory: std::path::PathBuf,
    text: String,
}

impl World {
    fn start(client_auth: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: String| {
            std::fs::write(directory.path().join(name), text).expect("a file");
        };
        let authority = Authority::new("clients");
        let made = rcgen::generate_simple_self_signed(["api.test".to_owned()]).expect("a key");
        write("tls.pem", made.cert.pem());
        write("tls-key.pem", made.signing_key.serialize_pem());
        write("ca.pem", authority.pem());
        let (issuer, service) = (start_issuer(), Upstream::polite());
        let text = format!(
            "version: 1\nlisten:\n  - {{ address: \"127.0.0.1:0\", tls: {{ cert: tls.pem, key: tls-key.pem, \
             client_ca: ca.pem, client_auth: {client_auth} }} }}\n  - {{ address: \"127.0.0.1:0\" }}\n\
             admin: {{ listen: \"127.0.0.1:0\" }}\n\
             server: {{ workers: 1, public_url: \"https://api.test\" }}\n\
             {}upstreams:\n  service: {{ targets: [\"{}\"] }}\nroutes:\n\
             \x20 - {{ id: open, path: /open, upstream: service, auth: none }}\n\
             \x20 - {{ id: mtls, path: /mtls, upstream: service, auth: {{ jwt: main, mtls: true }} }}\n\
             \x20 - {{ id: any, path: /any, upstream: service, auth: {{ jwt: main }} }}\n",
            issuer.settings(""),
            service.url()
        );
        let path = Path::new(directory.path()).to_owned();
        let gateway = Gateway::within(directory, issuer.clock.clone(), &text).ready();
        let server = made.cert.der().clone();
        Self { gateway, service, issuer, authority, server, directory: path, text }
    }

    fn mint(&self, cnf: Value) -> String {
        self.issuer.mint(&Mint::client("api").claim("cnf", cnf))
    }

    /// A signed token that is bound to a certificate.
    fn bound_to(&self, identity: &Identity) -> String {
        self.mint(json!({ "x5t#S256": identity.thumbprint() }))
    }

    /// A client that shows a certificate, or none.
    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Identity>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.server.clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        Arc::new(match identity {
            Some(Identity { certificate, key }) => builder
                .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
                .expect("a pair"),
            None => builder.with_no_client_auth(),
        })
    }

    fn connect(
        &self,
        config: &Arc<ClientConfig>,
    ) -> Option<Client<StreamOwned<ClientConnection, TcpStream>>> {
        let name = ServerName::try_from("api.test").expect("a name");
        let connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
        let mut stream = StreamOwned::new(connection, self.gateway.connect().stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).ok()?;
        }
        Some(Client::over(stream))
    }

    /// The answer to one request; `None` if the gateway does not let it come so far. In TLS 1.3 a
    /// client learns only after its handshake what the server thinks of its certificate.
    fn ask_with(&self, config: &Arc<ClientConfig>, path: &str, fields: &str) -> Option<Answer> {
        let mut client = self.connect(config)?;
        client.try_send(request(path, fields)).ok()?;
        client.try_answer()
    }

    fn ask(&self, identity: Option<&Identity>, path: &str, fields: &str) -> Option<Answer> {
        self.ask_with(&self.client(&[&version::TLS13], identity), path, fields)
    }

    /// The answer to one request in the clear.
    fn plain(&self, path: &str, fields: &str) -> Answer {
        let mut client = Client::connect(self.gateway.launched.server.addresses()[1]);
        client.send(request(path, fields));
        client.answer()
    }
}

/// A certificate authority for clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn client(&self, name: &str, until: i32) -> Identity {
        self.identity(name, until, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn server(&self, name: &str) -> Identity {
        self.identity(name, 2100, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn identity(&self, name: &str, until: i32, purpose: ExtendedKeyUsagePurpose) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![purpose];
        let key = KeyPair::generate().expect("a key");
        let made = params.signed_by(&key, &self.0).expect("a certificate");
        Identity::of(made.der().clone(), &key)
    }
}

/// A certificate and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn of(certificate: CertificateDer<'static>, key: &KeyPair) -> Self {
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        Self { certificate, key }
    }

    fn self_signed(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a key");
        Self::of(made.cert.der().clone(), &made.signing_key)
    }

    fn thumbprint(&self) -> String {
        URL_SAFE_NO_PAD.encode(digest(&SHA256, &self.certificate))
    }
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: api.test\r\nConnection: close\r\n{fields}\r\n")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}
