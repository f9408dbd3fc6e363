//! Costs that come from the response, such as the tokens of a language model.

use http::{HeaderMap, HeaderName};
use serde_json::{Number, Value};

use super::json_pointer;

/// The place of the cost in a response.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ResponseCost {
    /// A header field. A decimal number is rounded up.
    Header(HeaderName),
    /// A member of JSON content, by its pointer (RFC 6901), such as `/usage/total_tokens`.
    Json {
        /// The pointer: empty, or beginning with a slash.
        pointer: Box<str>,
        /// The maximum bytes of content that are read for it.
        max_size: usize,
    },
}

impl ResponseCost {
    /// Returns the cost in a head, if this is a header field that it has exactly once.
    pub(in crate::limit) fn in_head(&self, headers: &HeaderMap) -> Option<u64> {
        let Self::Header(name) = self else { return None };
        let mut values = headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() { None } else { parse(value.trim()) }
    }

    /// Returns the cost in JSON content: a number, or text of one.
    pub(in crate::limit) fn in_content(&self, content: &[u8]) -> Option<u64> {
        let Self::Json { pointer, .. } = self else { return None };
        match json_pointer::find(content, pointer)? {
            Value::Number(number) => round_up(&number),
            Value::String(text) => parse(&text),
            _ => None,
        }
    }
}

/// Parses a cost: digits, of which those after a point are rounded up. `None` for anything else. More than a limit can
/// count is the most.
fn parse(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let up = u64::from(fraction.bytes().any(|digit| digit != b'0'));
    // Digits that are no such number are too many.
    let whole = whole.parse::<u64>().unwrap_or(MAX_COST);
    Some(whole.saturating_add(up).min(MAX_COST))
}

/// Returns a number as a cost, rounded up; `None` for a negative one.
fn round_up(number: &Number) -> Option<u64> {
    let fraction = || number.as_f64().filter(|cost| *cost >= 0.0);
    // The cast saturates.
    let cost = number.as_u64().or_else(|| fraction().map(|cost| cost.ceil() as u64))?;
    Some(cost.min(MAX_COST))
}

/// The largest cost of one request: that of the largest quota.
const MAX_COST: u64 = 999_999_999_999_999;

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_field_tells_a_cost_once_and_as_digits() {
        let cost = ResponseCost::Header(HeaderName::from_static("x-cost"));
        let told = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-cost", HeaderValue::from_static(value));
            }
            cost.in_head(&headers)
        };

        assert_eq!(told(&["17"]), Some(17));
        assert_eq!(told(&[" 0 "]), Some(0));
        assert_eq!(told(&["1.5"]), Some(2));
        assert_eq!(told(&["2.000"]), Some(2));
        for most in
            ["999999999999999", "1000000000000000", "99999999999999999999", "999999999999999.5"]
        {
            assert_eq!(told(&[most]), Some(MAX_COST), "{most}");
        }
        for wrong in ["", "-1", "1e9", "+1", "0x10", "1,5", ".5", "5."] {
            assert_eq!(told(&[wrong]), None, "{wrong}");
        }
        assert_eq!(told(&["1", "2"]), None, "which one?");
        assert_eq!(told(&[]), None);
    }

    #[test]
    fn content_tells_a_cost_by_its_pointer() {
        let cost = ResponseCost::Json { pointer: "/usage/total_tokens".into(), max_size: 1 };

        let told = |content: serde_json::Value| cost.in_content(content.to_string().as_bytes());

        assert_eq!(told(json!({ "usage": { "total_tokens": 812 } })), Some(812));
        assert_eq!(told(json!({ "usage": { "total_tokens": 0.25 } })), Some(1));
        assert_eq!(told(json!({ "usage": { "total_tokens": "7" } })), Some(7));
        assert_eq!(told(json!({ "usage": { "total_tokens": 1e-7 } })), Some(1));
        assert_eq!(told(json!({ "usage": { "total_tokens": 0.0 } })), Some(0));
        for most in [
            json!(1_000_000_000_000_000_u64),
            json!(1e16),
            json!(1e300),
            json!("10000000000000000"),
        ] {
            assert_eq!(told(json!({ "usage": { "total_tokens": most } })), Some(MAX_COST));
        }
        for wrong in [json!({}), json!({ "usage": { "total_tokens": -3 } }), json!([1])] {
            assert_eq!(told(wrong.clone()), None, "{wrong}");
        }
    }
}
