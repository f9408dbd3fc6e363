//! TLS as clients meet it: names, versions, protocols, resumption (security.md rule 38).

use std::io::Read;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use rcgen::{CertificateParams, KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, ProtocolVersion,
    RootCertStore, SignatureScheme, StreamOwned, SupportedProtocolVersion, version,
};

use crate::support::{Client, Gateway, Upstream, eventually, noon, open};

#[test]
fn the_name_that_a_client_asks_for_chooses_the_certificate() {
    let world = World::start("");

    for (name, index) in [("a.test", 0), ("b.test", 1)] {
        let client = world.connect(name, &world.config(&[&version::TLS13], &[])).expect("trust");
        let presented = client.stream.conn.peer_certificates().expect("a certificate")[0].clone();
        assert_eq!(presented, world.certificates[index], "{name}");
    }
}

/// Old clients verify RSA alone, and new ones need not be slowed down by it.
#[test]
fn of_two_certificates_for_one_name_the_one_that_a_client_can_verify_is_presented() {
    use rustls::CipherSuite as Suite;
    let directory = tempfile::tempdir().expect("a directory");
    let certificates =
        [KeyPair::generate(), KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)].map(
            |key| {
                let key = key.expect("a key");
                let params = CertificateParams::new(vec!["a.test".to_owned()]).expect("parameters");
                (params.self_signed(&key).expect("a certificate"), key)
            },
        );
    for (name, (certificate, key)) in ["a", "b"].iter().zip(&certificates) {
        let write = |ending: &str, text: String| {
            std::fs::write(directory.path().join(format!("{name}{ending}")), text).expect("a file");
        };
        write(".pem", certificate.pem());
        write("-key.pem", key.serialize_pem());
    }
    let certificates: Vec<_> = certificates.iter().map(|(made, _)| made.der().clone()).collect();
    let service = Upstream::polite();
    let text = format!(
        "version: 1\nlisten: [{{ address: \"127.0.0.1:0\", tls: {{ cert: [a.pem, b.pem], \
         key: [a-key.pem, b-key.pem] }} }}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\nserver: {{ workers: 1 }}\n{}",
        open(&service)
    );
    let gateway = Gateway::within(directory, noon(), &text);
    let world = World { gateway, service, certificates };

    for name in ["a.test", "unknown.test"] {
        for (suite, versions, index) in [
            (None, &[&version::TLS13][..], Some(0)),
            (None, &[&version::TLS12], Some(0)),
            (Some(Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), &[&version::TLS12], Some(0)),
            (Some(Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256), &[&version::TLS12], Some(1)),
        ] {
            let mut provider = default_provider();
            provider.cipher_suites.retain(|own| suite.is_none_or(|suite| own.suite() == suite));
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(world.certificates.clone());
            let seen = Arc::new(Seen::default());
            let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(versions)
                .expect("versions")
                .with_root_certificates(roots)
                .with_no_client_auth();
            config.dangerous().set_certificate_verifier(Arc::clone(&seen) as _);
            let client = world.connect(name, &Arc::new(config));
            drop(client);
            let presented = seen.0.lock().expect("no panic").clone();
            assert_eq!(
                presented,
                index.map(|index: usize| world.certificates[index].clone()),
                "{name} {suite:?}"
            );
        }
    }
}

/// Notes the certificate that a server presents, and accepts it.
#[derive(Debug, Default)]
struct Seen(Mutex<Option<CertificateDer<'static>>>);

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().expect("no panic") = Some(certificate.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_1_2_only_where_it_may_be() {
    let world = World::start("");
    for (protocol, spoken) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let mut client = world.connect("a.test", &world.config(&[protocol], &[])).expect("trust");
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.stream.conn.protocol_version(), Some(spoken));
    }
    let seen = world.service.seen();
    assert!(seen.iter().all(|seen| seen.field("x-forwarded-proto") == Some("https")));

    let strict = World::start(", min_version: \"1.3\"");
    assert!(strict.connect("a.test", &strict.config(&[&version::TLS12], &[])).is_none());
    assert!(strict.connect("a.test", &strict.config(&[&version::TLS13], &[])).is_some());
}

#[test]
fn http_2_is_offered_and_the_client_chooses() {
    let world = World::start("");

    for (offered, chosen) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])),
        (&[&b"http/1.1"[..]][..], Some(&b"http/1.1"[..])),
        (&[][..], None),
    ] {
        let config = world.config(&[&version::TLS13], offered);
        let client = world.connect("a.test", &config).expect("trust");
        assert_eq!(client.stream.conn.alpn_protocol(), chosen);
    }
    // RFC 7301 §3.2: what cannot be spoken is no reason to speak something else.
    let config = world.config(&[&version::TLS13], &[b"spdy/3"]);
    assert!(world.connect("a.test", &config).is_none());
}

#[test]
fn a_session_can_be_resumed_unless_that_is_switched_off() {
    for (settings, second) in
        [("", HandshakeKind::Resumed), (", session_tickets: false", HandshakeKind::Full)]
    {
        let world = World::start(settings);
        let config = world.config(&[&version::TLS13], &[]);
        let kinds = [(); 2].map(|()| {
            let mut client = world.connect("a.test", &config).expect("trust");
            client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n");
            assert_eq!(client.answer().status, 200);
            client.stream.conn.handshake_kind()
        });
        let first = match kinds[0] {
            // A client that guessed the server's key share wrongly is asked again.
            Some(HandshakeKind::FullWithHelloRetryRequest) => Some(HandshakeKind::Full),
            kind => kind,
        };
        assert_eq!((first, kinds[1]), (Some(HandshakeKind::Full), Some(second)), "{settings}");
    }
}

#[test]
fn bytes_that_are_not_tls_are_not_a_request() {
    let world = World::start("");
    let mut client = world.gateway.connect();

    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");

    let answer = client.rest();
    assert!(!answer.starts_with(b"HTTP/"), "{:?}", String::from_utf8_lossy(&answer));
    assert!(world.service.seen().is_empty());
    eventually("the failure's count", || {
        world.gateway.metrics.render().lines().any(|line| {
            line.starts_with("northgate_tls_handshake")
                && line.contains("not_tls")
                && line.ends_with(" 1")
        })
    });
}

#[test]
fn a_handshake_that_does_not_come_to_its_end_closes_the_connection() {
    let world = World::start("");
    let mut silent = world.gateway.connect();
    let mut half = world.gateway.connect();
    half.send([22, 3, 1, 0, 200, 1, 0, 0, 196]);

    assert!(silent.is_closed());
    let mut rest = Vec::new();
    let _ = half.stream.read_to_end(&mut rest);
    assert!(world.service.seen().is_empty());
}

struct World {
    gateway: Gateway,
    service: Upstream,
    certificates: Vec<CertificateDer<'static>>,
}

impl World {
    /// A gateway with two certificates, for `a.test` and `b.test`; `more` stands behind them.
    fn start(more: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let certificates = ["a", "b"].map(|name| {
            let made = rcgen::generate_simple_self_signed([format!("{name}.test")]).expect("a key");
            let write = |ending: &str, text: String| {
                std::fs::write(directory.path().join(format!("{name}{ending}")), text)
                    .expect("a file");
            };
            write(".pem", made.cert.pem());
            write("-key.pem", made.signing_key.serialize_pem());
            made.cert.der().clone()
        });
        let service = Upstream::polite();
        let text = format!(
            "version: 1\nlisten: [{{ address: \"127.0.0.1:0\", tls: {{ cert: [a.pem, b.pem], \
             key: [a-key.pem, b-key.pem]{more} }} }}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\n\
             server: {{ workers: 1, header_timeout: 1s }}\n{}",
            open(&service)
        );
        let gateway = Gateway::within(directory, noon(), &text);
        Self { gateway, service, certificates: certificates.into() }
    }

    /// A client that trusts the two.
    fn config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&[u8]],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates.clone());
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    }

    /// A connection after its handshake; `None` if that failed.
    fn connect(
        &self,
        name: &'static str,
        config: &Arc<ClientConfig>,
    ) -> Option<Client<StreamOwned<ClientConnection, TcpStream>>> {
        let name = ServerName::try_from(name).expect("a name");
        let connection = ClientConnection::new(Arc::clone(config), name).expect("a client");
        let mut stream = StreamOwned::new(connection, self.gateway.connect().stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).ok()?;
        }
        Some(Client::over(stream))
    }
}
