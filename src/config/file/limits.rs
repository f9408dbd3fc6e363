//! `limits.<name>`

use core::num::{NonZeroU32, NonZeroU64};
use core::time::Duration;
use std::sync::Arc;

use http::{HeaderName, Method};
use serde::Deserialize;

use super::value::{KeywordOr, Value};
use crate::config::de::field::{Field, List, Map, OneOrMany};
use crate::config::de::units::{FromScalar, InvalidValue, Keyword, Scalar, Size};
use crate::limit::{Cost, KeyPart, OnMissing, OnStoreError, Rate, Status};

/// One limit: exactly one of `rate`, `quota` and `concurrency`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Limit {
    /// Spike arrest: `100/s` is one per 10 ms.
    pub(crate) rate: Field<Amount>,
    /// Burst size of a rate. Default: the rate's share of 100 ms, at least 1.
    pub(crate) burst: Field<u32>,
    /// A counted window: `10000/day`.
    pub(crate) quota: Field<Amount>,
    /// Kind of window: `calendar`, `rolling` or `flexi`. Default calendar.
    pub(crate) window: Value<Window>,
    /// Time zone of the calendar: an IANA name. Default UTC.
    pub(crate) timezone: Field<String>,
    /// Maximum number of requests in flight.
    pub(crate) concurrency: Field<u32>,
    /// Key of the counters; a list is a combination. Default ip.
    pub(crate) by: Field<OneOrMany<Scalar<KeyPart>>>,
    /// Behaviour when a part of the key is absent: `ip`, `shared`, `reject` or `skip`. Default ip.
    pub(crate) on_missing: Value<OnMissing>,
    /// Storage of the counters: `local` or `redis`. Default local.
    pub(crate) store: Value<StoreKind>,
    /// Whether every request asks Redis, instead of using a lease. Default false.
    pub(crate) exact: Field<bool>,
    /// Decision while Redis is unavailable: `local`, `allow` or `deny`. Default local.
    pub(crate) on_store_error: Value<OnStoreError>,
    /// Maximum number of keys with a counter of their own; all others share one. Default 100000.
    pub(crate) max_keys: Field<u64>,
    /// Cost of a request: a number, `request_size/N` bytes, or a cost from the response. Default 1.
    pub(crate) cost: Field<KeywordOr<Cost, CostOfResponse>>,
    /// Counted methods. Default all.
    pub(crate) methods: Field<List<Scalar<Method>>>,
    /// Response to a refused client.
    pub(crate) response: Field<Response>,
    /// Whether responses carry `RateLimit`, `RateLimit-Policy` and `Retry-After`. Default true.
    pub(crate) headers: Field<bool>,
    /// Whether the limit counts and reports, but refuses nothing. Default false.
    pub(crate) dry_run: Field<bool>,
    /// Whether usage is metered, for bills. Default false.
    pub(crate) metered: Field<bool>,
}

/// A cost from the response: one of `response_header` and `response_json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct CostOfResponse {
    /// The header field with the cost.
    pub(crate) response_header: Value<HeaderName>,
    /// The JSON pointer to the cost in the content.
    pub(crate) response_json: Field<String>,
    /// The maximum size of the content that is read for it. Default 1MiB.
    pub(crate) max_size: Value<Size>,
    /// The cost until the response has arrived, and if the response has none. Default 1.
    pub(crate) default: Field<u32>,
}

/// One amount for all, or one per plan.
pub(crate) type Amount = KeywordOr<Rate, Plans>;

/// `quota`, or `rate`, by plan.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Plans {
    /// The claim that names the caller's plan, by its path.
    pub(crate) claim: Field<String>,
    /// The amounts by plan.
    pub(crate) values: Field<Map<Scalar<Rate>>>,
    /// The plans of clients, by their ids; they precede the claim.
    pub(crate) clients: Field<Map<String>>,
    /// The amount of callers without a plan. Default: they are refused.
    pub(crate) default: Value<Rate>,
}

/// `response`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Response {
    /// 429 or 503. Default 429.
    pub(crate) status: Value<Status>,
    /// The longest time that is added to `Retry-After` at random. Default 0s.
    pub(crate) retry_jitter: Value<Duration>,
}

/// The kinds of quota windows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Window {
    #[default]
    Calendar,
    Rolling,
    Flexi,
}

impl Keyword for Window {
    const WANTED: &'static str = "calendar, rolling or flexi";
    const WORDS: &'static [(&'static str, Self)] =
        &[("calendar", Self::Calendar), ("rolling", Self::Rolling), ("flexi", Self::Flexi)];
}

/// The storage of a limit's counters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum StoreKind {
    #[default]
    Local,
    Redis,
}

impl Keyword for StoreKind {
    const WANTED: &'static str = "local or redis";
    const WORDS: &'static [(&'static str, Self)] =
        &[("local", Self::Local), ("redis", Self::Redis)];
}

impl Keyword for OnStoreError {
    const WANTED: &'static str = "local, allow or deny";
    const WORDS: &'static [(&'static str, Self)] =
        &[("local", Self::Local), ("allow", Self::Allow), ("deny", Self::Deny)];
}

impl FromScalar for KeyPart {
    const WANTED: &'static str = "a part of a key such as ip or client";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        if let Some(name) = text.strip_prefix("header:") {
            return HeaderName::parse(name).map(Self::Header);
        }
        if let Some(path) = text.strip_prefix("claim:").filter(|path| !path.is_empty()) {
            return Ok(Self::Claim(Arc::from(path)));
        }
        match text {
            "ip" => Ok(Self::Ip),
            "client" => Ok(Self::Client),
            "subject" => Ok(Self::Subject),
            "session" => Ok(Self::Session),
            "route" => Ok(Self::Route),
            "global" => Ok(Self::Global),
            _ => Err(InvalidValue::new(
                "is not a limit key",
                "write ip, client, subject, session, route, global, header:NAME or claim:PATH",
            )),
        }
    }
}

impl Keyword for OnMissing {
    const WANTED: &'static str = "ip, shared, reject or skip";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("ip", Self::Ip),
        ("shared", Self::Shared),
        ("reject", Self::Reject),
        ("skip", Self::Skip),
    ];
}

impl FromScalar for Cost {
    const WANTED: &'static str = "a number or request_size/N";

    fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong =
            || InvalidValue::new("is not a cost", "write a number from 1, or request_size/1024");
        match text.strip_prefix("request_size/") {
            Some(bytes) => bytes.parse::<NonZeroU64>().map(Self::RequestSize).map_err(|_| wrong()),
            None => text.parse::<NonZeroU32>().map(Self::Fixed).map_err(|_| wrong()),
        }
    }
}

impl Keyword for Status {
    const WANTED: &'static str = "429 or 503";
    const WORDS: &'static [(&'static str, Self)] =
        &[("429", Self::TooManyRequests), ("503", Self::ServiceUnavailable)];
}
