//! Settings of one upstream.

use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};

use super::{InvalidResponse, UpstreamError};

/// How long a client must have sent nothing of its content for a failure of the upstream, which waits for it, to be the
/// client's.
pub(super) const CLIENT_PAUSE: Duration = Duration::from_secs(1);

/// Settings of one upstream, already validated; see each field for its unit and default.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Settings {
    /// Name in the file; a metric label.
    pub name: Arc<str>,
    /// The targets; at least one.
    pub targets: Vec<Target>,
    /// The load balancing algorithm.
    pub balance: Balance,
    /// The value that selects the target, for [`Balance::Hash`]; `None` otherwise.
    pub hash_by: Option<HashBy>,
    /// Timeout of a TCP connection with its TLS handshake, and of the wait for a permit. Default 2 s.
    pub connect_timeout: Duration,
    /// Timeout until the response head, unless the route has its own. Default 30 s.
    pub timeout: Duration,
    /// Timeout of the whole response; `None` is no limit, the default.
    pub stream_timeout: Option<Duration>,
    /// Timeout between parts of a response body; not for upgraded connections and event streams. Default 60 s.
    pub idle_timeout: Duration,
    /// How long an idle connection is kept; zero disables reuse. Default 50 s.
    pub keep_alive: Duration,
    /// Maximum number of requests in flight per target, at least 1. Default 1024.
    pub max_connections: u32,
    /// Maximum number of pending requests per target; more are refused. Default 1024.
    pub max_pending: u32,
    /// TLS towards `https` targets.
    pub tls: Tls,
    /// The use of HTTP/2. Default auto.
    pub http2: Http2,
    /// The `Host` field that the upstream receives.
    pub host_header: HostHeader,
    /// The retry policy.
    pub retries: Retries,
    /// Passive health checks.
    pub outlier: Outlier,
    /// Active health checks; `None`, the default, makes none.
    pub health_check: Option<HealthCheck>,
    /// The circuit breaker; `None`, the default, never refuses.
    pub circuit_breaker: Option<CircuitBreakerSettings>,
    /// The time during which the share of a target that has recovered grows from a tenth to the whole. Default zero.
    pub slow_start: Duration,
    /// The percentage of targets that must be available; with fewer, health is ignored. Default 0: a target that is
    /// down receives no requests.
    pub panic_threshold: u8,
    /// The interval of name resolution. Default 30 s.
    pub dns_refresh: Duration,
    /// The name servers; empty, the default, is the system's resolver.
    pub dns_servers: Vec<SocketAddr>,
}

impl Settings {
    /// Creates default settings for `name` at `targets`.
    pub fn new(name: impl Into<Arc<str>>, targets: Vec<Target>) -> Self {
        Self {
            name: name.into(),
            targets,
            balance: Balance::default(),
            hash_by: None,
            connect_timeout: Duration::from_secs(2),
            timeout: Duration::from_secs(30),
            stream_timeout: None,
            idle_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(50),
            max_connections: 1024,
            max_pending: 1024,
            tls: Tls::default(),
            http2: Http2::default(),
            host_header: HostHeader::default(),
            retries: Retries::default(),
            outlier: Outlier::default(),
            health_check: None,
            circuit_breaker: None,
            slow_start: Duration::ZERO,
            panic_threshold: 0,
            dns_refresh: Duration::from_secs(30),
            dns_servers: Vec::new(),
        }
    }
}

/// One address of an upstream, with its weight.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Target {
    /// The address.
    pub address: Address,
    /// Weight relative to the other targets, 1 to 1000. Default 1.
    pub weight: u16,
    /// Used only while no other target is available. Default false.
    pub backup: bool,
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self { address, weight: 1, backup: false }
    }
}

/// The address of a target, as configured.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    /// http or https.
    pub scheme: Scheme,
    /// The authority after the scheme.
    pub location: Location,
}

/// The address of a target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Location {
    /// A name, of which every A and AAAA record is an endpoint, or an IP address.
    Host {
        /// A name or an IP address, IPv6 without brackets.
        host: Arc<str>,
        /// The TCP port.
        port: u16,
    },
    /// A path of a Unix socket.
    Unix(Arc<str>),
    /// A name with SRV records (RFC 2782), such as `_http._tcp.orders.example`.
    Srv(Arc<str>),
}

impl Address {
    /// Creates the address of a TCP port.
    pub fn tcp(scheme: Scheme, host: impl Into<Arc<str>>, port: u16) -> Self {
        Self { scheme, location: Location::Host { host: host.into(), port } }
    }

    /// Returns the authority as in `Host` (RFC 9110 §7.2): without the port if it is the scheme's default. For a Unix
    /// socket it is `localhost`, for SRV records the name without service and protocol.
    pub fn authority(&self) -> String {
        match &self.location {
            Location::Host { host, port } => authority(self.scheme, host, *port),
            Location::Unix(_) => "localhost".to_owned(),
            Location::Srv(name) => srv_domain(name).to_owned(),
        }
    }

    /// Returns the name that a certificate must have. For SRV records that is the domain of the records, since the
    /// names in them come from an answer that is not authenticated (RFC 6125 §6.2.1).
    pub(super) fn certificate_name(&self) -> &str {
        match &self.location {
            Location::Host { host, .. } => host,
            Location::Unix(_) => "localhost",
            Location::Srv(name) => srv_domain(name),
        }
    }
}

/// Returns host and port as in `Host`: without the port if it is the scheme's default.
pub(super) fn authority(scheme: Scheme, host: &str, port: u16) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match (scheme, port) {
        (Scheme::Http, 80) | (Scheme::Https, 443) => host,
        (_, port) => format!("{host}:{port}"),
    }
}

/// Returns the name without its labels of service and protocol.
fn srv_domain(name: &str) -> &str {
    name.splitn(3, '.').nth(2).unwrap_or(name)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.location, self.scheme) {
            (Location::Host { .. }, scheme) => {
                write!(f, "{}://{}", scheme.as_str(), self.authority())
            }
            (Location::Unix(path), _) => write!(f, "unix:{path}"),
            (Location::Srv(name), Scheme::Http) => write!(f, "srv://{name}"),
            (Location::Srv(name), Scheme::Https) => write!(f, "srvs://{name}"),
        }
    }
}

/// The scheme of a target.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scheme {
    /// HTTP over TCP.
    Http,
    /// HTTP over TLS, always verified.
    Https,
}

impl Scheme {
    /// Returns the scheme as in a URL.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// The load balancing algorithms.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Balance {
    /// Round robin, by weight.
    #[default]
    RoundRobin,
    /// The target with the fewest requests in flight for its weight.
    LeastRequests,
    /// The less loaded of two random targets.
    RandomTwo,
    /// The same target for the same value (`hash_by`), as long as the targets are the same and it is not overloaded.
    Hash,
}

/// The value of a request that selects its target.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum HashBy {
    /// The client's address.
    Ip,
    /// A header field.
    Header(HeaderName),
    /// A cookie.
    Cookie(Arc<str>),
    /// A verified claim of the caller.
    Claim(Arc<str>),
}

impl fmt::Display for HashBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip => f.write_str("ip"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Claim(path) => write!(f, "claim:{path}"),
        }
    }
}

/// The use of HTTP/2 towards the targets. An upgraded connection (RFC 9110 §7.8) uses HTTP/1.1 in any case.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Http2 {
    /// As an `https` target selects by ALPN (RFC 7301); HTTP/1.1 to `http` targets.
    #[default]
    Auto,
    /// To every target: `https` by ALPN, `http` by prior knowledge (RFC 9113 §3.3).
    Always,
    /// HTTP/1.1 only.
    Never,
}

impl Http2 {
    /// Whether a target of this scheme may be spoken to in HTTP/2.
    pub const fn is_possible(self, scheme: Scheme) -> bool {
        matches!((self, scheme), (Self::Always, _) | (Self::Auto, Scheme::Https))
    }
}

/// A certificate chain and its key, each as PEM.
pub type PemIdentity = (Arc<[u8]>, Arc<[u8]>);

/// TLS settings towards `https` targets.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Tls {
    /// PEM certificates of a private authority, added to the public ones.
    pub ca: Option<Arc<[u8]>>,
    /// Name that the certificate must have, if not the target's host.
    pub server_name: Option<Arc<str>>,
    /// PEM chain and PEM key of the gateway's client certificate (mutual TLS).
    pub identity: Option<PemIdentity>,
}

/// The `Host` field that an upstream receives.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub enum HostHeader {
    /// The target's authority; the original is in `X-Forwarded-Host`.
    #[default]
    Target,
    /// The client's value.
    Preserve,
    /// A configured name.
    Fixed(HeaderValue),
}

/// The retry policy. A request that may have been processed is repeated only if its
/// method is idempotent (RFC 9110 §9.2.2) and none of its body was read.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Retries {
    /// Further endpoints to try, 0 to 5. Default 1.
    pub attempts: u32,
    /// The conditions. Default connect and reset.
    pub on: Vec<RetryOn>,
    /// Maximum share of retries in percent of the requests of the last ten seconds. Default 20.
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
            UpstreamError::Connect | UpstreamError::Tls | UpstreamError::TlsAlert(_) => {
                RetryOn::Connect
            }
            UpstreamError::Reset
            | UpstreamError::StreamReset(_)
            | UpstreamError::Truncated { .. }
            | UpstreamError::Invalid(InvalidResponse::PartialHead) => RetryOn::Reset,
            UpstreamError::Timeout | UpstreamError::Stalled => RetryOn::Timeout,
            UpstreamError::Overflow | UpstreamError::Refused => return true,
            UpstreamError::NoEndpoint
            | UpstreamError::CircuitOpen { .. }
            | UpstreamError::Protocol
            | UpstreamError::Invalid(_)
            | UpstreamError::Deadline { .. }
            | UpstreamError::HeadTooLarge
            | UpstreamError::Client => return false,
        };
        self.on.contains(&cause)
    }

    pub(super) fn on_status(&self, status: StatusCode) -> bool {
        status.is_server_error() && self.on.contains(&RetryOn::Status(status.as_u16()))
    }
}

/// A condition for another attempt.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RetryOn {
    /// No connection could be made.
    Connect,
    /// The connection ended before the response, or within the part of it that the gateway had not passed on.
    Reset,
    /// The response head did not arrive in time.
    Timeout,
    /// The response has this status: 502, 503 or 504.
    Status(u16),
}

/// Passive health checks: when a failing target is ejected.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Outlier {
    /// Consecutive failures until the target is ejected, at least 1. Default 5.
    pub errors: u32,
    /// Percentage of failures within ten seconds from which the target is ejected; 0 is off. Default 50.
    pub error_rate: u8,
    /// Minimum number of requests within ten seconds for the rate to count. Default 20.
    pub min_requests: u32,
    /// Duration of an ejection. Default 30 s.
    pub eject_for: Duration,
    /// Maximum share of ejected targets in percent. Default 50.
    pub max_ejected: u8,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            errors: 5,
            error_rate: 50,
            min_requests: 20,
            eject_for: Duration::from_secs(30),
            max_ejected: 50,
        }
    }
}

/// Active health checks: requests of the gateway's own, sent by the control runtime.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct HealthCheck {
    /// The request target of the `GET`; empty with `grpc`.
    pub path: Arc<str>,
    /// The service that `grpc.health.v1.Health/Check` asks for instead, empty for the server as a whole.
    pub grpc: Option<Arc<str>>,
    /// The interval between checks of one target, with a jitter of 10 %. Default 5 s.
    pub interval: Duration,
    /// The timeout of a check, from the connection to the status line; at most `interval`. Default 2 s.
    pub timeout: Duration,
    /// Consecutive successes until a target that is down is up, at least 1. Default 2.
    pub healthy_after: u32,
    /// Consecutive failures until a target is down, at least 1. Default 3. The first check decides at once.
    pub unhealthy_after: u32,
    /// The statuses of success, as inclusive ranges. Default 200 to 399.
    pub status: Vec<(u16, u16)>,
}

impl HealthCheck {
    /// Creates the default check of `path`.
    pub fn new(path: impl Into<Arc<str>>) -> Self {
        Self {
            path: path.into(),
            grpc: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            healthy_after: 2,
            unhealthy_after: 3,
            status: vec![(200, 399)],
        }
    }
}

/// When the circuit of an upstream opens, and how it closes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct CircuitBreakerSettings {
    /// Consecutive failures until the circuit opens, at least 1. Default 10.
    pub errors: u32,
    /// Percentage of failures within ten seconds from which the circuit opens; 0 is off. Default 50.
    pub error_rate: u8,
    /// Minimum number of requests within ten seconds for the rate to count. Default 20.
    pub min_requests: u32,
    /// How long the circuit is open before it is probed. Default 5 s.
    pub open_for: Duration,
    /// Successful probes in a row until the circuit closes, at least 1. Default 2.
    pub close_after: u32,
}

impl Default for CircuitBreakerSettings {
    fn default() -> Self {
        let open_for = Duration::from_secs(5);
        Self { errors: 10, error_rate: 50, min_requests: 20, open_for, close_after: 2 }
    }
}
