//! Process-wide settings: listeners, limits and timeouts, the admin listener, logging and metrics.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::num::NonZeroUsize;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use url::Url;

use crate::base::secret::Secret;
use crate::issuer::keys::signing_key::SigningKey;
use crate::{observe, tls};

/// One listener for client connections.
#[derive(Debug)]
pub struct Listener {
    /// The address as the file has it; a metric label.
    pub name: Arc<str>,
    /// The address to bind.
    pub address: Address,
    /// Certificates and protocol versions; `None` is plaintext.
    pub tls: Option<Tls>,
    /// Whether HTTP/2 is enabled: by ALPN with TLS, by prior knowledge without. Default true.
    pub http2: bool,
    /// Redirects every request with 308 to this port of the same host, over https.
    pub redirect_https: Option<u16>,
    /// Whether every connection begins with a header of the PROXY protocol, which trusted proxies alone may send.
    /// Default false.
    pub proxy_protocol: bool,
}

/// An address to listen on.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Address {
    /// A TCP address and port.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The TLS settings of a listener.
#[derive(Debug)]
pub struct Tls {
    /// The server certificates.
    pub certificates: Certificates,
    /// Refuses TLS 1.2. Default false.
    pub only_tls13: bool,
    /// Allows session resumption. Default true.
    pub session_tickets: bool,
    /// The authorities for client certificates; `None`, the default, requests none.
    pub clients: Option<tls::server::ClientVerification>,
}

/// The server certificates of a listener.
#[derive(Debug)]
pub enum Certificates {
    /// A certificate for localhost generated at startup, for trials.
    SelfSigned,
    /// Selected by the server name (SNI); the first serves all other names. Never empty.
    Files(Vec<tls::Identity>),
}

/// Limits, timeouts and options of all connections and requests.
#[derive(Clone, Debug)]
pub struct Server {
    /// Worker threads, 1 to 1024; `None` is one per CPU of the quota.
    pub workers: Option<NonZeroUsize>,
    /// Timeout of each: a TLS handshake, a request head, the first HTTP/2 HEADERS. Default 10 s.
    pub header_timeout: Duration,
    /// Timeout between parts of a body, and while a client reads nothing. Default 30 s.
    pub body_timeout: Duration,
    /// Minimum bytes per second of a request body, on average after the first 5 s; `None` is off. Default 240.
    pub min_body_rate: Option<u64>,
    /// Keep-alive timeout of a connection between requests. Default 75 s.
    pub idle_timeout: Duration,
    /// Maximum size of a request head in bytes; 431 above. Default 32 KiB.
    pub max_header_size: usize,
    /// Maximum number of header fields of a request; 431 above. Default 100.
    pub max_headers: usize,
    /// Maximum content of a request in bytes, on routes without their own; `None` is off. Default 10 MiB.
    pub max_body_size: Option<u64>,
    /// Maximum number of connections, at least 1; accepting pauses above. Default 10 000.
    pub max_connections: usize,
    /// Maximum number of connections per IP address; further ones are closed at once. `None`, the default, is off.
    pub max_connections_per_ip: Option<usize>,
    /// Maximum number of requests in flight; 503 and `Retry-After: 1` above. `None`, the default, is off.
    pub max_requests_in_flight: Option<usize>,
    /// Maximum number of concurrent streams per HTTP/2 connection, at least 1. Default 100.
    pub http2_max_concurrent_streams: u32,
    /// Networks whose `Forwarded` and `X-Forwarded-*` are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The forwarding fields that upstreams receive.
    pub forwarded_headers: ForwardedHeaders,
    /// Public scheme and host of the gateway, for its metadata (RFC 9728) and for `DPoP` proofs.
    pub public_url: Option<Url>,
    /// How long new requests are still served after SIGTERM. Default 0 s.
    pub drain_delay: Duration,
    /// How long the last requests may take after that. Default 30 s.
    pub drain_timeout: Duration,
    /// Directory for state that survives a restart: local quotas, JWK sets, keys of identity tokens. Default `None`.
    pub state_dir: Option<PathBuf>,
    /// Keys that sign identity tokens: the first signs, all are published. Empty, the default: the
    /// gateway generates its own.
    pub identity_keys: Vec<Arc<SigningKey>>,
    /// `Server` field of the gateway's own responses; `None`, the default, sends none.
    pub server_header: Option<HeaderValue>,
    /// Header field of the request id. Default `X-Request-Id`.
    pub request_id_header: HeaderName,
}

impl Server {
    /// Returns the bytes that cookies may take in a request head: a quarter of `max_header_size`, up to 4 KiB, is left
    /// for the rest of it.
    pub fn max_cookie_bytes(&self) -> usize {
        self.max_header_size - (self.max_header_size / 4).min(4 << 10)
    }

    /// Whether `address` is that of a trusted proxy.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|net| net.contains(&address))
    }
}

/// The forwarding fields that an upstream receives about the client.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ForwardedHeaders {
    /// `X-Forwarded-For`, `-Proto`, `-Host`.
    #[default]
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// All of them.
    Both,
    /// None of them.
    None,
}

/// Settings of the admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The address to bind. Default 127.0.0.1:9901.
    pub listen: SocketAddr,
    /// Bearer token that callers must present for everything but health and metrics.
    pub token: Option<Secret<String>>,
    /// Serves only health and metrics to callers from other machines. Default false.
    pub public_metrics_only: bool,
}

/// Settings of metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Path on the admin listener. Default `/metrics`.
    pub path: String,
    /// Buckets and labels.
    pub settings: observe::metrics::Settings,
}
