//! `GET /-/limits`, `GET /-/usage` and `POST /-/limits/reset`: the counters of limits for operators.

use core::net::IpAddr;
use std::sync::Arc;

use axum::extract::Request;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::content::{ContentError, bare, read_fields};
use crate::gateway::{RetainedState, Snapshot};
use crate::limit::{Limiter, Now, Reset, ResetTarget};

/// Returns every limit with its largest consumers.
pub(super) fn report(snapshot: &Snapshot, retained: &RetainedState) -> Value {
    let now = Now::of(&retained.clock);
    json!({ "limits": snapshot.limiters().map(|limiter| limiter.report(now)).collect::<Vec<_>>() })
}

/// Returns the use of every limit's known consumers.
pub(super) fn usage(snapshot: &Snapshot, retained: &RetainedState) -> Value {
    let now = Now::of(&retained.clock);
    let usage: Vec<_> = snapshot.limiters().flat_map(|limiter| limiter.usage(now)).collect();
    json!({ "usage": usage })
}

/// A request to reset counters.
#[derive(Debug)]
pub(super) struct ResetRequest {
    /// The limit; all if there is none.
    limit: Option<String>,
    issuer: Option<String>,
    parts: Map<String, Value>,
}

/// The reason for refusing a request.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ResetError {
    #[error(transparent)]
    Content(#[from] ContentError),
    #[error("a value is empty, null, or of a type that its part does not have")]
    Value,
    #[error(
        "unknown field `{0}`: allowed are limit, issuer, key, and the parts of keys, such as client, ip and header:x-tenant"
    )]
    Unknown(String),
    #[error("`ip` is not an IP address")]
    Address,
    #[error("nothing to reset: name a limit, a client or another part of a key")]
    Nothing,
    #[error("`issuer` qualifies a client, subject or session: name one of them as well")]
    IssuerAlone,
    #[error("unknown limit")]
    NoLimit,
    #[error("no configured issuer has this name or `iss`")]
    Issuer,
    #[error("the limit's key has further parts: name them as well")]
    OtherKey,
    #[error("requests in flight are counted until they end")]
    InFlight,
    #[error("the store of shared limits is unavailable; some counters may have been reset already")]
    Store,
}

impl ResetError {
    pub(super) const fn status(&self) -> StatusCode {
        match self {
            Self::Content(error) => error.status(),
            Self::NoLimit => StatusCode::NOT_FOUND,
            Self::Store => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

impl ResetRequest {
    /// Reads the request, whose content the admin listener limits to 64 KiB.
    pub(super) async fn read(request: Request) -> Result<Self, ResetError> {
        Self::parse(read_fields(request).await?)
    }

    fn parse(fields: Map<String, Value>) -> Result<Self, ResetError> {
        let mut request = Self { limit: None, issuer: None, parts: Map::new() };
        for (name, value) in fields {
            match (&*name, value) {
                ("key", Value::Object(parts)) => {
                    for (name, value) in parts {
                        request.part(name, value)?;
                    }
                }
                ("limit", Value::String(limit)) if !bare(&limit).is_empty() => {
                    request.limit = Some(bare(&limit).to_owned());
                }
                ("limit" | "key", _) => return Err(ResetError::Value),
                (_, value) => request.part(name, value)?,
            }
        }
        if request.limit.is_none() && request.parts.is_empty() {
            return Err(ResetError::Nothing);
        }
        if request.issuer.is_some() && request.parts.is_empty() {
            return Err(ResetError::IssuerAlone);
        }
        Ok(request)
    }

    fn part(&mut self, name: String, value: Value) -> Result<(), ResetError> {
        // A claim is named as the token has it, to the blank.
        let value = match value {
            Value::String(text) if !name.starts_with("claim:") => bare(&text).into(),
            value => value,
        };
        let is_part = matches!(&*name, "ip" | "client" | "subject" | "session" | "route")
            || name.starts_with("header:")
            || name.starts_with("claim:");
        let is_value = match &value {
            Value::String(text) => !text.is_empty(),
            Value::Null => false,
            // As the token says it, whatever its type.
            _ => name.starts_with("claim:"),
        };
        match (&*name, value) {
            _ if !is_value => Err(ResetError::Value),
            ("ip", Value::String(ip)) if ip.parse::<IpAddr>().is_err() => Err(ResetError::Address),
            ("issuer" | "iss", Value::String(issuer)) => match self.issuer.replace(issuer) {
                None => Ok(()),
                Some(_) => Err(TWICE),
            },
            (_, value) if is_part => match self.parts.insert(part_name(&name), value) {
                None => Ok(()),
                Some(_) => Err(TWICE),
            },
            _ => Err(ResetError::Unknown(name)),
        }
    }

    /// Resets the counters; returns how many of which limit.
    pub(super) async fn run(
        self,
        snapshot: &Snapshot,
        retained: &RetainedState,
    ) -> Result<Value, ResetError> {
        let mut issuers = snapshot.namespaces(self.issuer.as_deref());
        if self.issuer.is_none() {
            // A key without an issuer is stored with an empty issuer name.
            issuers.push(Box::default());
        }
        if issuers.is_empty() {
            return Err(ResetError::Issuer);
        }
        let routes = snapshot.route_ids().map(Box::from).collect();
        let target = ResetTarget { parts: self.parts, issuers, routes };
        let named = |limiter: &&Arc<Limiter>| {
            self.limit.as_ref().is_none_or(|name| *limiter.settings().name == **name)
        };
        let limiters: Vec<_> = snapshot.limiters().filter(named).collect();
        if limiters.is_empty() {
            return Err(ResetError::NoLimit);
        }
        let now = Now::of(&retained.clock);
        let (mut done, mut skipped, mut partial) = (Map::new(), Vec::new(), Vec::new());
        for limiter in limiters {
            let name = &*limiter.settings().name;
            match limiter.reset(retained.counts(), &target, now).await {
                Reset::Done(count) => _ = done.insert(name.to_owned(), count.into()),
                Reset::Partial(count) => {
                    done.insert(name.to_owned(), count.into());
                    partial.push(name.to_owned());
                }
                Reset::StoreFailed => return Err(ResetError::Store),
                Reset::OtherKey if self.limit.is_some() => return Err(ResetError::OtherKey),
                Reset::InFlight if self.limit.is_some() => return Err(ResetError::InFlight),
                Reset::OtherKey | Reset::InFlight => skipped.push(name.to_owned()),
            }
        }
        let parts: Vec<_> = target.parts.keys().map(|part| &**part).collect();
        let limits: Vec<_> = done.iter().map(|(name, count)| format!("{name}={count}")).collect();
        // Only the parts of the key, not their values, which may be secrets.
        tracing::info!(
            limits = limits.join(" "),
            key_parts = parts.join(" "),
            "Counters of limits reset through the admin API."
        );
        Ok(json!({ "reset": done, "skipped": skipped, "partial": partial }))
    }
}

/// A part that is named twice, beside `key` and in it, or in two spellings: each names other counters.
const TWICE: ResetError = ResetError::Content(ContentError::Twice);

/// Returns the name of a part as the file writes it: header field names in lower case.
fn part_name(name: &str) -> String {
    match name.strip_prefix("header:") {
        Some(field) => format!("header:{}", field.to_ascii_lowercase()),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_named_twice_is_refused() {
        for twice in [
            json!({ "client": "a", "key": { "client": "b" } }),
            json!({ "header:X-K": "a", "header:x-k": "b" }),
            json!({ "client": "a", "issuer": "main", "iss": "other" }),
            json!({ "client": "a", "issuer": "main", "key": { "issuer": "other" } }),
        ] {
            let refused = ResetRequest::parse(twice.as_object().cloned().unwrap_or_default());
            assert_eq!(refused.map(|_| ()), Err(TWICE), "{twice}");
        }
    }

    #[test]
    fn a_part_of_a_key_has_any_value_that_its_claim_may_have() {
        let parse = |part: &str, value: &Value| {
            let fields = json!({ "limit": "orders", "key": { part: value } });
            ResetRequest::parse(fields.as_object().cloned().unwrap_or_default())
        };

        for value in [json!("a"), json!(7), json!(false), json!(["a", "b"]), json!({ "id": 7 })] {
            let parsed = parse("claim:org", &value).expect("a value of a claim");
            assert_eq!(parsed.parts["claim:org"], value);
        }
        let parsed = parse("client", &json!("app\n")).expect("a client");
        assert_eq!(parsed.parts["client"], json!("app"));
        let parsed = parse("claim:org", &json!("a ")).expect("a claim");
        assert_eq!(parsed.parts["claim:org"], json!("a "));
        for (part, value) in [
            ("client", json!(" \n")),
            ("claim:org", json!(null)),
            ("claim:org", json!("")),
            ("client", json!(["a"])),
        ] {
            let refused = parse(part, &value).map(|_| ());
            assert!(matches!(refused, Err(ResetError::Value)), "{part} {value}");
        }
    }
}
