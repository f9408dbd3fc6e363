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
    // A target such as `http://host?a` has no path of its own (RFC 9112 §3.2.2).
    let pathless = target.query().is_some()
        && !target.path_and_query().is_some_and(|target| target.as_str().starts_with('/'));
    let normal = path::normalise(target.path()).map_err(|_| Rejection::BadRequest)?;
    if let Cow::Owned(normal) = normal {
        rewrite::set_path(target, &normal);
    } else if pathless {
        rewrite::set_path(target, "/");
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
    let found = find(&head.method);
    if path::has_parameters(head.uri.path()) {
        // Some services cut parameters off before they look at a path. What they would see must not be
        // another route's: `/admin;x/users` is `/admin/users` to them.
        let bare = router.find(host, &path::bare(head.uri.path()), &head.method, &head.headers);
        let same = match (&found, &bare) {
            (Ok(found), Ok(bare)) => Arc::ptr_eq(found, bare),
            (Err(_), Err(_)) => true,
            _ => false,
        };
        if !same {
            return Err(Rejection::BadRequest);
        }
    }
    found
}
