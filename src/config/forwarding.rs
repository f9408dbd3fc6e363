//! Settings of a route for the failure of its upstream, and for trying another one.

use core::time::Duration;
use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use super::de::units::format_duration;
use super::static_response::StaticResponse;
use crate::upstream::HashBy;

/// The responses of a route whose upstream gives none; each part is tried in this order.
#[derive(Clone, Debug, Default)]
pub struct Fallback {
    /// The name of another upstream.
    pub upstream: Option<Arc<str>>,
    /// The maximum age of the last good response, and the bytes of all of them together. Default none; 16 MiB.
    pub stale: Option<(Duration, u64)>,
    /// A fixed response.
    pub respond: Option<StaticResponse>,
}

/// The upstreams that receive a share of a route's requests.
#[derive(Clone, Debug, Default)]
pub struct Split {
    /// Each with its share in hundredths of a percent; at most 10,000 together.
    pub shares: Vec<(Arc<str>, u32)>,
    /// The value that binds a client to an upstream; `None`, the default, draws for each request.
    pub by: Option<HashBy>,
}

/// The copies of a route's requests.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// The name of the upstream that receives them.
    pub upstream: Arc<str>,
    /// The share of requests in hundredths of a percent. Default 10,000, all.
    pub share: u32,
    /// The methods of requests that are copied. Default GET and HEAD.
    pub methods: Vec<Method>,
    /// The maximum number of copies in flight. Default 100.
    pub max_in_flight: u32,
}

/// Returns these settings under the keys of the file.
pub(super) fn effective(
    fallback: Option<&Fallback>,
    split: Option<&Split>,
    mirror: Option<&Mirror>,
) -> [(&'static str, Value); 4] {
    let percent = |share: u32| format!("{}%", f64::from(share) / 100.0);
    let fallback = fallback.map(|fallback| {
        json!({
            "upstream": fallback.upstream,
            "stale": fallback.stale.map(|(age, _)| format_duration(age)),
            "max_stale_size": fallback.stale.map(|(_, bytes)| format!("{bytes}B")),
            "respond": fallback.respond.as_ref().map(StaticResponse::effective),
        })
    });
    let shares = split.map(|split| {
        let shares = split.shares.iter();
        Value::Object(
            shares.map(|(name, share)| (name.to_string(), json!(percent(*share)))).collect(),
        )
    });
    let by = split.and_then(|split| split.by.as_ref()).map(ToString::to_string);
    let mirror = mirror.map(|mirror| {
        json!({
            "upstream": mirror.upstream,
            "percent": percent(mirror.share),
            "methods": mirror.methods.iter().map(Method::as_str).collect::<Vec<_>>(),
            "max_in_flight": mirror.max_in_flight,
        })
    });
    [
        ("fallback", json!(fallback)),
        ("split", json!(shares)),
        ("split_by", json!(by)),
        ("mirror", json!(mirror)),
    ]
}
