//! Header fields and content of responses, whoever made them: what caches, browsers and `HEAD` are told.

use http::header::{CACHE_CONTROL, CONTENT_LENGTH};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use http_body::Body as _;

use crate::base::body::Body;

/// An answer of the gateway's own without its content, whose length stays where it would be that of a GET
/// (RFC 9110 §9.3.2, §15.3.5).
pub(crate) fn without_content(response: Response<Body>) -> Response<Body> {
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

/// Keeps an answer that is for one browser from every shared cache.
pub(crate) fn keep_from_shared_caches(headers: &mut HeaderMap) {
    if !has_directive(headers, &["no-store", "private"]) {
        let said = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
        let said = said.flat_map(|value| value.split(',')).map(str::trim);
        let stays = said.filter(|word| !word.is_empty() && !is_for_shared_caches(word));
        let all: Vec<_> = stays.chain(["private"]).collect();
        let all = HeaderValue::try_from(all.join(", "));
        headers.insert(CACHE_CONTROL, all.unwrap_or(HeaderValue::from_static("private")));
    }
    keep_from_targeted_caches(headers);
}

/// Keeps an answer from the caches that are spoken to by fields of their own, which win over `Cache-Control`
/// (RFC 9213 and its forerunners): whatever the service tells them, they do not store it.
pub(crate) fn keep_from_targeted_caches(headers: &mut HeaderMap) {
    let targeted: Vec<HeaderName> =
        headers.keys().filter(|name| is_targeted_field(name)).cloned().collect();
    for name in targeted {
        headers.remove(name);
    }
    for name in [CDN_CACHE_CONTROL, SURROGATE_CONTROL] {
        headers.insert(name, HeaderValue::from_static("no-store"));
    }
}

/// Whether `Cache-Control` has one of `words`. What stands in quotes is no word: a value with any says nothing.
pub(crate) fn has_directive(headers: &HeaderMap, words: &[&str]) -> bool {
    let has = |value: &HeaderValue| {
        let text = value.to_str().ok().filter(|text| !text.contains('"')).unwrap_or_default();
        text.split(',').any(|said| words.iter().any(|word| said.trim().eq_ignore_ascii_case(word)))
    };
    headers.get_all(CACHE_CONTROL).iter().any(has)
}

/// Whether a directive of `Cache-Control` lets shared caches store what they would not.
fn is_for_shared_caches(directive: &str) -> bool {
    let name = directive.split('=').next().unwrap_or_default().trim();
    name.eq_ignore_ascii_case("public") || name.eq_ignore_ascii_case("s-maxage")
}

/// Whether a field is for some caches what `Cache-Control` is for all.
fn is_targeted_field(name: &HeaderName) -> bool {
    name.as_str().ends_with("-cache-control")
        || matches!(name.as_str(), "surrogate-control" | "edge-control" | "x-accel-expires")
}

/// What a careful site tells browsers.
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
        let year = HeaderValue::from_static("max-age=31536000");
        headers.entry(http::header::STRICT_TRANSPORT_SECURITY).or_insert(year);
    }
}

const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(said: &[(&'static str, &'static str)], keep: fn(&mut HeaderMap)) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in said {
            headers.append(*name, HeaderValue::from_static(value));
        }
        keep(&mut headers);
        let mut told: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        told.sort();
        told
    }

    #[test]
    fn what_is_for_one_browser_is_called_private_and_never_public() {
        for (said, told) in [
            (&["public, max-age=60"][..], "max-age=60, private"),
            (&["Public", "S-MaxAge=9, must-revalidate"], "must-revalidate, private"),
            (&[], "private"),
            (&["no-store"], "no-store"),
            (&["max-age=5, private"], "max-age=5, private"),
            (&["private=\"Set-Cookie\", public"], "private=\"Set-Cookie\", private"),
            (&["no-cache=\"a, private, b\""], "no-cache=\"a, private, b\", private"),
        ] {
            let said: Vec<_> = said.iter().map(|value| ("cache-control", *value)).collect();
            let kept = kept(&said, keep_from_shared_caches);
            let expected =
                [&format!("cache-control: {told}"), CDN, SURROGATE].map(ToString::to_string);
            assert_eq!(kept, expected, "{said:?}");
        }
    }

    #[test]
    fn no_cache_that_is_spoken_to_apart_stores_what_came_by_a_session() {
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
            let said =
                [("cache-control", "public, max-age=60"), (name, "max-age=600"), (name, "public")];
            let kept = kept(&said, keep_from_targeted_caches);
            assert_eq!(kept, ["cache-control: public, max-age=60", CDN, SURROGATE], "{name}");
        }
    }

    const CDN: &str = "cdn-cache-control: no-store";
    const SURROGATE: &str = "surrogate-control: no-store";
}
