//! TLS server configuration: certificates by SNI (RFC 6066 §3), TLS 1.2 and 1.3, resumption.

use std::collections::HashMap;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, RootCertStore, ServerConfig};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Identity, TlsError, provider};
use crate::base::clock::Timestamp;

/// The options of a listener's TLS.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerOptions<'a> {
    /// Refuses TLS 1.2.
    pub only_tls13: bool,
    /// Lets clients resume a session and skip most of the handshake.
    pub session_tickets: bool,
    /// Offers HTTP/2 by ALPN (RFC 7301).
    pub http2: bool,
    /// Requests client certificates. Sessions are never resumed then, since that would skip the verification (compare
    /// CVE-2025-23419).
    pub clients: Option<&'a ClientVerification>,
}

/// Returns a listener's configuration: `certificates` are selected by the server name (SNI), the first is the default.
///
/// # Errors
///
/// [`TlsError`] if a certificate cannot be used, or none is given.
pub fn config(
    certificates: &[Identity],
    options: ServerOptions<'_>,
) -> Result<ServerConfig, TlsError> {
    let ServerOptions { only_tls13, session_tickets, http2, clients } = options;
    let versions: &[_] = if only_tls13 {
        &[&rustls::version::TLS13]
    } else {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    };
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|_| TlsError::Setup)?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(CertificateResolver::new(certificates)?));
    config.ignore_client_order = true;
    config.alpn_protocols =
        if http2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    if session_tickets && clients.is_none() {
        config.ticketer =
            rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|_| TlsError::Setup)?;
    } else {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// The verification of client certificates (RFC 8446 §4.3.2).
#[derive(Clone, Debug)]
pub struct ClientVerification {
    authorities: Arc<RootCertStore>,
    /// Whether a client without a certificate is refused. An invalid one is refused in any case.
    pub required: bool,
}

impl ClientVerification {
    /// Trusts client certificates of the authorities in `pem`, and of no others.
    ///
    /// # Errors
    ///
    /// [`TlsError::Root`] if an entry is not an authority, or there is none.
    pub fn from_pem(pem: &[u8], required: bool) -> Result<Self, TlsError> {
        let mut authorities = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            authorities
                .add(certificate.map_err(|_| TlsError::Root)?)
                .map_err(|_| TlsError::Root)?;
        }
        if authorities.is_empty() {
            return Err(TlsError::Root);
        }
        let clients = Self { authorities: Arc::new(authorities), required };
        clients.verifier()?;
        Ok(clients)
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let builder =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.authorities), provider());
        let builder = if self.required { builder } else { builder.allow_unauthenticated() };
        builder.build().map_err(|_| TlsError::Root)
    }
}

/// The names and the expiry of a certificate.
#[derive(Debug, Eq, PartialEq)]
pub struct CertificateNames {
    /// DNS names in lower case; `*.` at the start stands for one label.
    pub dns: Vec<String>,
    /// When the certificate expires.
    pub expires: Timestamp,
}

impl CertificateNames {
    /// Reads the names of a chain's first certificate.
    ///
    /// # Errors
    ///
    /// [`TlsError::Chain`] if it cannot be read.
    pub fn of(identity: &Identity) -> Result<Self, TlsError> {
        let first = identity.chain.first().ok_or(TlsError::Chain)?;
        let (_, certificate) = X509Certificate::from_der(first).map_err(|_| TlsError::Chain)?;
        let alternative = certificate.subject_alternative_name().ok().flatten();
        let dns = alternative
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
                _ => None,
            })
            .collect();
        let expires = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Ok(Self { dns, expires: Timestamp::from_secs(expires) })
    }
}

/// Generates a certificate for `localhost`, for trials. Browsers warn about it.
///
/// # Errors
///
/// [`TlsError::Setup`] if the key cannot be generated.
pub fn self_signed() -> Result<Identity, TlsError> {
    let names = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    let made = rcgen::generate_simple_self_signed(names).map_err(|_| TlsError::Setup)?;
    let key = made.signing_key.serialize_pem();
    Identity::from_pem(made.cert.pem().as_bytes(), key.as_bytes())
}

/// Selects a listener's certificate by server name, and among those of one name by what the client can verify: an
/// ECDSA and an RSA certificate for one name both serve. In doubt the first of the configuration is selected.
#[derive(Debug)]
struct CertificateResolver {
    exact: HashMap<String, Candidates>,
    /// By the part after `*`, including the dot.
    wildcard: HashMap<String, Candidates>,
    /// For clients that name no host, or an unknown one: the first certificate, and those of the same names.
    first: Candidates,
}

/// The certificates of one name, in the order of the configuration; at least one.
type Candidates = Vec<Arc<CertifiedKey>>;

impl CertificateResolver {
    fn new(identities: &[Identity]) -> Result<Self, TlsError> {
        let mut exact = HashMap::<_, Candidates>::new();
        let mut wildcard = HashMap::<_, Candidates>::new();
        let mut first: Option<(Candidates, Vec<String>)> = None;
        for identity in identities {
            let certified = Arc::new(identity.certified()?);
            let mut names = CertificateNames::of(identity)?.dns;
            names.sort_unstable();
            for name in &names {
                let candidates = match name.strip_prefix('*') {
                    Some(parent) => wildcard.entry(parent.to_owned()).or_default(),
                    None => exact.entry(name.clone()).or_default(),
                };
                candidates.push(Arc::clone(&certified));
            }
            match &mut first {
                None => first = Some((vec![certified], names)),
                Some((candidates, of)) if *of == names => candidates.push(certified),
                Some(_) => {}
            }
        }
        let (first, _) = first.ok_or(TlsError::Chain)?;
        Ok(Self { exact, wildcard, first })
    }

    fn candidates(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let Some(name) = name else { return &self.first };
        let name = name.to_ascii_lowercase();
        let parent = || name.find('.').and_then(|dot| self.wildcard.get(&name[dot..]));
        self.exact.get(&name).or_else(parent).unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for CertificateResolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = self.candidates(hello.server_name());
        let verifiable = || candidates.iter().find(|certified| is_verifiable(certified, &hello));
        let chosen = match candidates {
            [only] => only,
            _ => verifiable().or(candidates.first())?,
        };
        Some(Arc::clone(chosen))
    }
}

/// Whether the client accepts signatures of this key: by its signature schemes, and before TLS 1.3 also by its cipher
/// suites, which name the kind of key (RFC 8422 §2, RFC 8446 §4.2.3).
fn is_verifiable(certified: &CertifiedKey, hello: &ClientHello<'_>) -> bool {
    let algorithm = certified.key.algorithm();
    let provider = provider();
    let fits = |suite: &CipherSuite| {
        let mut own = provider.cipher_suites.iter();
        own.any(|own| own.suite() == *suite && own.usable_for_signature_algorithm(algorithm))
    };
    certified.key.choose_scheme(hello.signature_schemes()).is_some()
        && hello.cipher_suites().iter().any(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_name_selects_the_certificate() {
        let shop = identity(&["shop.example.com"]);
        let wild = identity(&["*.example.com"]);
        let certificates = CertificateResolver::new(&[shop, wild]).expect("two certificates");
        let chosen = |name| certificates.candidates(name)[0].cert[0].clone();
        let (shop, wild) = (
            certificates.first[0].cert[0].clone(),
            certificates.wildcard[".example.com"][0].cert[0].clone(),
        );

        assert_eq!(chosen(Some("shop.example.com")), shop);
        assert_eq!(chosen(Some("SHOP.example.com")), shop);
        assert_eq!(chosen(Some("api.example.com")), wild);
        assert_eq!(chosen(Some("a.b.example.com")), shop, "a wildcard stands for one label");
        assert_eq!(chosen(None), shop);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (ours, other) = (pem(&["a.example"]), pem(&["b.example"]));

        assert_eq!(
            Identity::from_pem(ours.0.as_bytes(), other.1.as_bytes()).err(),
            Some(TlsError::Mismatch)
        );
    }

    #[test]
    fn the_self_signed_certificate_is_for_localhost() {
        let names = CertificateNames::of(&self_signed().expect("a certificate")).expect("readable");

        assert_eq!(names.dns, ["localhost"]);
    }

    fn identity(names: &[&str]) -> Identity {
        let (chain, key) = pem(names);
        Identity::from_pem(chain.as_bytes(), key.as_bytes()).expect("a pair")
    }

    fn pem(names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }
}
