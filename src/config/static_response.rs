//! A response that the file writes out: `respond` of a route, and of a fallback.

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::redact::shown;

/// A fixed response of the gateway.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StaticResponse {
    /// The status, 200 to 599. Default 200.
    pub status: StatusCode,
    /// The content, often empty.
    pub body: String,
    /// The header fields, `Content-Type` among them if there is content.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl StaticResponse {
    /// Returns these settings under the keys of the file.
    pub(super) fn effective(&self) -> Value {
        let headers = self.headers.iter().map(|(name, value)| {
            let value = shown(name.as_str(), value.to_str().unwrap_or_default());
            (name.to_string(), json!(value))
        });
        json!({
            "status": self.status.as_u16(),
            "body": shown("body", &self.body),
            "headers": Value::Object(headers.collect()),
        })
    }
}
