//! Header fields of responses for caches and browsers, and responses without content.

use http::header::{CACHE_CONTROL, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;

use crate::base::body::Body;

/// Removes the content of a response of the gateway; `Content-Length` stays as for GET (RFC 9110 §9.3.2, §15.3.5).
pub(crate) fn without_content(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    let has_length = head.headers.contains_key(CONTENT_LENGTH);
    if let Some(length @ 1..) = body.size_hint().exact()
        && !has_length
        && !matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(head, Body::empty())
}

/// Keeps per-user responses from shared caches: one that sets cookies of the gateway or is of a session's own paths
/// (`is_own`), or one to a request of a user (`is_of_a_user`) with a session or a token outside of `Authorization`. An
/// upstream may mark the last kind as public; a CDN still does not store it.
pub(crate) fn keep_from_caches(headers: &mut HeaderMap, is_own: bool, is_of_a_user: bool) {
    if is_own || is_of_a_user && !has_directive(headers, &["public"]) {
        keep_from_shared_caches(headers);
    } else if is_of_a_user {
        keep_from_targeted_caches(headers);
    }
}

/// Keeps a per-user response from shared caches.
fn keep_from_shared_caches(headers: &mut HeaderMap) {
    if !has_directive(headers, &["no-store", "private"]) {
        let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        let directives = values.flat_map(|value| value.split(',')).map(str::trim);
        let kept = directives.filter(|word| !word.is_empty() && !is_for_shared_caches(word));
        let all: Vec<_> = kept.chain(["private"]).collect();
        let all = HeaderValue::try_from(all.join(", "));
        headers.insert(CACHE_CONTROL, all.unwrap_or(HeaderValue::from_static("private")));
    }
    keep_from_targeted_caches(headers);
}

/// Keeps a response from caches that obey targeted fields, which override `Cache-Control` (RFC 9213 and its
/// precursors), whatever the upstream sends.
fn keep_from_targeted_caches(headers: &mut HeaderMap) {
    let targeted: Vec<HeaderName> =
        headers.keys().filter(|name| is_targeted_field(name)).cloned().collect();
    for name in targeted {
        headers.remove(name);
    }
    for name in [CDN_CACHE_CONTROL, SURROGATE_CONTROL] {
        headers.insert(name, HeaderValue::from_static("no-store"));
    }
}

/// Whether `Cache-Control` has one of the directives `words`. A value with a quoted string is ignored.
pub(crate) fn has_directive(headers: &HeaderMap, words: &[&str]) -> bool {
    let has = |value: &HeaderValue| {
        let text = value.to_str().ok().filter(|text| !text.contains('"')).unwrap_or_default();
        text.split(',')
            .any(|directive| words.iter().any(|word| directive.trim().eq_ignore_ascii_case(word)))
    };
    headers.get_all(CACHE_CONTROL).iter().any(has)
}

/// Whether a directive of `Cache-Control` permits storing by shared caches.
fn is_for_shared_caches(directive: &str) -> bool {
    let name = directive.split('=').next().unwrap_or_default().trim();
    name.eq_ignore_ascii_case("public") || name.eq_ignore_ascii_case("s-maxage")
}

/// Whether a field is a targeted cache control field.
fn is_targeted_field(name: &HeaderName) -> bool {
    name.as_str().ends_with("-cache-control")
        || matches!(name.as_str(), "surrogate-control" | "edge-control" | "x-accel-expires")
}

/// Adds the usual security fields unless the upstream has set them.
pub(crate) fn harden(headers: &mut HeaderMap, over_tls: bool) {
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
        let one_year = HeaderValue::from_static("max-age=31536000");
        headers.entry(http::header::STRICT_TRANSPORT_SECURITY).or_insert(one_year);
    }
}

const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(sent: &[(&'static str, &'static str)], edit: fn(&mut HeaderMap)) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in sent {
            headers.append(*name, HeaderValue::from_static(value));
        }
        edit(&mut headers);
        let mut fields: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        fields.sort();
        fields
    }

    #[test]
    fn a_per_user_response_is_private_and_never_public() {
        for (sent, expected_value) in [
            (&["public, max-age=60"][..], "max-age=60, private"),
            (&["Public", "S-MaxAge=9, must-revalidate"], "must-revalidate, private"),
            (&[], "private"),
            (&["no-store"], "no-store"),
            (&["max-age=5, private"], "max-age=5, private"),
            (&["private=\"Set-Cookie\", public"], "private=\"Set-Cookie\", private"),
            (&["no-cache=\"a, private, b\""], "no-cache=\"a, private, b\", private"),
        ] {
            let sent: Vec<_> = sent.iter().map(|value| ("cache-control", *value)).collect();
            let fields = edited(&sent, keep_from_shared_caches);
            let expected = [&format!("cache-control: {expected_value}"), CDN, SURROGATE]
                .map(ToString::to_string);
            assert_eq!(fields, expected, "{sent:?}");
        }
    }

    #[test]
    fn targeted_caches_do_not_store_session_responses() {
        for name in [
            "cdn-cache-control",
            "surrogate-control",
            "cloudflare-cdn-cache-control",
            "akamai-cache-control",
            "netlify-cdn-cache-control",
            "vercel-cdn-cache-control",
            "x-litespeed-cache-control",
            "edge-control",
            "x-accel-expires",
        ] {
            let sent =
                [("cache-control", "public, max-age=60"), (name, "max-age=600"), (name, "public")];
            let fields = edited(&sent, keep_from_targeted_caches);
            assert_eq!(fields, ["cache-control: public, max-age=60", CDN, SURROGATE], "{name}");
        }
    }

    const CDN: &str = "cdn-cache-control: no-store";
    const SURROGATE: &str = "surrogate-control: no-store";
}
