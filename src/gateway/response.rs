//! Header fields and content of responses, whoever made them: what caches, browsers and `HEAD` are told.

use http::header::{CACHE_CONTROL, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;

use crate::base::body::Body;

/// An answer of the gateway's own without its content, whose length stays where it would be that of a GET
/// (RFC 9110 §9.3.2, §15.3.5).
pub(super) fn without_content(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let said = head.headers.contains_key(CONTENT_LENGTH);
    if let Some(length @ 1..) = body.size_hint().exact()
        && !said
        && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, Body::empty())
}

/// Keeps an answer that is for one browser from every shared cache: in `Cache-Control`, and in each of the fields that
/// say to some of them alone what the service wants (RFC 9213 and its forerunners), which win over `Cache-Control`.
pub(super) fn keep_from_shared_caches(headers: &mut HeaderMap) {
    if !says(headers, &["no-store", "private"]) {
        headers.append(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    let targeted: Vec<HeaderName> =
        headers.keys().filter(|name| speaks_to_some_caches(name)).cloned().collect();
    for name in targeted {
        headers.remove(name);
    }
    for name in [CDN_CACHE_CONTROL, SURROGATE_CONTROL] {
        headers.insert(name, HeaderValue::from_static("no-store"));
    }
}

/// Whether `Cache-Control` has one of `words`.
pub(super) fn says(headers: &HeaderMap, words: &[&str]) -> bool {
    let has = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.split(',').any(|said| words.iter().any(|word| said.trim().eq_ignore_ascii_case(word)))
    };
    headers.get_all(CACHE_CONTROL).iter().any(has)
}

/// Whether a field is for some caches what `Cache-Control` is for all.
fn speaks_to_some_caches(name: &HeaderName) -> bool {
    name.as_str().ends_with("-cache-control")
        || matches!(name.as_str(), "surrogate-control" | "edge-control" | "x-accel-expires")
}

/// What a careful site tells browsers.
pub(super) fn harden(headers: &mut HeaderMap, over_tls: bool) {
    const FIELDS: [(HeaderName, HeaderValue); 3] = [
        (http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (http::header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (
            http::header::REFERRER_POLICY,
            HeaderValue::from_static("strict-origin-when-cross-origin"),
        ),
    ];
    for (name, value) in FIELDS {
        headers.entry(name).or_insert(value);
    }
    if over_tls {
        let year = HeaderValue::from_static("max-age=31536000");
        headers.entry(http::header::STRICT_TRANSPORT_SECURITY).or_insert(year);
    }
}

const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");
