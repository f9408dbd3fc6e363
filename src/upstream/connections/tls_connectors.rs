//! The TLS connectors of an upstream's targets: authorities, identity, and the protocols that ALPN offers.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::tls::{self, Identity, TlsError};
use crate::upstream::settings::{Http2, Scheme, Settings, Target};

/// The TLS connectors of an upstream, by the protocols that ALPN offers (RFC 7301).
#[derive(Clone)]
pub(in crate::upstream) struct Connectors {
    http1: TlsConnector,
    /// The connector that offers HTTP/2 as well, or HTTP/2 alone.
    http2: TlsConnector,
}

impl Connectors {
    /// Returns the connector for an offer.
    pub(in crate::upstream) const fn offering(&self, offer: Offer) -> &TlsConnector {
        match offer {
            Offer::Http1 => &self.http1,
            Offer::Http2 => &self.http2,
        }
    }
}

/// The connectors of a target, and the name that its certificate must have.
pub(in crate::upstream) type TlsParts = (Connectors, ServerName<'static>);

/// The protocols that a connection may speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::upstream) enum Offer {
    /// HTTP/1.1 alone, for upgrades and for endpoints that have selected it.
    Http1,
    /// HTTP/2 as the settings of the upstream say: the offer of requests, and so of checks.
    Http2,
}

/// Creates the TLS connectors for these targets; `None` if none of them uses https.
pub(in crate::upstream) fn connectors(settings: &Settings) -> Result<Option<Connectors>, TlsError> {
    if settings.targets.iter().all(|target| target.address.scheme == Scheme::Http) {
        return Ok(None);
    }
    let identity = settings
        .tls
        .identity
        .as_ref()
        .map(|(chain, key)| Identity::from_pem(chain, key))
        .transpose()?;
    let mut config = tls::client::config(settings.tls.ca.as_deref(), identity)?;
    let mut offer = |protocols: &[&[u8]]| {
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config.clone()))
    };
    Ok(Some(Connectors {
        http1: offer(&[HTTP1]),
        http2: offer(match settings.http2 {
            Http2::Auto => &[HTTP2, HTTP1],
            Http2::Always => &[HTTP2],
            Http2::Never => &[HTTP1],
        }),
    }))
}

/// Returns the name that a target's certificate must have.
pub(in crate::upstream) fn server_name(
    settings: &Settings,
    target: &Target,
) -> Result<ServerName<'static>, TlsError> {
    let name = settings.tls.server_name.as_deref();
    let name = name.unwrap_or_else(|| target.address.certificate_name());
    ServerName::try_from(name.to_owned()).map_err(|_| TlsError::Nameless)
}

/// Names of protocols in ALPN (RFC 7301 §6).
pub(in crate::upstream) const HTTP1: &[u8] = b"http/1.1";
pub(in crate::upstream) const HTTP2: &[u8] = b"h2";
