//! The shapes of a service's answers.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::Value;

/// An answer, whole or streaming.
pub(super) type Reply = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Indented JSON, for people who use curl.
pub(super) fn json(status: StatusCode, value: &Value) -> Reply {
    of(status, "application/json", format!("{value:#}\n"))
}

/// A page with scripts and styles of its own origin only.
pub(super) fn html(body: impl Into<Bytes>) -> Reply {
    let mut reply = of(StatusCode::OK, "text/html; charset=utf-8", body);
    reply.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    reply
}

/// A whole body, not to be kept.
pub(super) fn of(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let whole = Full::new(body.into()).map_err(|never| match never {});
    streaming(status, content_type, UnsyncBoxBody::new(whole))
}

/// A body that comes bit by bit.
pub(super) fn streaming(
    status: StatusCode,
    content_type: &'static str,
    body: UnsyncBoxBody<Bytes, hyper::Error>,
) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    reply
}

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
