//! Header fields that the gateway adds to a request without inserting them into its map.

use core::cell::RefCell;
use std::borrow::Cow;

use http::header::VIA;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::time::Instant;

use crate::base::encoded_fields::{EncodedFields, write_field_line};
use crate::base::grpc::{self, GRPC_TIMEOUT};
use crate::base::header_fields::has_other_spelling;

/// Fields that are appended when a head is written.
///
/// Inserting into a map would hash every name only to find no entry: the caller
/// has removed the client's fields of these names.
#[derive(Clone, Debug, Default)]
pub struct ExtraHeaders<'a> {
    each: Vec<(&'a HeaderName, Cow<'a, HeaderValue>)>,
    written: Option<&'a EncodedFields>,
    /// The deadline of a gRPC call: `grpc-timeout` is the time that is left when a head is written.
    deadline: Option<Instant>,
}

impl<'a> ExtraHeaders<'a> {
    /// Creates an empty set, with room for the usual number.
    pub fn new() -> Self {
        Self { each: Vec::with_capacity(TYPICAL_FIELDS), ..Self::default() }
    }

    /// Adds `grpc-timeout`: each attempt has the time that is left of it until `deadline`.
    pub fn add_deadline(&mut self, deadline: Instant) {
        self.deadline = Some(deadline);
    }

    /// Returns the field of [`ExtraHeaders::add_deadline`] alone, for another upstream.
    #[must_use]
    pub fn deadline_alone(&self) -> ExtraHeaders<'static> {
        ExtraHeaders { deadline: self.deadline, ..ExtraHeaders::default() }
    }

    /// Adds a field.
    pub fn add(&mut self, name: &'a HeaderName, value: &'a HeaderValue) {
        self.each.push((name, Cow::Borrowed(value)));
    }

    /// Adds a field whose value was created for this request.
    pub fn add_owned(&mut self, name: &'a HeaderName, value: HeaderValue) {
        self.each.push((name, Cow::Owned(value)));
    }

    /// Adds fields that are encoded already.
    pub fn add_encoded(&mut self, written: &'a EncodedFields) {
        self.written = Some(written);
    }

    /// Inserts them into `headers`, for callers that edit the map: they replace fields of the same
    /// name, except `Via`, which is a list. The deadline is left out: it counts down until the head is written.
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

    /// Appends the fields to `headers`, beside fields of the same name.
    pub(in crate::upstream) fn append_to(&self, headers: &mut HeaderMap) {
        let written = self.written.map_or(&[][..], EncodedFields::fields);
        for (name, value) in written {
            headers.append(name, value.clone());
        }
        for (name, value) in &self.each {
            headers.append(*name, value.clone().into_owned());
        }
        if let Some(timeout) = self.timeout() {
            headers.append(&GRPC_TIMEOUT, timeout);
        }
    }

    /// Returns the time that is left until the deadline.
    fn timeout(&self) -> Option<HeaderValue> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        Some(grpc::timeout_value(left))
    }

    /// Returns the values of the fields of this name.
    fn values<'s>(&'s self, name: &'s HeaderName) -> impl Iterator<Item = &'s HeaderValue> {
        let written = self.written.map_or(&[][..], EncodedFields::fields).iter();
        let written = written.filter(move |(other, _)| other == name).map(|(_, value)| value);
        let each = self.each.iter().filter(move |(other, _)| *other == name);
        written.chain(each.map(|(_, value)| &**value))
    }

    /// Appends a line for each field.
    pub(in crate::upstream) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.written.map_or(&[], EncodedFields::as_bytes));
        self.each.iter().for_each(|(name, value)| write_field_line(out, name, value));
        if let Some(timeout) = self.timeout() {
            write_field_line(out, &GRPC_TIMEOUT, &timeout);
        }
    }
}

/// A request as the upstream receives it, without `Host` and framing.
#[derive(Debug)]
pub struct OutgoingRequest<'a> {
    /// Method, target and fields.
    pub head: &'a Parts,
    /// Further fields.
    pub fields: ExtraHeaders<'a>,
    /// The sink of interim responses, without hop-by-hop fields; without one they are dropped.
    pub interim: Option<&'a RefCell<Vec<Response<()>>>>,
}

impl OutgoingRequest<'_> {
    /// Returns the values of the fields of this name, as the upstream receives them.
    pub(crate) fn values<'s>(
        &'s self,
        name: &'s HeaderName,
    ) -> impl Iterator<Item = &'s HeaderValue> {
        self.head.headers.get_all(name).iter().chain(self.fields.values(name))
    }

    /// Whether there is a field whose name is another spelling of `name`.
    pub(crate) fn has_other_spelling(&self, name: &HeaderName) -> bool {
        has_other_spelling(&self.head.headers, name)
    }
}

const TYPICAL_FIELDS: usize = 10;

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_head_has_the_time_that_is_left_when_it_is_written() {
        let mut fields = ExtraHeaders::new();
        fields.add_deadline(Instant::now() + Duration::from_secs(3));
        fields.merge_into(&mut HeaderMap::new());
        for (waited, left) in [(0, "3000000u"), (1, "2000000u"), (5, "0n")] {
            tokio::time::advance(Duration::from_secs(waited)).await;
            for fields in [&fields, &fields.deadline_alone()] {
                let (mut map, mut text) = (HeaderMap::new(), Vec::new());
                fields.append_to(&mut map);
                fields.write(&mut text);

                assert_eq!(map[&GRPC_TIMEOUT], left);
                let text = String::from_utf8(text).expect("text").to_lowercase();
                assert_eq!(text, format!("grpc-timeout: {left}\r\n"));
            }
        }
    }
}
