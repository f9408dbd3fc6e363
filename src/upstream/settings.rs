//! One service, as the operator describes it.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use http::{HeaderValue, StatusCode};

use super::UpstreamError;

/// One service. Every field is already checked; see each for its unit and default.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Settings {
    /// The upstream's name in the file; a metric label.
    pub name: Arc<str>,
    /// Where it listens; at least one.
    pub targets: Vec<Target>,
    /// How requests are spread over the targets.
    pub balance: Balance,
    /// How long a TCP connection and its TLS handshake may take, and a wait for a free place. Default 2 s.
    pub connect_timeout: Duration,
    /// How long until the answer's head has come; a route may say otherwise. Default 30 s.
    pub timeout: Duration,
    /// How long the whole answer may take; `None` is no limit, the default.
    pub stream_timeout: Option<Duration>,
    /// The longest gap in an answer's body; not for upgraded connections and event streams. Default 60 s.
    pub idle_timeout: Duration,
    /// How long an unused connection is kept; zero never uses one twice. Default 50 s.
    pub keep_alive: Duration,
    /// Requests in flight per target, at least 1. Default 1024.
    pub max_connections: u32,
    /// Requests per target that may wait for one of those; more are refused. Default 1024.
    pub max_pending: u32,
    /// TLS towards `https` targets.
    pub tls: Tls,
    /// What the service sees as `Host`.
    pub host_header: HostHeader,
    /// What is tried again.
    pub retries: Retries,
    /// When a failing target is left alone for a while.
    pub outlier: Outlier,
}

impl Settings {
    /// The defaults, for `name` at `targets`.
    pub fn new(name: impl Into<Arc<str>>, targets: Vec<Target>) -> Self {
        Self {
            name: name.into(),
            targets,
            balance: Balance::default(),
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(30),
            stream_timeout: None,
            idle_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(50),
            max_connections: 1024,
            max_pending: 1024,
            tls: Tls::default(),
            host_header: HostHeader::default(),
            retries: Retries::default(),
            outlier: Outlier::default(),
        }
    }
}

/// One address of a service and its share of the requests.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Target {
    /// Where it listens.
    pub address: Address,
    /// Its share relative to the others, 1 to 1000. Default 1.
    pub weight: u16,
    /// Serves only while no other target can. Default false.
    pub backup: bool,
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self { address, weight: 1, backup: false }
    }
}

/// Scheme, host and port of a target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    /// In the clear or not.
    pub scheme: Scheme,
    /// A name or an IP address, IPv6 without brackets.
    pub host: Arc<str>,
    /// The TCP port.
    pub port: u16,
}

impl Address {
    /// The authority as `Host` carries it (RFC 9110 §7.2): without the port if it is the scheme's own.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.to_string()
        };
        match (self.scheme, self.port) {
            (Scheme::Http, 80) | (Scheme::Https, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

/// In the clear or not.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scheme {
    /// TCP.
    Http,
    /// TLS, always verified.
    Https,
}

/// How requests are spread over targets.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Balance {
    /// In turn, by weight.
    #[default]
    RoundRobin,
    /// The target with the fewest requests in flight for its weight.
    LeastRequests,
    /// The less loaded of two drawn by chance.
    RandomTwo,
}

/// A certificate chain and its key, each as PEM.
pub type PemIdentity = (Arc<[u8]>, Arc<[u8]>);

/// Whom to trust behind `https` targets, and as whom to call.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Tls {
    /// PEM certificates of a private authority, added to the public ones.
    pub ca: Option<Arc<[u8]>>,
    /// The name the certificate must bear, if not the target's host.
    pub server_name: Option<Arc<str>>,
    /// PEM chain and PEM key that the gateway shows the service (mutual TLS).
    pub identity: Option<PemIdentity>,
}

/// What the service sees as `Host`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub enum HostHeader {
    /// The target's authority; the original travels as `X-Forwarded-Host`.
    #[default]
    Target,
    /// What the client sent.
    Preserve,
    /// A name of the operator's choice.
    Fixed(HeaderValue),
}

/// What may be sent again. A request that may have been processed is repeated only if its
/// method is idempotent (RFC 9110 §9.2.2) and none of its body has been read.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Retries {
    /// Further endpoints to try, 0 to 5. Default 1.
    pub attempts: u32,
    /// After what. Default connect and reset.
    pub on: Vec<RetryOn>,
    /// The most retries, in percent of the requests of the last ten seconds. Default 20.
    pub budget: u8,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 1, on: vec![RetryOn::Connect, RetryOn::Reset], budget: 20 }
    }
}

impl Retries {
    pub(super) fn on_failure(&self, failure: UpstreamError) -> bool {
        let cause = match failure {
            UpstreamError::Connect | UpstreamError::Tls => RetryOn::Connect,
            UpstreamError::Reset => RetryOn::Reset,
            UpstreamError::Timeout => RetryOn::Timeout,
            UpstreamError::Overflow => return true,
            UpstreamError::NoEndpoint | UpstreamError::Protocol | UpstreamError::Client => {
                return false;
            }
        };
        self.on.contains(&cause)
    }

    pub(super) fn on_status(&self, status: StatusCode) -> bool {
        status.is_server_error() && self.on.contains(&RetryOn::Status(status.as_u16()))
    }
}

/// A reason to try another endpoint.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RetryOn {
    /// No connection could be made.
    Connect,
    /// The connection ended before any of the answer came.
    Reset,
    /// The answer's head did not come in time.
    Timeout,
    /// The service answered with this status: 502, 503 or 504.
    Status(u16),
}

/// When a failing target is left alone (passive health).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Outlier {
    /// Failures in a row before it is, at least 1. Default 5.
    pub errors: u32,
    /// For how long. Default 30 s.
    pub eject_for: Duration,
    /// The most targets left alone at once, in percent. Default 50.
    pub max_ejected: u8,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { errors: 5, eject_for: Duration::from_secs(30), max_ejected: 50 }
    }
}
