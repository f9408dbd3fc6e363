//! Responses of the issuer.

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, LOCATION, PRAGMA, REFERRER_POLICY};
use http::{HeaderValue, StatusCode};
use serde_json::Value;

pub(super) use crate::dev::response::content;

/// Returns JSON that caches must not store: it holds tokens, or claims of tokens (RFC 6749 §5.1).
pub(super) fn json(status: StatusCode, value: &Value) -> Response {
    let mut response = content(status, "application/json", value.to_string());
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    response
}

/// Returns JSON that any cache may reuse for `max_age` seconds.
pub(super) fn public_json(value: &Value, max_age: u64) -> Response {
    let mut response = content(StatusCode::OK, "application/json", value.to_string());
    if let Ok(value) = HeaderValue::try_from(format!("public, max-age={max_age}")) {
        response.headers_mut().insert(CACHE_CONTROL, value);
    }
    response
}

/// Redirects a user agent with `GET`, whatever its method was (RFC 9700 §4.12).
pub(super) fn see_other(location: &str) -> Response {
    let Ok(location) = HeaderValue::try_from(location) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    headers.insert(LOCATION, location);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// Returns a page without script, in no frame, whose forms go to this origin and, after a
/// redirect, to `form_target` (Chromium applies `form-action` to redirects, too).
pub(super) fn page(status: StatusCode, html: String, form_target: Option<&str>) -> Response {
    let mut response = content(status, "text/html; charset=utf-8", html);
    let policy = format!(
        "default-src 'none'; style-src 'self'; form-action 'self' {}; frame-ancestors 'none'; base-uri 'none'",
        form_target.unwrap_or_default()
    );
    let headers = response.headers_mut();
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
