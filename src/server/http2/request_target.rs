//! The `:path` of an HTTP/2 request, in the form in which the gateway holds every request target.
//!
//! `raw_targets` passes a path that `Uri` refuses to the gateway in a private field. All other paths were parsed by h2;
//! a character of them in the range that marks raw bytes inside the gateway (`base/raw_target.rs`) is encoded, since
//! the client sent the character itself.

use bytes::Bytes;
use http::Uri;
use http::request::Parts;
use memchr::memchr;

use super::raw_targets::FIELD;
use crate::base::raw_target::{self, BadTarget};

/// Gives a request the path that the client sent, in carried form.
///
/// # Errors
///
/// [`BadTarget::Malformed`] for a path with a fragment, and one that does not begin with a slash, [`BadTarget::TooLong`] for
/// one of which `raw_targets` has left nothing; see also [`raw_target::parse`]. The request must not be served then: its path is a placeholder.
pub(super) fn restore(request: &mut Parts) -> Result<(), BadTarget> {
    let target = match request.headers.remove(&*FIELD) {
        Some(path) if path.is_empty() => return Err(BadTarget::TooLong),
        Some(path) => Bytes::copy_from_slice(path.as_bytes()),
        None => match request.uri.path_and_query() {
            Some(target) if !target.as_str().is_ascii() => {
                Bytes::copy_from_slice(target.as_str().as_bytes())
            }
            _ => return Ok(()),
        },
    };
    if !target.starts_with(b"/") || memchr(b'#', &target).is_some() {
        return Err(BadTarget::Malformed);
    }
    let carried = raw_target::parse(target)?;
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = carried.into_parts().path_and_query;
    request.uri = Uri::from_parts(parts).map_err(|_| BadTarget::Malformed)?;
    Ok(())
}
