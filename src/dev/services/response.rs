//! Responses of the sample services.

use axum::body::Body;
use axum::response::Response;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY};
use http::{HeaderValue, StatusCode};
use serde_json::Value;

use crate::dev::response;

/// Returns indented JSON, for people who use curl.
pub(super) fn json(status: StatusCode, value: &Value) -> Response {
    content(status, "application/json", format!("{value:#}\n"))
}

/// Returns a page that may load scripts and styles of its own origin only.
pub(super) fn html(page: impl Into<Body>) -> Response {
    let mut response = content(StatusCode::OK, "text/html; charset=utf-8", page);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

/// Returns `body`, whole or streaming, which caches must not store.
pub(super) fn content(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Body>,
) -> Response {
    let mut response = response::content(status, content_type, body);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
