//! Responses of the session endpoints. None may be cached.

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY,
    RETRY_AFTER, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::navigation::{self, HX_REDIRECT};
use crate::base::accept_header;
use crate::base::body::Body;

/// Returns an HTML page with its content security policy.
pub(super) fn html(status: StatusCode, page: String, policy: HeaderValue) -> Response<Body> {
    let mut response = uncached(status, Body::from(page));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(CONTENT_SECURITY_POLICY, policy);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // Not `no-referrer`: browsers would send `Origin: null` with the page's form.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// Returns a JSON value.
pub(super) fn json(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = uncached(status, Body::from(value.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Returns a problem (RFC 9457) with more members in `extra`, an object.
pub(super) fn problem(status: StatusCode, name: &str, title: &str, extra: Value) -> Response<Body> {
    let mut members = json!({
        "type": format!("urn:northgate:problem:{name}"),
        "title": title,
        "status": status.as_u16(),
    });
    if let (Value::Object(members), Value::Object(extra)) = (&mut members, extra) {
        members.extend(extra);
    }
    let mut response = json(status, &members);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// Returns `303 See Other`: user agents do not repeat the submitted content (RFC 9700 §4.12).
pub(super) fn see_other(location: HeaderValue) -> Response<Body> {
    let mut response = uncached(StatusCode::SEE_OTHER, Body::empty());
    response.headers_mut().insert(LOCATION, location);
    response
}

/// Leads the user agent of a request with these `headers` to `location`: htmx by `HX-Redirect`, other scripts by
/// `named`, which names the place, since they cannot follow a redirect to another origin.
pub(super) fn lead_to(
    headers: &HeaderMap,
    location: HeaderValue,
    named: impl FnOnce() -> Response<Body>,
) -> Response<Body> {
    if navigation::is_htmx(headers) {
        let mut response = uncached(StatusCode::OK, Body::empty());
        response.headers_mut().insert(HX_REDIRECT, location);
        return response;
    }
    let is_own = location.as_bytes().starts_with(b"/");
    if wants_html(headers) && (is_own || !navigation::is_script(headers)) {
        see_other(location)
    } else {
        named()
    }
}

/// Returns 405: the endpoint does not support the method.
pub(super) fn method_not_allowed(allow: &'static str) -> Response<Body> {
    let status = StatusCode::METHOD_NOT_ALLOWED;
    let mut response = problem(status, "method", "The method is not allowed here.", json!({}));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    response
}

/// Adds a `Retry-After` of `seconds`.
pub(super) fn retry_after(mut response: Response<Body>, seconds: u64) -> Response<Body> {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// Adds `Set-Cookie` fields.
pub(super) fn with_cookies(
    mut response: Response<Body>,
    cookies: Vec<HeaderValue>,
) -> Response<Body> {
    for cookie in cookies {
        response.headers_mut().append(SET_COOKIE, cookie);
    }
    response
}

/// Whether the client accepts pages: `Accept` names `text/html`.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    accept_header::names_html(headers)
}

/// Returns a response with `Cache-Control: no-store`.
pub(super) fn uncached(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT;

    use super::*;

    #[test]
    fn a_script_is_led_to_another_origin_by_a_name_and_htmx_by_a_field() {
        let page = ("accept", "text/html");
        let led = |fields: &[(&'static str, &'static str)], to| {
            let headers = fields.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            let named = || json(StatusCode::OK, &json!({}));
            lead_to(&headers.collect(), HeaderValue::from_static(to), named)
        };
        let (own, other) = ("/orders", "https://login.example.com/end");

        for to in [own, other] {
            assert_eq!(led(&[page], to).headers()[LOCATION], to);
            let of_htmx = led(&[page, ("hx-request", "true")], to);
            assert_eq!(
                (of_htmx.status(), &of_htmx.headers()[HX_REDIRECT]),
                (StatusCode::OK, &HeaderValue::from_static(to))
            );
        }
        for script in [("x-turbo-request-id", "1"), ("sec-fetch-mode", "cors")] {
            assert_eq!(led(&[page, script], own).headers()[LOCATION], own);
            assert_eq!(led(&[page, script], other).headers().get(LOCATION), None);
        }
    }

    #[test]
    fn a_browser_is_recognized_by_its_accept_field() {
        let wants = |accept| {
            wants_html(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]))
        };
        assert!(wants("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"));
        assert!(wants("application/json, Text/HTML;q=0.1"));
        assert!(!wants("*/*") && !wants("application/json") && !wants("text/html;q=0"));
        assert!(!wants_html(&HeaderMap::new()));
    }
}
