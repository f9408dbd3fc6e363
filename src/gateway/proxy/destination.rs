//! The `Destination` of `COPY` and `MOVE` (RFC 4918 §10.3): a second target, to which the upstream writes.

use http::request::Parts;
use http::{HeaderName, HeaderValue};

use super::reference::Reference;
use crate::gateway::Rejection;

/// Reads the destination of a request to `authority`; `None` for other methods, and without the field.
///
/// # Errors
///
/// [`Rejection::BadRequest`] if the field is repeated, and the errors of [`Reference::read`].
pub(super) fn read(
    head: &Parts,
    authority: Option<&HeaderValue>,
) -> Result<Option<Reference>, Rejection> {
    if !matches!(head.method.as_str(), "COPY" | "MOVE") {
        return Ok(None);
    }
    let mut fields = head.headers.get_all(DESTINATION).iter();
    let Some(field) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        return Err(Rejection::BadRequest);
    }
    Reference::read(field.as_bytes(), authority).map(Some)
}

pub(super) const DESTINATION: HeaderName = HeaderName::from_static("destination");
