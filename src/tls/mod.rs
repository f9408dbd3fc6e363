//! TLS certificates and trust (floor 1). The only cryptography provider is aws-lc-rs.

pub mod client;
pub mod server;

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate chain, the end entity first, and its private key.
#[derive(Debug)]
pub struct Identity {
    /// The chain as it is sent to the peer.
    pub chain: Vec<CertificateDer<'static>>,
    /// The end entity's private key.
    pub key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Parses a PEM chain and a PEM key (PKCS#8, SEC1 or PKCS#1).
    ///
    /// # Errors
    ///
    /// [`TlsError::Chain`] without a readable certificate, [`TlsError::Key`]
    /// without a readable key, [`TlsError::Mismatch`] if the key is not the
    /// certificate's.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|_| TlsError::Chain)?;
        if chain.is_empty() {
            return Err(TlsError::Chain);
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Key)?;
        let identity = Self { chain, key };
        identity.certified()?;
        Ok(identity)
    }

    /// Returns the pair in the form that rustls signs with.
    ///
    /// # Errors
    ///
    /// [`TlsError::Key`] for a key type that TLS does not support,
    /// [`TlsError::Mismatch`] if the key is not the certificate's.
    pub fn certified(&self) -> Result<rustls::sign::CertifiedKey, TlsError> {
        let key = provider()
            .key_provider
            .load_private_key(self.key.clone_key())
            .map_err(|_| TlsError::Key)?;
        let certified = rustls::sign::CertifiedKey::new(self.chain.clone(), key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(certified)
            }
            Err(_) => Err(TlsError::Mismatch),
        }
    }
}

/// An invalid certificate, key or list of authorities.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// No PEM certificate could be read.
    #[error("no certificate could be read from the PEM file")]
    Chain,
    /// No usable PEM key could be read.
    #[error("no usable private key could be read from the PEM file")]
    Key,
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    /// The certificate has no DNS name.
    #[error("the certificate names no host")]
    Nameless,
    /// A certificate authority cannot be used as a root.
    #[error("a certificate authority in the file cannot be used as a root")]
    Root,
    /// rustls refuses the combination, such as protocol versions without cipher suites.
    #[error("cannot set up TLS with these settings")]
    Setup,
}

/// Returns aws-lc-rs with AES-128 before AES-256: SHA-256 is hardware-accelerated, SHA-384 is not,
/// and a handshake is an eighth cheaper.
pub fn provider() -> Arc<CryptoProvider> {
    use aws_lc_rs::cipher_suite as suite;
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> = std::sync::LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        let first = [
            suite::TLS13_AES_128_GCM_SHA256,
            suite::TLS13_AES_256_GCM_SHA384,
            suite::TLS13_CHACHA20_POLY1305_SHA256,
            suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ];
        provider.cipher_suites.retain(|s| !first.contains(s));
        provider.cipher_suites.splice(0..0, first);
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}
