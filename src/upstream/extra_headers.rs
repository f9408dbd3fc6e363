//! Fields that the gateway adds to a request's head, without putting them into its map.

use std::borrow::Cow;

use http::header::VIA;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::base::encoded_fields::{EncodedFields, write_field_line};

/// What is written behind a head's own fields.
///
/// A map would hash every name to find out that nobody has it: whoever fills
/// this has taken the client's fields of these names away.
#[derive(Debug, Default)]
pub struct ExtraHeaders<'a> {
    each: Vec<(&'a HeaderName, Cow<'a, HeaderValue>)>,
    written: Option<&'a EncodedFields>,
}

impl<'a> ExtraHeaders<'a> {
    /// Nothing yet, with room for what is usual.
    pub fn new() -> Self {
        Self { each: Vec::with_capacity(TYPICAL_FIELDS), written: None }
    }

    /// Adds a field.
    pub fn add(&mut self, name: &'a HeaderName, value: &'a HeaderValue) {
        self.each.push((name, Cow::Borrowed(value)));
    }

    /// Adds a field whose value was made for this request.
    pub fn add_owned(&mut self, name: &'a HeaderName, value: HeaderValue) {
        self.each.push((name, Cow::Owned(value)));
    }

    /// Adds fields that are written already.
    pub fn add_encoded(&mut self, written: &'a EncodedFields) {
        self.written = Some(written);
    }

    /// Puts them into `headers` after all, for whoever edits what is there: in the place of what has their
    /// names, but for `Via`, which is a list.
    pub fn merge_into(&mut self, headers: &mut HeaderMap) {
        let written = self.written.take().map_or(&[][..], EncodedFields::fields);
        for (name, value) in written {
            headers.insert(name, value.clone());
        }
        for (name, value) in self.each.drain(..) {
            if *name == VIA {
                headers.append(name, value.into_owned());
            } else {
                headers.insert(name, value.into_owned());
            }
        }
    }

    /// Appends a line for each field.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.written.map_or(&[], EncodedFields::as_bytes));
        self.each.iter().for_each(|(name, value)| write_field_line(out, name, value));
    }
}

/// What a service is to see of a request, but for `Host` and the framing.
#[derive(Debug)]
pub struct OutgoingRequest<'a> {
    /// Method, target and fields.
    pub head: &'a Parts,
    /// Further fields.
    pub fields: ExtraHeaders<'a>,
}

const TYPICAL_FIELDS: usize = 10;
