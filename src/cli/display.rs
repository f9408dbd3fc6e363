//! Formats configured values for `routes`, `explain` and `config`.

use core::fmt::Display;

use http::StatusCode;

use crate::config::format_duration;
use crate::config::route::{HeaderMatch, ValueMatch};
use crate::config::{Auth, AuthMethod, Credential, TokenBinding};
use crate::limit::{self, Cost, KeyPart, Kind, OnMissing, OnStoreError, ResponseCost};

/// Returns the items separated by commas: `a, b`.
pub(super) fn list<T: Display>(things: impl IntoIterator<Item = T>) -> String {
    joined(things, ", ")
}

/// Returns a count with its noun: `no routes`, `1 route`, `2 routes`.
pub(super) fn count(number: usize, thing: &str) -> String {
    match number {
        0 => format!("no {thing}s"),
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

fn joined<T: Display>(things: impl IntoIterator<Item = T>, between: &str) -> String {
    things.into_iter().map(|thing| thing.to_string()).collect::<Vec<_>>().join(between)
}

/// Returns the credentials that a route accepts, in short: `jwt main or basic main`.
pub(super) fn auth(auth: &Auth) -> String {
    let Auth::AnyOf { methods, optional } = auth else { return "none".to_owned() };
    let methods =
        joined(methods.iter().map(|auth_method| credential(&auth_method.credential)), " or ");
    if *optional { format!("{methods} or nothing") } else { methods }
}

fn credential(credential: &Credential) -> String {
    format!("{} {}", credential.key(), list(credential.names()))
}

/// Returns one accepted credential in full: what the client presents, and what is required of it.
pub(super) fn auth_method(auth_method: &AuthMethod) -> String {
    let mut words = auth_method.credential.description_with_names();
    let mut must = Vec::new();
    if !auth_method.scopes.is_empty() {
        must.push(format!("every scope of {}", list(auth_method.scopes.iter())));
    }
    if !auth_method.any_scope.is_empty() {
        must.push(format!("a scope of {}", list(auth_method.any_scope.iter())));
    }
    if !auth_method.audience.is_empty() {
        must.push(format!("an audience of {}", list(&auth_method.audience)));
    }
    if !auth_method.clients.is_empty() {
        must.push(format!("a client of {}", list(&auth_method.clients)));
    }
    if !auth_method.claims.is_empty() {
        must.push(format!(
            "matching claims {}",
            list(auth_method.claims.iter().map(|claim| &claim.path))
        ));
    }
    match auth_method.bound_to {
        Some(TokenBinding::Key) => must.push("a DPoP proof with the key it is bound to".to_owned()),
        Some(TokenBinding::Certificate) => {
            must.push("the client certificate it is bound to".to_owned());
        }
        None => {}
    }
    if !must.is_empty() {
        words = format!("{words}, with {}", joined(must, " and "));
    }
    words
}

/// Returns a limit's amount, key and cost: `10/s, burst 10, by ip`.
pub(super) fn limit(settings: &limit::Settings) -> String {
    let mut words = settings.plans.as_ref().map_or_else(
        || amount(&settings.kind),
        |plans| {
            let claim = plans.claim.as_ref().map(|claim| format!("the claim {claim}"));
            let mut amounts: Vec<_> = plans
                .values
                .iter()
                .map(|plan| format!("{} {}", plan.name, amount(&plan.kind)))
                .collect();
            amounts.push(if plans.has_default {
                format!("any other {}", amount(&settings.kind))
            } else {
                "any other 403".to_owned()
            });
            let named_by = match claim {
                Some(claim) if plans.clients.is_empty() => claim,
                Some(claim) => format!("the client, or else {claim},"),
                None => "the client".to_owned(),
            };
            format!("by the plan that {named_by} names: {}", amounts.join("; "))
        },
    );
    if settings.by.is_empty() {
        words.push_str(", for all clients together");
    } else {
        words = format!("{words}, by {}", joined(&settings.by, " and "));
    }
    if let Some(methods) = &settings.methods {
        words = format!("{words}, {} only", list(&**methods));
    }
    if let Some(cost) = cost(settings) {
        words = format!("{words}, {cost}");
    }
    if settings.dry_run {
        words.push_str(", refusing nothing (dry run)");
    }
    words
}

/// Returns what a request costs; `None` for one unit.
fn cost(settings: &limit::Settings) -> Option<String> {
    if matches!(settings.kind, Kind::Concurrency(_)) {
        return None;
    }
    let told = match &settings.response_cost {
        Some(ResponseCost::Header(name)) => format!("in {name} of the response"),
        Some(ResponseCost::Json { pointer, max_size }) => {
            format!("at {pointer} of the response, in up to {max_size} bytes of JSON")
        }
        None => match settings.cost {
            Cost::Fixed(cost) if cost.get() == 1 => return None,
            Cost::Fixed(cost) => return Some(format!("at a cost of {cost}")),
            Cost::RequestSize(bytes) => {
                return Some(format!("at a cost of 1 per {bytes} bytes of the request's content"));
            }
        },
    };
    let until_then = match settings.cost {
        Cost::Fixed(cost) => cost.to_string(),
        Cost::RequestSize(bytes) => format!("1 per {bytes} bytes"),
    };
    Some(format!("at the cost {told}; {until_then} until then, and if it has none"))
}

/// Returns what else a limit does, one line each: with a request that lacks a part of its key, and in other ways than by
/// default.
pub(super) fn limit_notes(settings: &limit::Settings) -> Vec<String> {
    // Without `..`: a new setting must be described here or above.
    let limit::Settings {
        name,
        kind,
        plans: _,
        by,
        on_missing,
        max_keys,
        cost: _,
        response_cost: _,
        methods: _,
        status,
        headers,
        retry_jitter,
        dry_run,
        store: _,
        metered,
    } = settings;
    let default = limit::Settings::new(name, kind.clone());
    let mut notes = Vec::new();
    let may_lack = |part: &&KeyPart| part.needs_principal() || matches!(part, KeyPart::Header(_));
    let missing = by.iter().filter(may_lack).collect::<Vec<_>>();
    if !missing.is_empty() {
        let then = match on_missing {
            OnMissing::Ip => "counts by its address instead",
            OnMissing::Shared => "counts together with all others without",
            OnMissing::Reject if *dry_run => "would be refused with 400",
            OnMissing::Reject => "is refused with 400",
            OnMissing::Skip => "is not counted",
        };
        notes.push(format!("a request without {} {then}", joined(missing, " or ")));
    }
    if *max_keys != default.max_keys {
        notes.push(format!("{max_keys} keys have counters of their own, all others share one"));
    }
    if *status != default.status {
        notes.push(format!("refuses with {}", StatusCode::from(*status).as_u16()));
    }
    if !headers && !dry_run {
        notes.push(
            "responses have no header field with the remaining amount or the time to retry"
                .to_owned(),
        );
    } else if !retry_jitter.is_zero() {
        let max = format_duration(*retry_jitter);
        notes.push(format!("Retry-After is up to {max} longer, at random"));
    }
    if *metered {
        notes.push("its usage is collected for bills".to_owned());
    }
    notes
}

/// Returns by how much a limit that gateways share may be exceeded, and when, one case per line; nothing for a limit of
/// this gateway alone.
pub(super) fn overrun(settings: &limit::Settings) -> Vec<String> {
    let limit::Store::Redis { on_error, exact } = settings.store else { return Vec::new() };
    let (max, each) = (limit::overrun_bound(settings, 1), limit::least_overrun(settings));
    let unavailable = match on_error {
        OnStoreError::Local => "each gateway gives out its share: up to the limit once more",
        OnStoreError::Allow => "no request is refused: no bound",
        OnStoreError::Deny => "what no lease covers is refused: no more than that",
    };
    let asks = if exact { ", which every request asks" } else { "" };
    vec![
        format!("shared through Redis{asks}, and not exceeded while it responds"),
        format!(
            "if it loses data or begins to fail, or a gateway is killed: up to {max} more, or {each} per gateway if that is more"
        ),
        "if it loses data, the use before a gateway's start, or of a key that none has touched for 10 minutes, may count from zero; if it evicts single keys, any use"
            .to_owned(),
        format!("while it does not respond within {STORE_WAIT}, {unavailable}"),
    ]
}

/// How long a request waits for Redis, see `limit::shared::store_state`.
const STORE_WAIT: &str = "`redis.timeout`, at most 5 ms";

fn amount(kind: &Kind) -> String {
    match kind {
        Kind::Rate(spike) => format!("{}, burst {}", spike.rate(), spike.burst()),
        Kind::Quota(quota) => format!("{} ({})", quota.rate(), quota.window()),
        Kind::Concurrency(max) => format!("{max} in flight"),
    }
}

/// Returns a header field that a request must have.
pub(super) fn field(wanted: &HeaderMatch) -> String {
    match &wanted.value {
        ValueMatch::Exact(_) => format!("{}: {}", wanted.name, wanted.shown()),
        ValueMatch::Regex(_) => format!("{}: matching {}", wanted.name, wanted.shown()),
    }
}

/// Aligns rows in columns; the last column is not padded.
pub(super) fn align<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = core::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
