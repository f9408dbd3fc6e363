//! The `Destination` of `COPY` and `MOVE` (RFC 4918 §10.3): a second target, to which the upstream writes.
//!
//! The caller is authorized for one route only. So the destination must lead to that route too, whatever host the field
//! names: not every upstream compares hosts. The gateway forwards the field as its upstream needs it: with the path
//! rewritten like that of the request, and without the host of the client where the upstream sees another one.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use memchr::memchr;

use super::rewrite::TargetRewriter;
use crate::base::raw_target;
use crate::gateway::Rejection;
use crate::gateway::request::host;

/// The destination of a request.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// The URI; an absolute path where the client named no host.
    pub(crate) target: Uri,
    /// Whether the host is that of the request, or none.
    is_same_host: bool,
}

impl Destination {
    /// Reads the destination of a request to `authority`; `None` for other methods, and without the field.
    ///
    /// # Errors
    ///
    /// [`Rejection::BadRequest`] if the field is repeated, or neither an absolute URI nor an absolute path.
    pub(crate) fn read(
        head: &Parts,
        authority: Option<&HeaderValue>,
    ) -> Result<Option<Self>, Rejection> {
        if !matches!(head.method.as_str(), "COPY" | "MOVE") {
            return Ok(None);
        }
        let mut fields = head.headers.get_all(DESTINATION).iter();
        let Some(field) = fields.next() else { return Ok(None) };
        if fields.next().is_some() || memchr(b'#', field.as_bytes()).is_some() {
            return Err(Rejection::BadRequest);
        }
        let target = raw_target::parse(Bytes::copy_from_slice(field.as_bytes()))
            .map_err(|_| Rejection::BadRequest)?;
        if !target.path().starts_with('/') {
            return Err(Rejection::BadRequest);
        }
        let is_same_host = is_same_host(&target, authority);
        Ok(Some(Self { target, is_same_host }))
    }

    /// Sets the field for the upstream. `keeps_host` if the upstream sees the host of the client.
    ///
    /// # Errors
    ///
    /// The errors of [`TargetRewriter::rewrite`].
    pub(crate) fn forward(
        mut self,
        rewriter: &TargetRewriter,
        keeps_host: bool,
        headers: &mut HeaderMap,
    ) -> Result<(), Rejection> {
        rewriter.rewrite(&mut self.target)?;
        let out = written(&self.target, keeps_host || !self.is_same_host);
        // Both parts come from a field value.
        let value = HeaderValue::from_bytes(&out).map_err(|_| Rejection::BadRequest)?;
        headers.insert(DESTINATION, value);
        Ok(())
    }
}

/// Whether the host of `target` is that of the request, `authority`, or none.
pub(super) fn is_same_host(target: &Uri, authority: Option<&HeaderValue>) -> bool {
    target.authority().is_none_or(|named| {
        authority.is_some_and(|own| host::same(own.as_bytes(), named.as_str().as_bytes()))
    })
}

/// Writes `target` as the client did, with or without its host.
pub(super) fn written(target: &Uri, with_host: bool) -> Vec<u8> {
    let mut out = Vec::new();
    if let (Some(scheme), Some(authority)) = (target.scheme_str(), target.authority())
        && with_host
    {
        out.extend_from_slice(format!("{scheme}://{authority}").as_bytes());
    }
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    out.extend_from_slice(&raw_target::bytes(path));
    out
}

const DESTINATION: HeaderName = HeaderName::from_static("destination");
