//! Header fields in the wire form of HTTP/1.1, encoded once and sent many times.

use http::{HeaderName, HeaderValue};

/// Header fields, and their encoded lines.
#[derive(Clone, Debug)]
pub struct EncodedFields {
    fields: Box<[(HeaderName, HeaderValue)]>,
    lines: Box<[u8]>,
}

impl EncodedFields {
    /// Encodes these fields, in this order.
    pub fn new(fields: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Self {
        let fields: Box<[_]> = fields.into_iter().collect();
        let mut lines = Vec::new();
        fields.iter().for_each(|(name, value)| write_field_line(&mut lines, name, value));
        Self { fields, lines: lines.into() }
    }

    /// Returns the fields in order.
    pub fn fields(&self) -> &[(HeaderName, HeaderValue)] {
        &self.fields
    }

    /// Returns the encoded lines, one per field.
    pub fn as_bytes(&self) -> &[u8] {
        &self.lines
    }
}

/// Appends one field line (RFC 9112 §5).
pub fn write_field_line(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
