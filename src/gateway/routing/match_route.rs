//! Route matching over all readings of a path.
//!
//! Both `Snapshot::handle` and `northgate explain` match through this module, so that explanations agree with what is
//! served.

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Uri};

use super::fields::Fields;
use super::route::Router;
use crate::gateway::Rejection;
use crate::gateway::policy::cors;
use crate::gateway::proxy::rewrite;
use crate::gateway::request::path_error::PathError;
use crate::gateway::request::path_readings::{self, PathReadings};

/// Resolves the dot segments of a target's path, and lists the readings of the path.
///
/// # Errors
///
/// [`Rejection::BadRequest`] for a malformed path, [`Rejection::AmbiguousPath`] for one with more readings than the
/// gateway compares.
pub(crate) fn read_path(target: &mut Uri) -> Result<PathReadings, Rejection> {
    // A target such as `http://host?a` has an empty path (RFC 9112 §3.2.2).
    let pathless = target.query().is_some()
        && !target.path_and_query().is_some_and(|target| target.as_str().starts_with('/'));
    let path = path_readings::read(target.path()).map_err(|bad| match bad {
        PathError::Malformed => Rejection::BadRequest,
        PathError::TooManyReadings => Rejection::AmbiguousPath,
    })?;
    let readings = path.readings;
    if let Cow::Owned(written) = path.written {
        rewrite::set_path(target, &written)?;
    } else if pathless {
        rewrite::set_path(target, "/")?;
    }
    Ok(readings)
}

/// The match of a request.
#[derive(Debug)]
pub(crate) enum Found<'r, R> {
    /// The route of the request.
    Route(&'r Arc<R>),
    /// The routes of a preflight.
    Preflight(PreflightRoutes<'r, R>),
}

/// The routes of the URL of a preflight.
#[derive(Debug)]
pub(crate) struct PreflightRoutes<'r, R> {
    /// The routes that the announced request may take, at least one of which has CORS.
    pub possible: Vec<&'r Arc<R>>,
    /// The routes that other requests to the URL take, and whether each takes the announced method: browsers apply a cached
    /// grant to them, too.
    pub others: Vec<(&'r Arc<R>, bool)>,
}

impl<R> Found<'_, R> {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Route(one), Self::Route(other)) => Arc::ptr_eq(one, other),
            (Self::Preflight(these), Self::Preflight(those)) => {
                let (these, those) = (&these.possible, &those.possible);
                these.len() == those.len()
                    && these.iter().zip(those).all(|(one, other)| Arc::ptr_eq(one, other))
            }
            _ => false,
        }
    }
}

/// Finds the match of a request to `host` in all `readings` of its path. `gateway_fields` are the header fields that
/// the gateway sets in place of the client's. A preflight matches the routes of the request it concerns, if one of
/// them `answers_preflights`.
///
/// # Errors
///
/// [`Rejection::BadRequest`] for a method that an upstream could take for another one, [`Rejection::AmbiguousPath`]
/// if the readings lead to different routes; otherwise those of [`Router::find`].
pub(crate) fn find<'r, R>(
    router: &'r Router<R>,
    host: &str,
    head: &Parts,
    readings: &PathReadings,
    gateway_fields: &HeaderMap,
    answers_preflights: impl Fn(&R) -> bool,
) -> Result<Found<'r, R>, Rejection> {
    if is_method_in_wrong_case(&head.method) {
        return Err(Rejection::BadRequest);
    }
    let fields = Fields { client: &head.headers, gateway: gateway_fields };
    let find = |path: &str| match requested_method(head) {
        None => router.find(host, path, &head.method, fields).map(Found::Route),
        Some((method, may_have)) => {
            let possible = router.possible(host, path, &method, fields, may_have);
            if possible.iter().any(|route| answers_preflights(route)) {
                let is_other = |route: &Arc<R>| !possible.iter().any(|one| Arc::ptr_eq(one, route));
                let entries = router.candidates(host, path, &method);
                let others = entries
                    .filter(|entry| is_other(&entry.route))
                    .map(|entry| (&entry.route, entry.takes(&method)))
                    .collect();
                return Ok(Found::Preflight(PreflightRoutes { possible, others }));
            }
            router.find(host, path, &head.method, fields).map(Found::Route)
        }
    };
    let found = find(readings.forwarded(head.uri.path()));
    if readings.is_empty() {
        return found;
    }
    let differs = |path: &str| match (&found, find(path)) {
        (Ok(one), Ok(other)) => !one.is_same(&other),
        // The request is forwarded in neither reading.
        (Err(_), Err(_)) => false,
        _ => true,
    };
    if readings.others().any(differs) || (found.is_ok() && readings.as_reference().any(differs)) {
        return Err(Rejection::AmbiguousPath);
    }
    found
}

/// Returns the method that a preflight announces, and a test for the fields that the announced request may have.
fn requested_method(head: &Parts) -> Option<(Method, impl Fn(&HeaderName) -> bool)> {
    let preflight = cors::is_preflight(&head.method, &head.headers);
    let method = preflight.then(|| cors::announced_method(&head.headers)).flatten();
    let method = method.filter(|method| !is_method_in_wrong_case(method))?;
    Some((method, |name: &HeaderName| cors::may_have(name, &head.headers)))
}

/// Whether a method contains lower-case letters: an upstream that treats `delete` as DELETE would be reached past the
/// route that names DELETE (RFC 9110 §9.1: all registered methods are upper-case).
fn is_method_in_wrong_case(method: &Method) -> bool {
    method.as_str().bytes().any(|byte| byte.is_ascii_lowercase())
}
