//! Limits and metering in the effective configuration.

use serde_json::{Map, Value, json};

use super::de::units::{Keyword, format_duration};
use super::redact::shown;
use crate::base::secret::HIDDEN;
use crate::limit::{Cost, Kind, ResponseCost, Window};
use crate::{limit, metering};

/// Returns the destinations of usage.
pub(super) fn metering_of(metering: &metering::Settings) -> Value {
    json!({
        "interval": format_duration(metering.interval),
        "log": metering.log,
        "file": metering.file.as_ref().map(|file| file.display().to_string()),
        "http": metering.http.as_ref().map(|http| json!({
            "url": shown("url", http.url.as_str()),
            "token": http.token.as_ref().map(|_| HIDDEN),
            "timeout": format_duration(http.timeout),
        })),
    })
}

/// Returns one limit.
pub(super) fn limit_of(limit: &limit::Settings) -> Value {
    let mut all = Map::new();
    match &limit.kind {
        Kind::Rate(spike) => {
            all.insert("rate".into(), amounts_of(limit));
            // Plans without a burst of their own have different ones, by their rates.
            let bursts = || bursts_of(limit, spike.burst().get());
            let first = bursts().next();
            if bursts().all(|burst| Some(burst) == first) {
                all.insert("burst".into(), first.into());
            }
        }
        Kind::Quota(quota) => {
            all.insert("quota".into(), amounts_of(limit));
            let window = match quota.window() {
                Window::Calendar(zone) => {
                    all.insert("timezone".into(), zone.name().into());
                    "calendar"
                }
                Window::Flexi => "flexi",
                Window::Rolling => "rolling",
            };
            all.insert("window".into(), window.into());
        }
        Kind::Concurrency(max) => {
            all.insert("concurrency".into(), max.get().into());
        }
    }
    let cost = match (&limit.response_cost, limit.cost) {
        (Some(ResponseCost::Header(name)), Cost::Fixed(default)) => {
            json!({ "response_header": name.as_str(), "default": default })
        }
        (Some(ResponseCost::Json { pointer, max_size }), Cost::Fixed(default)) => {
            let max_size = format!("{max_size}B");
            json!({ "response_json": pointer, "max_size": max_size, "default": default })
        }
        (_, Cost::Fixed(cost)) => json!(cost),
        (_, Cost::RequestSize(bytes)) => json!(format!("request_size/{bytes}")),
    };
    all.extend([
        ("by".to_owned(), by_of(limit)),
        ("on_missing".to_owned(), json!(limit.on_missing.word())),
        ("max_keys".to_owned(), limit.max_keys.into()),
        ("cost".to_owned(), cost),
        (
            "response".to_owned(),
            json!({
                "status": http::StatusCode::from(limit.status).as_u16(),
                "retry_jitter": format_duration(limit.retry_jitter),
            }),
        ),
        ("headers".to_owned(), limit.headers.into()),
        ("dry_run".to_owned(), limit.dry_run.into()),
        ("store".to_owned(), if limit.store.is_shared() { "redis" } else { "local" }.into()),
        ("metered".to_owned(), limit.metered.into()),
    ]);
    if let limit::Store::Redis { exact, on_error } = limit.store {
        all.insert("exact".to_owned(), exact.into());
        all.insert("on_store_error".to_owned(), json!(on_error.word()));
    }
    if matches!(limit.kind, Kind::Concurrency(_)) {
        all.remove("cost");
    }
    if let Some(methods) = &limit.methods {
        all.insert("methods".into(), methods.iter().map(http::Method::as_str).collect());
    }
    Value::Object(all)
}

/// Returns the burst of each plan, or `own` without plans.
fn bursts_of(limit: &limit::Settings, own: u32) -> impl Iterator<Item = u32> {
    let plans = limit.plans.as_ref();
    let own = plans.is_none_or(|plans| plans.has_default).then_some(own);
    let of_plan = |kind: &Kind| match kind {
        Kind::Rate(spike) => Some(spike.burst().get()),
        Kind::Quota(_) | Kind::Concurrency(_) => None,
    };
    let of_plans = plans.into_iter().flat_map(|plans| &plans.values);
    of_plans.filter_map(move |plan| of_plan(&plan.kind)).chain(own)
}

/// Returns the amount of a rate or quota, by plan if it has plans.
fn amounts_of(limit: &limit::Settings) -> Value {
    let amount = |kind: &Kind| {
        let rate = match kind {
            Kind::Rate(spike) => spike.rate(),
            Kind::Quota(quota) => quota.rate(),
            Kind::Concurrency(max) => return json!(max),
        };
        json!(rate.to_string())
    };
    let Some(plans) = &limit.plans else { return amount(&limit.kind) };
    let mut all = Map::new();
    if let Some(claim) = &plans.claim {
        all.insert("claim".into(), json!(claim));
    }
    let values = plans.values.iter().map(|plan| (plan.name.to_string(), amount(&plan.kind)));
    all.insert("values".into(), Value::Object(values.collect()));
    if !plans.clients.is_empty() {
        let named = plans.clients.iter().map(|(client, index)| {
            let plan = plans.values.get(usize::from(*index));
            (client.to_string(), json!(plan.map(|plan| &plan.name)))
        });
        all.insert("clients".into(), Value::Object(named.collect()));
    }
    if plans.has_default {
        all.insert("default".into(), amount(&limit.kind));
    }
    Value::Object(all)
}

/// Returns the key parts of a limit; `global` for none.
fn by_of(limit: &limit::Settings) -> Value {
    if limit.by.is_empty() {
        json!("global")
    } else {
        limit.by.iter().map(ToString::to_string).collect()
    }
}
