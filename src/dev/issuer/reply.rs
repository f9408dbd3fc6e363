//! The shapes of answers.

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, PRAGMA, REFERRER_POLICY,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::error::OAuthError;

/// An answer of the issuer.
pub(super) type Reply = Response<Full<Bytes>>;

/// JSON that nobody may keep: it holds tokens, or what tokens say (RFC 6749 §5.1).
pub(super) fn json(status: StatusCode, value: &Value) -> Reply {
    let mut reply = of(status, "application/json", value.to_string());
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply.headers_mut().insert(PRAGMA, HeaderValue::from_static("no-cache"));
    reply
}

/// JSON that anybody may keep for `max_age` seconds.
pub(super) fn public_json(value: &Value, max_age: u64) -> Reply {
    let mut reply = of(StatusCode::OK, "application/json", value.to_string());
    if let Ok(value) = HeaderValue::try_from(format!("public, max-age={max_age}")) {
        reply.headers_mut().insert(CACHE_CONTROL, value);
    }
    reply
}

/// A refusal at an endpoint that programs call (RFC 6749 §5.2).
pub(super) fn error(error: OAuthError) -> Reply {
    let body = json!({ "error": error.code.name(), "error_description": error.description });
    let mut reply = json(error.status(), &body);
    if error.status() == StatusCode::UNAUTHORIZED {
        let challenge = HeaderValue::from_static(r#"Basic realm="development issuer""#);
        reply.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    reply
}

/// A method that the path does not take.
pub(super) fn method_not_allowed(allow: &'static str) -> Reply {
    let mut reply = empty(StatusCode::METHOD_NOT_ALLOWED);
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    reply
}

/// Sends a browser elsewhere with GET, whatever it came with (RFC 9700 §4.12).
pub(super) fn see_other(location: &str) -> Reply {
    let Ok(location) = HeaderValue::try_from(location) else {
        return empty(StatusCode::INTERNAL_SERVER_ERROR);
    };
    let mut reply = empty(StatusCode::SEE_OTHER);
    let headers = reply.headers_mut();
    headers.insert(LOCATION, location);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    reply
}

/// A page without script, in no frame, whose forms go here and, after a
/// redirect, to `form_target` (Chromium checks redirects, too).
pub(super) fn page(status: StatusCode, html: String, form_target: Option<&str>) -> Reply {
    let mut reply = of(status, "text/html; charset=utf-8", html);
    let policy = format!(
        "default-src 'none'; style-src 'self'; form-action 'self' {}; frame-ancestors 'none'; base-uri 'none'",
        form_target.unwrap_or_default()
    );
    let headers = reply.headers_mut();
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    reply
}

/// A body of the given type.
pub(super) fn of(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

/// A status alone.
pub(super) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Full::default());
    *reply.status_mut() = status;
    reply
}
