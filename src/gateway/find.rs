//! A request brought into its one form, and what takes it.
//!
//! Both who serves requests and who explains them come through here, so that
//! what is explained is what happens.

use std::borrow::Cow;
use std::sync::Arc;

use http::Uri;
use http::request::Parts;

use super::route::Router;
use super::{Rejection, cors, path, rewrite};

/// Puts the normal form of the path in a target's path's place.
///
/// # Errors
///
/// [`Rejection::BadRequest`] if the path could be read in two ways.
pub(super) fn normalise(target: &mut Uri) -> Result<(), Rejection> {
    let normal = path::normalise(target.path()).map_err(|_| Rejection::BadRequest)?;
    if let Cow::Owned(normal) = normal {
        rewrite::set_path(target, &normal);
    }
    Ok(())
}

/// What takes a request in normal form to `host`. A preflight goes where the request it asks about
/// would go, if that `answers_preflights`.
///
/// # Errors
///
/// As [`Router::find`].
pub(super) fn find<'r, R>(
    router: &'r Router<R>,
    host: &str,
    head: &Parts,
    answers_preflights: impl Fn(&R) -> bool,
) -> Result<&'r Arc<R>, Rejection> {
    let find = |method: &_| router.find(host, head.uri.path(), method, &head.headers);
    if cors::is_preflight(&head.method, &head.headers)
        && let Some(asked) = cors::asked_method(&head.headers)
        && let Ok(route) = find(&asked)
        && answers_preflights(route)
    {
        return Ok(route);
    }
    find(&head.method)
}
