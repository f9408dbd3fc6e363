//! TLS client configuration: trusted authorities and the client certificate.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::{Identity, TlsError, provider};

/// Returns a client configuration that verifies every server.
///
/// It trusts the system's authorities, Mozilla's, and those in `extra_ca`, PEM
/// certificates of a private authority. With an `identity` it presents a client certificate
/// on request (mutual TLS). Verification cannot be
/// disabled.
///
/// # Errors
///
/// [`TlsError::Root`] if `extra_ca` holds an entry that is not an authority.
pub fn config(
    extra_ca: Option<&[u8]>,
    identity: Option<Identity>,
) -> Result<ClientConfig, TlsError> {
    let mut roots = public_roots();
    if let Some(pem) = extra_ca {
        let mut added = 0;
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate.map_err(|_| TlsError::Root)?).map_err(|_| TlsError::Root)?;
            added += 1;
        }
        if added == 0 {
            return Err(TlsError::Root);
        }
    }
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|_| TlsError::Setup)?
        .with_root_certificates(roots);
    match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain, identity.key)
            .map_err(|_| TlsError::Mismatch),
        None => Ok(builder.with_no_client_auth()),
    }
}

/// Returns the system's authorities and Mozilla's: the first for corporate ones, the second for images without any.
fn public_roots() -> RootCertStore {
    static ROOTS: std::sync::LazyLock<Arc<RootCertStore>> = std::sync::LazyLock::new(|| {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    (**ROOTS).clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_authority_is_refused() {
        assert_eq!(config(Some(b"no certificate here"), None).err(), Some(TlsError::Root));
    }

    #[test]
    fn public_authorities_are_trusted_by_default() {
        assert!(config(None, None).is_ok());
        assert!(public_roots().len() > 50);
    }
}
