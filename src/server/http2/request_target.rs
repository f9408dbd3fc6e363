//! The `:path` of an HTTP/2 request, in the form in which the gateway holds every request target.
//!
//! hyper parses `:path` as a `Uri`, which accepts the characters that carry raw bytes in a target
//! (`base/raw_target.rs`). A client that sends one means the character, not the byte.

use bytes::Bytes;
use http::{Request, Uri};

use crate::base::raw_target::{self, BadTarget};

/// Replaces the path and query of a request by their carried form.
///
/// # Errors
///
/// See [`raw_target::parse`].
pub(in crate::server) fn carry<B>(request: &mut Request<B>) -> Result<(), BadTarget> {
    let Some(target) = request.uri().path_and_query() else { return Ok(()) };
    if target.as_str().is_ascii() {
        return Ok(());
    }
    let carried = raw_target::parse(Bytes::copy_from_slice(target.as_str().as_bytes()))?;
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = carried.into_parts().path_and_query;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| BadTarget::Malformed)?;
    Ok(())
}
