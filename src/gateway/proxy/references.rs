//! The references of a request to further resources, beside its target: `Destination` and `If` of `WebDAV`.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Uri};

use super::destination::{self, DESTINATION};
use super::if_header::{Conditions, IF};
use super::reference::Reference;
use super::rewrite::TargetRewriter;
use crate::gateway::Rejection;

/// The references of a request; an extension of it.
#[derive(Clone, Debug)]
pub(crate) struct References {
    destination: Option<Reference>,
    /// The `If` fields, in their order.
    conditions: Vec<Conditions>,
}

impl References {
    /// Reads the references of a request to `authority`; `None` if it has none.
    ///
    /// # Errors
    ///
    /// [`Rejection::BadRequest`] for a malformed field, [`Rejection::TargetTooLong`] for one with too long a reference.
    pub(crate) fn read(
        head: &Parts,
        authority: Option<&HeaderValue>,
    ) -> Result<Option<Self>, Rejection> {
        let destination = destination::read(head, authority)?;
        if destination.is_none() && !head.headers.contains_key(IF) {
            return Ok(None);
        }
        let fields = head.headers.get_all(IF).iter();
        let conditions = fields.map(|field| Conditions::read(field.as_bytes(), authority));
        Ok(Some(Self { destination, conditions: conditions.collect::<Result<_, _>>()? }))
    }

    /// Returns the targets of the references.
    pub(crate) fn targets(&mut self) -> impl Iterator<Item = &mut Uri> {
        let conditions = self.conditions.iter_mut().flat_map(Conditions::references);
        self.destination.iter_mut().chain(conditions).map(|reference| &mut reference.target)
    }

    /// Sets the fields for the upstream. `keeps_host` if the upstream sees the host of the client.
    ///
    /// # Errors
    ///
    /// The errors of [`TargetRewriter::rewrite`].
    pub(super) fn forward(
        self,
        rewriter: &TargetRewriter,
        keeps_host: bool,
        headers: &mut HeaderMap,
    ) -> Result<(), Rejection> {
        // Each part comes from a field value, or from the target of the request.
        let value =
            |text: Vec<u8>| HeaderValue::from_bytes(&text).map_err(|_| Rejection::BadRequest);
        if let Some(destination) = self.destination {
            headers.insert(DESTINATION, value(destination.forward(rewriter, keeps_host)?)?);
        }
        headers.remove(IF);
        for conditions in self.conditions {
            headers.append(IF, value(conditions.forward(rewriter, keeps_host)?)?);
        }
        Ok(())
    }
}
