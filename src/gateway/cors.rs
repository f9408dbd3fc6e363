//! Which other origins' pages may call a route (the Fetch standard's CORS protocol).
//!
//! Runs outside authentication: a preflight carries no credentials, and a page
//! must be able to read a refusal.

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::base::body::Body;
use crate::config::route::Cors;

/// Whether a request asks, on a page's behalf, what the page may do.
pub(super) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The method that the page asks about, in a preflight.
pub(super) fn asked_method(headers: &HeaderMap) -> Option<Method> {
    Method::from_bytes(headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

/// The answer to a preflight, without the fields that [`decorate`] adds to every answer.
pub(super) fn preflight(cors: &Cors, origin: Option<&HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if allowed(cors, origin).is_some() {
        let headers = response.headers_mut();
        let methods: Vec<_> = cors.methods.iter().map(Method::as_str).collect();
        let names: Vec<_> = cors.headers.iter().map(HeaderName::as_str).collect();
        for (name, list) in
            [(ACCESS_CONTROL_ALLOW_METHODS, methods), (ACCESS_CONTROL_ALLOW_HEADERS, names)]
        {
            if let (false, Ok(value)) = (list.is_empty(), HeaderValue::try_from(list.join(", "))) {
                headers.insert(name, value);
            }
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(cors.max_age.as_secs()));
    }
    response
}

/// Lets a page of an allowed origin read an answer, whoever made it.
pub(super) fn decorate(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
    headers.append(VARY, HeaderValue::from_static("Origin"));
    let Some(allowed) = allowed(cors, origin) else { return };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
    if cors.credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let expose: Vec<_> = cors.expose.iter().map(HeaderName::as_str).collect();
    if let (false, Ok(value)) = (expose.is_empty(), HeaderValue::try_from(expose.join(", "))) {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, value);
    }
}

fn allowed(cors: &Cors, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
    match &cors.origins {
        None => Some(HeaderValue::from_static("*")),
        Some(origins) => origin.filter(|origin| origins.contains(origin)).cloned(),
    }
}
