//! A URI reference in a header field of a request that names a resource of the upstream (`Destination` and `If`, RFC 4918
//! §10): forwarded like the target of the request.
//!
//! The caller is authorized for one route only. So the reference must lead to that route too, whatever host it names: not
//! every upstream compares hosts. The upstream gets it with the path rewritten like that of the request, and without the
//! host of the client where the upstream sees another one.

use bytes::Bytes;
use http::{HeaderValue, Uri};

use super::rewrite::TargetRewriter;
use crate::base::raw_target::{self, BadTarget};
use crate::gateway::Rejection;
use crate::gateway::request::host;

/// The URI of a resource, or its absolute path where the client named no host.
#[derive(Clone, Debug)]
pub(crate) struct Reference {
    pub(crate) target: Uri,
    /// Whether the host is that of the request, or none.
    is_same_host: bool,
}

impl Reference {
    /// Reads a reference in a request to `authority`.
    ///
    /// # Errors
    ///
    /// [`Rejection::BadRequest`] if it is neither an absolute URI with a path nor an absolute path,
    /// [`Rejection::TargetTooLong`] if it is longer than a target may be.
    pub(super) fn read(text: &[u8], authority: Option<&HeaderValue>) -> Result<Self, Rejection> {
        let target =
            raw_target::parse(Bytes::copy_from_slice(text)).map_err(|error| match error {
                BadTarget::Malformed => Rejection::BadRequest,
                BadTarget::TooLong => Rejection::TargetTooLong,
            })?;
        if !target.path().starts_with('/') || text.contains(&b'#') {
            return Err(Rejection::BadRequest);
        }
        let is_same_host = target.authority().is_none_or(|named| {
            authority.is_some_and(|own| host::same(own.as_bytes(), named.as_str().as_bytes()))
        });
        Ok(Self { target, is_same_host })
    }

    /// Returns the reference for the upstream. `keeps_host` if the upstream sees the host of the client.
    ///
    /// # Errors
    ///
    /// The errors of [`TargetRewriter::rewrite`].
    pub(super) fn forward(
        mut self,
        rewriter: &TargetRewriter,
        keeps_host: bool,
    ) -> Result<Vec<u8>, Rejection> {
        rewriter.rewrite(&mut self.target)?;
        let mut out = Vec::new();
        if let (Some(scheme), Some(authority)) = (self.target.scheme_str(), self.target.authority())
            && (keeps_host || !self.is_same_host)
        {
            out.extend_from_slice(format!("{scheme}://{authority}").as_bytes());
        }
        let path = self.target.path_and_query().map_or("/", |path| path.as_str());
        out.extend_from_slice(&raw_target::bytes(path));
        Ok(out)
    }
}
