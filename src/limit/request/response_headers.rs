//! Response header fields about limits: `RateLimit`, `RateLimit-Policy` and `Retry-After`.
//!
//! The first two are those of the IETF draft "`RateLimit` header fields for
//! HTTP" (draft-ietf-httpapi-ratelimit-headers-11), lists of structured fields
//! (RFC 9651). The policy is constant and written once; the remaining
//! allowance is written when a response is sent, into one buffer on the stack.

use http::header::Entry;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::limit::algorithms::rate::{Kind, Rate};
use crate::limit::limiter::{Balance, Limiter};

/// The maximum number of limits of one route in a response; further ones are enforced silently.
pub(in crate::limit) const MAX_POLICIES: usize = 8;

/// The header fields of one route's responses.
#[derive(Debug)]
pub(in crate::limit) struct RateLimitFields {
    /// The policies of all limits; `None` if some depend on the caller's plan.
    policy: Option<HeaderValue>,
    /// The policies of each limit by its index: without a plan, and of each plan.
    policies: [Box<[Box<str>]>; MAX_POLICIES],
    /// `"daily";r=` for each limit by its index; empty for limits without header fields.
    labels: [Box<str>; MAX_POLICIES],
}

impl RateLimitFields {
    /// Creates the fields for these limits, in this order; `None` if no limit has header fields.
    pub(in crate::limit) fn new<'a>(
        limiters: impl IntoIterator<Item = &'a Limiter>,
    ) -> Option<Self> {
        let mut labels: [Box<str>; MAX_POLICIES] = Default::default();
        let mut policies: [Box<[Box<str>]>; MAX_POLICIES] = Default::default();
        for ((label, policies), limiter) in labels.iter_mut().zip(&mut policies).zip(limiters) {
            let settings = limiter.settings();
            if settings.tells_clients() {
                *label = format!("{};r=", quoted(&settings.name)).into();
                let plans = settings.plans.iter().flat_map(|plans| &plans.values);
                let kinds = core::iter::once(&settings.kind).chain(plans.map(|plan| &plan.kind));
                *policies = kinds.map(|kind| policy(&settings.name, kind).into()).collect();
            }
        }
        let constant: Vec<&str> = policies.iter().filter_map(|all| Some(&**all.first()?)).collect();
        let has_plans = policies.iter().any(|all| all.len() > 1);
        let policy = HeaderValue::try_from(constant.join(", ")).ok()?;
        let is_empty = constant.is_empty();
        let policy = (!has_plans).then_some(policy);
        (!is_empty).then_some(Self { policy, policies, labels })
    }

    /// Adds both fields to a response, unless no limit has checked the request.
    pub(in crate::limit) fn write(
        &self,
        standing: &[Balance; MAX_POLICIES],
        headers: &mut HeaderMap,
    ) {
        let mut line = FieldLine { bytes: [0; MAX_LINE_BYTES], len: 0 };
        for (label, left) in self.labels.iter().zip(standing) {
            if !left.checked {
                continue;
            }
            if line.len > 0 {
                line.text(b", ");
            }
            line.text(label.as_bytes());
            line.number(left.remaining);
            if left.reset > 0 {
                line.text(b";t=");
                line.number(left.reset.into());
            }
        }
        // The labels are visible ASCII, since the policy is a valid field value.
        let Ok(value) = HeaderValue::from_bytes(&line.bytes[..line.len]) else { return };
        if line.len > 0 {
            // Both are lists: an upstream's own fields stay beside the gateway's.
            append(headers, RATE_LIMIT, value);
            if let Some(policy) = self.policy.clone().or_else(|| self.policy_of(standing)) {
                append(headers, RATE_LIMIT_POLICY, policy);
            }
        }
    }

    /// Returns the policies of the limits that were checked, by the caller's plans.
    fn policy_of(&self, standing: &[Balance; MAX_POLICIES]) -> Option<HeaderValue> {
        let checked = self.policies.iter().zip(standing).filter(|(_, left)| left.checked);
        let policies: Vec<&str> =
            checked.filter_map(|(all, left)| Some(&**all.get(left.plan.position())?)).collect();
        HeaderValue::try_from(policies.join(", ")).ok()
    }
}

/// Appends to a list of named policies. An upstream's field in the form of an older draft (`limit=100, remaining=99`) is replaced:
/// together the two would be no list.
fn append(headers: &mut HeaderMap, name: HeaderName, value: HeaderValue) {
    let is_named = |value: &HeaderValue| value.as_bytes().trim_ascii_start().starts_with(b"\"");
    match headers.entry(name) {
        Entry::Vacant(field) => _ = field.insert(value),
        Entry::Occupied(mut field) if field.iter().all(is_named) => field.append(value),
        Entry::Occupied(mut field) => _ = field.insert(value),
    }
}

/// Formats one Item of `RateLimit-Policy`.
fn policy(name: &str, kind: &Kind) -> String {
    let name = quoted(name);
    let of = |rate: Rate| format!("{name};q={};w={}", rate.count(), rate.unit().secs());
    match kind {
        Kind::Rate(spike) => of(spike.rate()),
        Kind::Quota(quota) => of(quota.rate()),
        Kind::Concurrency(slots) => format!(r#"{name};q={slots};qu="concurrent-requests""#),
    }
}

/// Formats a String of a structured field (RFC 9651 §3.3.3); invalid characters are left out.
fn quoted(name: &str) -> String {
    let plain = |c: &char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
    format!("\"{}\"", name.chars().filter(plain).take(MAX_NAME_BYTES).collect::<String>())
}

/// A header field value being written.
struct FieldLine {
    bytes: [u8; MAX_LINE_BYTES],
    len: usize,
}

impl FieldLine {
    fn text(&mut self, text: &[u8]) {
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    fn number(&mut self, number: u64) {
        let number = number.min(MAX_NUMBER_BYTES);
        let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
        let mut rest = number;
        for index in (self.len..self.len + digits).rev() {
            self.bytes[index] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.len += digits;
    }
}

/// The maximum length of a limit's name.
const MAX_NAME_BYTES: usize = 63;
/// The largest Integer of a structured field (RFC 9651 §3.3.1).
const MAX_NUMBER_BYTES: u64 = 999_999_999_999_999;
/// The length of a line of the longest items: `, "name";r=number;t=number`.
const MAX_LINE_BYTES: usize = MAX_POLICIES * (2 + MAX_NAME_BYTES + 2 + 3 + 15 + 3 + 15);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_an_older_draft_is_replaced_and_a_list_of_policies_kept() {
        let own = HeaderValue::from_static("\"daily\";r=3");
        for (upstream, all) in [
            (vec![], vec!["\"daily\";r=3"]),
            (vec!["\"b\";r=1"], vec!["\"b\";r=1", "\"daily\";r=3"]),
            (vec!["limit=100, remaining=99, reset=900"], vec!["\"daily\";r=3"]),
            (vec!["\"b\";r=1", "100"], vec!["\"daily\";r=3"]),
        ] {
            let mut headers = HeaderMap::new();
            for value in upstream {
                headers.append(RATE_LIMIT, HeaderValue::from_static(value));
            }

            append(&mut headers, RATE_LIMIT, own.clone());

            let fields: Vec<_> = headers.get_all(RATE_LIMIT).iter().collect();
            assert_eq!(fields, all);
        }
    }
}
