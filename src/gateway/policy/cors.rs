//! CORS: access to a route by pages of other origins (the CORS protocol of the Fetch standard).
//!
//! Runs before authentication: a preflight carries no credentials, and a page must be able to read a refusal.

use http::header::{
    ACCEPT, ACCEPT_LANGUAGE, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
    CONTENT_LANGUAGE, CONTENT_TYPE, COOKIE, ORIGIN, RANGE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};

use crate::base::body::Body;
use crate::config::route::Cors;

/// Whether a request is a CORS preflight.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Returns the method that a preflight announces.
pub(crate) fn announced_method(headers: &HeaderMap) -> Option<Method> {
    Method::from_bytes(headers.get(ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()
}

/// Whether the request announced by a preflight may have a field that the preflight lacks: one that it names, one
/// that pages may always set (the safelist of the Fetch standard), or cookies.
pub(crate) fn may_have(name: &HeaderName, preflight: &HeaderMap) -> bool {
    let named = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|entry| entry.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    matches!(*name, ACCEPT | ACCEPT_LANGUAGE | CONTENT_LANGUAGE | CONTENT_TYPE | RANGE | COOKIE)
        || preflight.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter().any(named)
}

/// Responds to a preflight whose request may take any of several routes: grants what `all` of them allow, and nothing
/// if one of them has no CORS policy.
pub(crate) fn preflight(all: &[Option<&Cors>], origin: Option<&HeaderValue>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("Origin"));
    let all: Option<Vec<&Cors>> = all.iter().copied().collect();
    let all = all.filter(|all| all.iter().all(|cors| allowed(cors, origin).is_some()));
    if let Some([cors, others @ ..]) = all.as_deref() {
        let in_all = |allows: &dyn Fn(&Cors) -> bool| others.iter().all(|other| allows(other));
        let methods =
            cors.methods.iter().filter(|one| in_all(&|other| other.methods.contains(one)));
        let methods: Vec<_> = methods.map(Method::as_str).collect();
        let names = cors.headers.iter().filter(|one| in_all(&|other| other.headers.contains(one)));
        let names: Vec<_> = names.map(HeaderName::as_str).collect();
        let credentials = cors.credentials && in_all(&|other| other.credentials);
        let any = cors.origins.is_none() && in_all(&|other| other.origins.is_none());
        let named = if any { None } else { origin.cloned() };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, named.unwrap_or(HeaderValue::from_static("*")));
        if credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        for (name, list) in
            [(ACCESS_CONTROL_ALLOW_METHODS, methods), (ACCESS_CONTROL_ALLOW_HEADERS, names)]
        {
            if let (false, Ok(value)) = (list.is_empty(), HeaderValue::try_from(list.join(", "))) {
                headers.insert(name, value);
            }
        }
        let max_age = others.iter().map(|other| other.max_age).fold(cors.max_age, Ord::min);
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(max_age.as_secs()));
    }
    response
}

/// Removes an upstream's CORS fields: on a route with `cors`, the operator's policy is the only one.
pub(crate) fn remove_upstream_fields(headers: &mut HeaderMap) {
    let is = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    let taken: Vec<HeaderName> = headers.keys().filter(is).cloned().collect();
    for name in taken {
        headers.remove(name);
    }
}

/// Allows a page of an allowed origin to read a response, the gateway's or the upstream's.
pub(crate) fn apply(cors: &Cors, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
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
