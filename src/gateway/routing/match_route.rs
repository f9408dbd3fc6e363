//! What takes a request, in every reading of its path.
//!
//! Both what serves requests and what explains them comes through here, so that
//! what is explained is what happens.

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Uri};

use super::route::{Fields, Router};
use crate::gateway::Rejection;
use crate::gateway::policy::cors;
use crate::gateway::proxy::rewrite;
use crate::gateway::request::path;
use crate::gateway::request::path::BadPath;
use crate::gateway::request::path_readings::PathReadings;

/// Takes the dot segments out of a target's path, and lists the readings of the path.
///
/// # Errors
///
/// [`Rejection::BadRequest`] for a path that no service should see, [`Rejection::AmbiguousPath`] for one with more
/// readings than are compared.
pub(crate) fn read_path(target: &mut Uri) -> Result<PathReadings, Rejection> {
    // A target such as `http://host?a` has no path of its own (RFC 9112 §3.2.2).
    let pathless = target.query().is_some()
        && !target.path_and_query().is_some_and(|target| target.as_str().starts_with('/'));
    let path = path::read(target.path()).map_err(|bad| match bad {
        BadPath::Malformed => Rejection::BadRequest,
        BadPath::TooManyReadings => Rejection::AmbiguousPath,
    })?;
    let readings = path.readings;
    if let Cow::Owned(written) = path.written {
        rewrite::set_path(target, &written)?;
    } else if pathless {
        rewrite::set_path(target, "/")?;
    }
    Ok(readings)
}

/// What takes a request.
#[derive(Debug)]
pub(crate) enum Found<'r, R> {
    /// It goes there.
    Route(&'r Arc<R>),
    /// It asks what a page may do that would go to one of these, at least one of which answers such requests.
    Preflight(Vec<&'r Arc<R>>),
}

impl<R> Found<'_, R> {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Route(one), Self::Route(other)) => Arc::ptr_eq(one, other),
            (Self::Preflight(these), Self::Preflight(those)) => {
                these.len() == those.len()
                    && these.iter().zip(those).all(|(one, other)| Arc::ptr_eq(one, other))
            }
            _ => false,
        }
    }
}

/// What takes a request to `host` in all `path_readings` of its path. `said` is what the gateway says to the service in the
/// client's place. A preflight goes where the request it asks about would go, if that `answers_preflights`.
///
/// # Errors
///
/// [`Rejection::BadRequest`] for a method that services could read as another one, [`Rejection::AmbiguousPath`] if the
/// readings lead to different routes; else as [`Router::find`].
pub(crate) fn find<'r, R>(
    router: &'r Router<R>,
    host: &str,
    head: &Parts,
    readings: &PathReadings,
    said: &HeaderMap,
    answers_preflights: impl Fn(&R) -> bool,
) -> Result<Found<'r, R>, Rejection> {
    if is_method_in_wrong_case(&head.method) {
        return Err(Rejection::BadRequest);
    }
    let fields = Fields { client: &head.headers, gateway: said };
    let find = |path: &str| match requested_method(head) {
        None => router.find(host, path, &head.method, fields).map(Found::Route),
        Some((method, may_come)) => {
            let possible = router.possible(host, path, &method, fields, may_come);
            if possible.iter().any(|route| answers_preflights(route)) {
                return Ok(Found::Preflight(possible));
            }
            router.find(host, path, &head.method, fields).map(Found::Route)
        }
    };
    let found = find(readings.forwarded(head.uri.path()));
    if readings.is_empty() {
        return found;
    }
    let differs = |path: &str| match (&found, find(path)) {
        (Ok(one), Ok(other)) => !one.is(&other),
        // Nothing is forwarded in either reading.
        (Err(_), Err(_)) => false,
        _ => true,
    };
    if readings.others().any(differs) || (found.is_ok() && readings.as_reference().any(differs)) {
        return Err(Rejection::AmbiguousPath);
    }
    found
}

/// The method that a preflight asks about, and the names of fields that its request may have.
fn requested_method(head: &Parts) -> Option<(Method, impl Fn(&HeaderName) -> bool)> {
    let preflight = cors::is_preflight(&head.method, &head.headers);
    let method = preflight.then(|| cors::asked_method(&head.headers)).flatten();
    let method = method.filter(|method| !is_method_in_wrong_case(method))?;
    Some((method, |name: &HeaderName| cors::may_come(name, &head.headers)))
}

/// Whether a method is written otherwise than methods are: services that read `delete` as DELETE would be asked by it
/// past the route that names DELETE (RFC 9110 §9.1: all registered methods are in capitals).
fn is_method_in_wrong_case(method: &Method) -> bool {
    method.as_str().bytes().any(|byte| byte.is_ascii_lowercase())
}
