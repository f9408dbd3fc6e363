//! What serves requests, whatever their route: listeners, bounds, the admin
//! listener, log and metrics.

use core::fmt;
use core::net::SocketAddr;
use core::num::NonZeroUsize;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use ipnet::IpNet;
use url::Url;

use crate::base::secret::Secret;
use crate::issuer::signing_key::SigningKey;
use crate::{observe, tls};

/// One address on which clients connect.
#[derive(Debug)]
pub struct Listener {
    /// The address as the file has it; a metric label.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: Address,
    /// Its certificates and protocol versions; `None` speaks in the clear.
    pub tls: Option<Tls>,
    /// Whether HTTP/2 is spoken: by ALPN with TLS, by prior knowledge without. Default true.
    pub http2: bool,
    /// Answers every request with a 308 to this port of the same host, over https.
    pub redirect_https: Option<u16>,
}

/// A place to listen.
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

/// The TLS side of a listener.
#[derive(Debug)]
pub struct Tls {
    /// What is shown to clients.
    pub certificates: Certificates,
    /// Refuses TLS 1.2. Default false.
    pub only_tls13: bool,
    /// Lets clients resume a session. Default true.
    pub session_tickets: bool,
    /// Whose certificates clients show; `None`, the default, asks for none.
    pub clients: Option<tls::server::ClientVerification>,
}

/// What a listener shows to clients.
#[derive(Debug)]
pub enum Certificates {
    /// A certificate for localhost made at start, for trials.
    SelfSigned,
    /// Chosen by the name the client asks for; the first answers everybody else. Never empty.
    Files(Vec<tls::Identity>),
}

/// Bounds and habits that hold for every connection and request.
#[derive(Clone, Debug)]
pub struct Server {
    /// Worker threads, 1 to 1024; `None` is one per CPU of the quota.
    pub workers: Option<NonZeroUsize>,
    /// How long each may take: a TLS handshake, a request's whole head, the first HTTP/2 HEADERS. Default 10 s.
    pub header_timeout: Duration,
    /// The longest gap in a body, and the longest time a client may read nothing. Default 30 s.
    pub body_timeout: Duration,
    /// Bytes per second, on average after the first 5 s of a request's body; `None` is off. Default 240.
    pub min_body_rate: Option<u64>,
    /// How long a connection may wait for its next request. Default 60 s.
    pub idle_timeout: Duration,
    /// Bytes of a request's head; 431 above. Default 32 KiB.
    pub max_header_size: usize,
    /// Fields of a request's head; 431 above. Default 100.
    pub max_headers: usize,
    /// Connections at once, at least 1; accepting pauses above. Default 10 000.
    pub max_connections: usize,
    /// Connections of one address at once; one more is closed at once. `None`, the default, is off.
    pub max_connections_per_ip: Option<usize>,
    /// Requests at once; one more is refused with 503 and `Retry-After: 1`. `None`, the default, is off.
    pub max_requests_in_flight: Option<usize>,
    /// Streams at once on one HTTP/2 connection, at least 1. Default 100.
    pub http2_max_concurrent_streams: u32,
    /// Whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Which of them services receive.
    pub forwarded_headers: ForwardedHeaders,
    /// What clients call the gateway, scheme and host alone: for its metadata (RFC 9728) and for `DPoP` proofs.
    pub public_url: Option<Url>,
    /// How long new requests are still served after SIGTERM. Default 0 s.
    pub drain_delay: Duration,
    /// How long the last requests may then take. Default 30 s.
    pub drain_timeout: Duration,
    /// Where local quotas, last good signing keys and keys of identity tokens are kept for the next start; `None`, the default, is nowhere.
    pub state_dir: Option<PathBuf>,
    /// What identity tokens are signed with: the first signs, all are published. Empty, the default, has the
    /// gateway make its own.
    pub identity_keys: Vec<Arc<SigningKey>>,
    /// `Server` on the gateway's own answers; `None`, the default, sends none.
    pub server_header: Option<HeaderValue>,
    /// Where a request's id travels. Default `X-Request-Id`.
    pub request_id_header: HeaderName,
}

/// Which fields tell a service about the client.
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

/// The operator's listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where it listens. Default 127.0.0.1:9901.
    pub listen: SocketAddr,
    /// What a caller must present as Bearer for everything but health and metrics.
    pub token: Option<Secret<String>>,
    /// Serves only health and metrics to callers that are not on this machine. Default false.
    pub public_metrics_only: bool,
}

/// How metrics are kept and shown.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Their path on the admin listener. Default `/metrics`.
    pub path: String,
    /// Buckets and labels.
    pub settings: observe::metrics::Settings,
}
