//! `upstreams.<name>`

use core::time::Duration;
use std::sync::Arc;

use http::HeaderValue;
use serde::Deserialize;
use url::{Host, Url};

use super::value::{KeywordOr, Value};
use crate::config::de::field::{Field, ListOrNone, OneOrMany};
use crate::config::de::units::{FromScalar, InvalidValue, Keyword, Percent, Scalar};
use crate::upstream::{Address, Balance, HostHeader, Http2, RetryOn, Scheme};

/// One upstream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Upstream {
    /// URLs of scheme, host and port, or `{ url, weight, backup }`. Required.
    pub(crate) targets: Field<OneOrMany<KeywordOr<Address, Target>>>,
    /// `round_robin`, `least_requests` or `random_two`. Default `round_robin`.
    pub(crate) balance: Value<Balance>,
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
    /// Duration of an ejection. Default 30s.
    pub(crate) eject_for: Value<Duration>,
    /// Maximum share of ejected targets. Default 50%.
    pub(crate) max_ejected: Value<Percent>,
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
    pub(crate) budget: Value<Percent>,
}

impl FromScalar for Address {
    const WANTED: &'static str = "a URL such as http://10.0.0.31:8080";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
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
            return Err(wrong("write http://10.0.0.31:8080".into()));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidValue::new(
                "holds a user name or a password",
                "take it out of the URL",
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
        Ok(Self { scheme, host, port })
    }
}

/// Suggests a whole URL for a text without a scheme.
fn whole(text: &str) -> String {
    let authority = text.rsplit("://").next().unwrap_or(text).split('/').next().unwrap_or_default();
    let plain = authority.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
    if authority.is_empty() || !plain {
        return "http://10.0.0.31:8080".to_owned();
    }
    format!("http://{authority}")
}

impl Keyword for Balance {
    const WANTED: &'static str = "round_robin, least_requests or random_two";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("round_robin", Self::RoundRobin),
        ("least_requests", Self::LeastRequests),
        ("random_two", Self::RandomTwo),
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
