//! `upstreams.<name>`

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;
use serde::Deserialize;
use url::{Host, Url};

use super::value::{KeywordOr, Value};
use crate::config::de::field::{Field, ListOrNone, OneOrMany};
use crate::config::de::percent::WholePercent;
use crate::config::de::units::{FromScalar, InvalidValue, Keyword, Scalar};
use crate::upstream::{Address, Balance, HashBy, HostHeader, Http2, Location, RetryOn, Scheme};

/// One upstream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Upstream {
    /// URLs of scheme, host and port, or `{ url, weight, backup }`. Required.
    pub(crate) targets: Field<OneOrMany<KeywordOr<Address, Target>>>,
    /// `round_robin`, `least_requests`, `random_two` or `hash`. Default `round_robin`.
    pub(crate) balance: Value<Balance>,
    /// The value that selects the target with `balance: hash`: `ip`, `header:NAME`, `cookie:NAME` or `claim:PATH`.
    pub(crate) hash_by: Value<HashBy>,
    /// Active health checks. Default none.
    pub(crate) health_check: Field<HealthCheck>,
    /// Refuses requests for a while after too many failures. Default off.
    pub(crate) circuit_breaker: Field<CircuitBreaker>,
    /// How long the share of a target that has recovered grows; 0s is off. Default 0s.
    pub(crate) slow_start: Value<Duration>,
    /// Share of targets that must be available; with fewer, health is ignored. Default 0%: never.
    pub(crate) panic_threshold: Value<WholePercent>,
    /// Interval of name resolution. Default 30s.
    pub(crate) dns_refresh: Value<Duration>,
    /// Name servers, as addresses with an optional port. Default the system's.
    pub(crate) dns_servers: Field<OneOrMany<Scalar<NameServer>>>,
    /// Passive health checks: when a failing target is ejected.
    pub(crate) outlier: Field<Outlier>,
    /// Timeout of a connection attempt. Default 2s.
    pub(crate) connect_timeout: Value<Duration>,
    /// Timeout until the response head. Default 30s.
    pub(crate) timeout: Value<Duration>,
    /// Timeout of the whole response; 0s is off. Default 0s.
    pub(crate) stream_timeout: Value<Duration>,
    /// Timeout between parts of a response body. Default 60s.
    pub(crate) idle_timeout: Value<Duration>,
    /// How long an idle connection is kept; 0s disables reuse. Default 50s.
    pub(crate) keep_alive: Value<Duration>,
    /// Maximum number of requests in flight per target. Default 1024.
    pub(crate) max_connections: Field<u64>,
    /// Maximum number of pending requests per target; 503 above. Default 1024.
    pub(crate) max_pending: Field<u64>,
    /// TLS towards `https` targets.
    pub(crate) tls: Field<Tls>,
    /// `auto` (as ALPN selects), `always` (by prior knowledge to `http` targets) or `never`. Default auto.
    pub(crate) http2: Value<Http2>,
    /// Host field that the upstream receives: `target`, `preserve` or a name. Default target.
    pub(crate) host_header: Value<HostHeader>,
    /// Retries.
    pub(crate) retries: Field<Retries>,
}

/// `targets[]`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Target {
    /// Scheme, host and port. Required.
    pub(crate) url: Value<Address>,
    /// Weight relative to the other targets, 1 to 1000. Default 1.
    pub(crate) weight: Field<u64>,
    /// Used only while no other target is available. Default false.
    pub(crate) backup: Field<bool>,
}

/// `outlier`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Outlier {
    /// Consecutive failures until a target is ejected. Default 5.
    pub(crate) errors: Field<u64>,
    /// Share of failures within 10 s from which a target is ejected; 0% is off. Default 50%.
    pub(crate) error_rate: Value<WholePercent>,
    /// Minimum number of requests within 10 s for the share to count. Default 20.
    pub(crate) min_requests: Field<u64>,
    /// Duration of an ejection. Default 30s.
    pub(crate) eject_for: Value<Duration>,
    /// Maximum share of ejected targets. Default 50%.
    pub(crate) max_ejected: Value<WholePercent>,
}

/// `health_check`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct HealthCheck {
    /// Path and query of the GET. Required without `grpc`.
    pub(crate) path: Field<String>,
    /// Service that the gRPC health check asks for, empty for the whole server. Default none: GET `path`.
    pub(crate) grpc: Field<String>,
    /// Interval between the checks of a target, with a jitter of 10 %. Default 5s.
    pub(crate) interval: Value<Duration>,
    /// Timeout of a check, at most the interval. Default 2s, or the interval if that is shorter.
    pub(crate) timeout: Value<Duration>,
    /// Successes in a row until a target is up again. Default 2.
    pub(crate) healthy_after: Field<u64>,
    /// Failures in a row until a target is down. Default 3.
    pub(crate) unhealthy_after: Field<u64>,
    /// Statuses of success, single or as ranges. Default 200-399.
    pub(crate) status: Field<OneOrMany<Scalar<StatusRange>>>,
}

/// A range of statuses, such as `200-399`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusRange(pub(crate) u16, pub(crate) u16);

/// `circuit_breaker`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CircuitBreaker {
    /// Consecutive failures until the circuit opens. Default 10.
    pub(crate) errors: Field<u64>,
    /// Share of failures within 10 s from which the circuit opens; 0% is off. Default 50%.
    pub(crate) error_rate: Value<WholePercent>,
    /// Minimum number of requests within 10 s for the share to count. Default 20.
    pub(crate) min_requests: Field<u64>,
    /// How long the circuit is open before it is probed. Default 5s.
    pub(crate) open_for: Value<Duration>,
    /// Successful probes in a row until the circuit closes. Default 2.
    pub(crate) close_after: Field<u64>,
}

impl FromScalar for StatusRange {
    const WANTED: &'static str = "a status such as 200, or a range such as 200-399";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|status| digits && (200..=599).contains(status))
        };
        match (status(low), status(high)) {
            (Some(low), Some(high)) if low <= high => Ok(Self(low, high)),
            _ => Err(InvalidValue::new("is not a range of statuses", "write 200, or 200-399")),
        }
    }
}

/// The address of a name server; port 53 unless another is given.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NameServer(pub(crate) SocketAddr);

impl FromScalar for NameServer {
    const WANTED: &'static str = "an address such as 10.0.0.53 or 10.0.0.53:5353";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
        address.or_else(|_| text.parse()).map(Self).map_err(|_| {
            InvalidValue::new("is not an address", "write 10.0.0.53, or 10.0.0.53:5353")
        })
    }
}

const DNS_PORT: u16 = 53;

impl FromScalar for HashBy {
    const WANTED: &'static str = "ip, header:NAME, cookie:NAME or claim:PATH";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = || {
            InvalidValue::new(
                "is not a value to hash",
                "write ip, header:X-Tenant, cookie:name or claim:sub",
            )
        };
        match text.split_once(':') {
            None if text == "ip" => Ok(Self::Ip),
            Some(("header", name)) => name.parse().map(Self::Header).map_err(|_| wrong()),
            Some(("cookie", name))
                if !name.is_empty() && name.parse::<http::HeaderName>().is_ok() =>
            {
                Ok(Self::Cookie(name.into()))
            }
            Some(("claim", path)) if !path.is_empty() => Ok(Self::Claim(path.into())),
            _ => Err(wrong()),
        }
    }
}

/// `tls`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Tls {
    /// PEM authorities trusted besides the system's.
    pub(crate) ca_file: Field<String>,
    /// Name that the certificate must have. Default: the target's host.
    pub(crate) server_name: Field<String>,
    /// PEM chain of the gateway's client certificate (mutual TLS).
    pub(crate) cert: Field<String>,
    /// Its PEM key.
    pub(crate) key: Field<String>,
}

/// `retries`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Retries {
    /// Further targets to try, 0 to 5. Default 1.
    pub(crate) attempts: Field<u64>,
    /// Conditions: connect, reset, timeout, 502, 503, 504. Default connect, reset.
    pub(crate) on: Field<ListOrNone<Scalar<RetryOn>>>,
    /// Maximum share of retries among the requests of the last 10 s. Default 20%.
    pub(crate) budget: Value<WholePercent>,
}

impl FromScalar for Address {
    const WANTED: &'static str = "a URL such as http://10.0.0.31:8080";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if let Some(path) = text.strip_prefix("unix:") {
            let is_plain = path.starts_with('/') && !path.starts_with("//") && !path.contains('\0');
            return if is_plain && path.len() <= MAX_UNIX_PATH_BYTES {
                let location = Location::Unix(path.into());
                Ok(Self { scheme: Scheme::Http, location })
            } else {
                Err(InvalidValue::new("is not a Unix socket", "write unix:/run/app.sock"))
            };
        }
        for (prefix, scheme) in [("srv://", Scheme::Http), ("srvs://", Scheme::Https)] {
            let Some(name) = text.strip_prefix(prefix) else { continue };
            let location = Location::Srv(name.to_ascii_lowercase().into());
            return if is_service_name(name) {
                Ok(Self { scheme, location })
            } else {
                let help = "write srv://_http._tcp.orders.example; the port comes from its records";
                Err(InvalidValue::new("is not a name of SRV records", help))
            };
        }
        let wrong = |help: String| InvalidValue::new("is not a target", help);
        let Ok(url) = Url::parse(text) else {
            return Err(wrong(format!("write {}", whole(text))));
        };
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(wrong(format!("write {}", whole(text)))),
        };
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(wrong(format!("write {}", whole(text))));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidValue::new(
                "holds a user name or a password",
                "remove it from the URL",
            ));
        }
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        if !bare || text.ends_with('/') {
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            return Err(wrong(format!(
                "write {}://{host}{port}; a path belongs into `rewrite`",
                url.scheme()
            )));
        }
        let host: Arc<str> = match host {
            Host::Domain(name) => name.into(),
            Host::Ipv4(address) => address.to_string().into(),
            Host::Ipv6(address) => address.to_string().into(),
        };
        Ok(Self { scheme, location: Location::Host { host, port } })
    }
}

/// Whether a name has the labels of a service and a protocol before its domain (RFC 2782).
fn is_service_name(name: &str) -> bool {
    let mut labels = name.split('.');
    let [service, protocol] = [labels.next(), labels.next()].map(Option::unwrap_or_default);
    let is_underscored = |label: &str| label.len() > 1 && label.starts_with('_');
    let is_plain = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    is_underscored(service)
        && is_underscored(protocol)
        && name.len() <= 253
        && name.split('.').all(is_plain)
        && labels.next().is_some()
}

/// The longest path that a Unix socket can have.
const MAX_UNIX_PATH_BYTES: usize = 107;

/// Suggests a whole URL for a text without a scheme, or with a port that is none.
fn whole(text: &str) -> String {
    let authority = text.rsplit("://").next().unwrap_or(text).split('/').next().unwrap_or_default();
    let plain = authority.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    if authority.is_empty() || !plain {
        return "http://10.0.0.31:8080".to_owned();
    }
    let is_no_port = |port: &str| !port.contains(']') && port.parse::<u16>().is_err();
    match authority.rsplit_once(':') {
        Some((host, port)) if is_no_port(port) => format!("http://{host}:8080"),
        _ => format!("http://{authority}"),
    }
}

impl Keyword for Balance {
    const WANTED: &'static str = "round_robin, least_requests, random_two or hash";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("round_robin", Self::RoundRobin),
        ("least_requests", Self::LeastRequests),
        ("random_two", Self::RandomTwo),
        ("hash", Self::Hash),
    ];
}

impl Keyword for Http2 {
    const WANTED: &'static str = "auto, always or never";
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("always", Self::Always), ("never", Self::Never)];
}

impl FromScalar for HostHeader {
    const WANTED: &'static str = "target, preserve or a name";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        match text {
            "target" => Ok(Self::Target),
            "preserve" => Ok(Self::Preserve),
            name => {
                let host = http::uri::Authority::try_from(name)
                    .ok()
                    .filter(|authority| {
                        !authority.as_str().contains('@') && !authority.host().is_empty()
                    })
                    .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
                host.map(Self::Fixed).ok_or_else(|| {
                    InvalidValue::new(
                        "is not a host",
                        "write target, preserve or a name such as orders.internal",
                    )
                })
            }
        }
    }
}

impl Keyword for RetryOn {
    const WANTED: &'static str = "connect, reset, timeout, 502, 503 or 504";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("connect", Self::Connect),
        ("reset", Self::Reset),
        ("timeout", Self::Timeout),
        ("502", Self::Status(502)),
        ("503", Self::Status(503)),
        ("504", Self::Status(504)),
    ];
}
