//! `logging`, `metrics`.

use serde::Deserialize;

use super::value::Value;
use crate::config::de::field::{Field, List, ListOrNone};
use crate::config::de::percent::Percent;
use crate::config::de::units::Keyword;
use crate::observe::log::Access;
use crate::observe::log_format::Format;

/// `logging`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Logging {
    /// A filter such as `info` or `northgate=debug,info`; `RUST_LOG` wins. Default info.
    pub(crate) level: Field<String>,
    /// `json` or `text`. Default json, text on a terminal.
    pub(crate) format: Value<Format>,
    /// Recorded requests: `all`, `errors` or `off`. Default all.
    pub(crate) access: Value<Access>,
    /// The share of requests that are recorded; errors always are. Default 100%.
    pub(crate) sample: Value<Percent>,
    /// Query parameters whose values become `…`. Default `access_token`, `refresh_token`, `id_token`,
    /// `id_token_hint`, token, code, state, password, `client_secret`.
    pub(crate) redact_query: Field<ListOrNone<String>>,
}

/// `metrics`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Metrics {
    /// Path on the admin listener. Default /metrics.
    pub(crate) path: Field<String>,
    /// Upper bounds of the latency histograms in seconds, 1 to 30, ascending. Default 0.001 to 10 in 13 steps.
    pub(crate) buckets: Field<List<f64>>,
    /// Whether requests are counted by method. Default true.
    pub(crate) methods: Field<bool>,
}

impl Keyword for Format {
    const WANTED: &'static str = "json or text";
    const WORDS: &'static [(&'static str, Self)] = &[("json", Self::Json), ("text", Self::Text)];
}

impl Keyword for Access {
    const WANTED: &'static str = "all, errors or off";
    const WORDS: &'static [(&'static str, Self)] =
        &[("all", Self::All), ("errors", Self::Errors), ("off", Self::Off)];
}
