//! `routes[].respond`, `routes[].fallback`, `routes[].mirror`, `upstreams.<name>.circuit_breaker`

use core::time::Duration;

use http::{HeaderValue, Method};
use serde::Deserialize;

use super::value::Value;
use crate::config::de::field::{Field, List, Map};
use crate::config::de::percent::{PercentHundredths, WholePercent};
use crate::config::de::units::{Scalar, Size};

/// `fallback`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Fallback {
    /// Another upstream.
    pub(crate) upstream: Field<String>,
    /// Maximum age of the last good response. Default none is used.
    pub(crate) stale: Value<Duration>,
    /// Bytes of all stored responses of the route. Default 16MiB.
    pub(crate) max_stale_size: Value<Size>,
    /// A fixed response.
    pub(crate) respond: Field<Respond>,
}

/// `respond`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Respond {
    /// 200 to 599. Default 200.
    pub(crate) status: Field<u16>,
    /// Default empty.
    pub(crate) body: Field<String>,
    /// Default: `Content-Type: text/plain; charset=utf-8` if there is a body.
    pub(crate) headers: Field<Map<Scalar<HeaderValue>>>,
}

/// `mirror`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Mirror {
    /// The upstream that receives copies. Required.
    pub(crate) upstream: Field<String>,
    /// Share of requests that are copied. Default 100%.
    pub(crate) percent: Value<PercentHundredths>,
    /// Methods of requests that are copied. Default GET, HEAD.
    pub(crate) methods: Field<List<Scalar<Method>>>,
    /// Maximum number of copies in flight. Default 100.
    pub(crate) max_in_flight: Field<u64>,
}

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
