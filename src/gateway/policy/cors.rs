//! CORS: access to a route by pages of other origins (the CORS protocol of the Fetch standard).
//!
//! Runs before authentication: a preflight carries no credentials, and a page must be able to read a refusal.

use core::time::Duration;

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
    matches!(*name, ACCEPT | ACCEPT_LANGUAGE | CONTENT_LANGUAGE | CONTENT_TYPE | RANGE | COOKIE)
        || is_named(name, preflight)
}

/// Whether a preflight announces a field.
fn is_named(name: &HeaderName, preflight: &HeaderMap) -> bool {
    let named = |value: &HeaderValue| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|entry| entry.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    preflight.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter().any(named)
}

/// Responds to a `preflight` whose request may take any of the `possible` routes: grants what all of them allow, and nothing
/// if there is none, or one has no CORS policy.
///
/// Browsers cache a grant for the URL: they apply its methods and fields to all later requests, those that `others` take too
/// (with whether each takes the announced method). A grant that goes beyond the policy of one of these is for the announced
/// request alone, and is not cached.
pub(crate) fn preflight(
    possible: &[&Cors],
    others: &[(Option<&Cors>, bool)],
    preflight: &HeaderMap,
) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.append(VARY, HeaderValue::from_static("Origin"));
    let origin = preflight.get(ORIGIN);
    let [cors, rest @ ..] = possible else { return response };
    if !possible.iter().all(|cors| allowed(cors, origin).is_some()) {
        return response;
    }
    let in_all = |allows: &dyn Fn(&Cors) -> bool| rest.iter().all(|other| allows(other));
    let mut methods: Vec<&Method> = cors.methods.iter().collect();
    methods.retain(|one| in_all(&|other| other.methods.contains(one)));
    let mut names: Vec<&HeaderName> = cors.headers.iter().collect();
    names.retain(|one| in_all(&|other| other.headers.contains(one)));
    let credentials = cors.credentials && in_all(&|other| other.credentials);
    let any = cors.origins.is_none() && in_all(&|other| other.origins.is_none());
    let mut max_age = rest.iter().map(|other| other.max_age).fold(cors.max_age, Ord::min);

    let announced = announced_method(preflight);
    let is_announced = |method: &Method| announced.as_ref() == Some(method);
    let covers = |(other, takes_announced): &(Option<&Cors>, bool)| {
        other.is_some_and(|other| {
            allowed(other, origin).is_some()
                && (other.credentials || !credentials)
                && names.iter().all(|name| other.headers.contains(name))
                && (!takes_announced || other.methods.iter().any(is_announced))
        })
    };
    if others.iter().all(covers) {
        let allows = |other: Option<&Cors>, method: &Method| {
            other.is_some_and(|other| other.methods.contains(method))
        };
        methods.retain(|method| {
            is_announced(method) || others.iter().all(|(other, _)| allows(*other, method))
        });
    } else {
        methods.retain(|method| is_announced(method));
        names.retain(|name| is_named(name, preflight));
        max_age = Duration::ZERO;
    }

    let origin = if any { None } else { origin.cloned() };
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.unwrap_or(HeaderValue::from_static("*")));
    if credentials {
        headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    let methods: Vec<_> = methods.into_iter().map(Method::as_str).collect();
    let names: Vec<_> = names.into_iter().map(HeaderName::as_str).collect();
    for (name, list) in
        [(ACCESS_CONTROL_ALLOW_METHODS, methods), (ACCESS_CONTROL_ALLOW_HEADERS, names)]
    {
        if let (false, Ok(value)) = (list.is_empty(), HeaderValue::try_from(list.join(", "))) {
            headers.insert(name, value);
        }
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(max_age.as_secs()));
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
