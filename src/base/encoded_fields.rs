//! Fields as they stand in an HTTP/1.1 head, for those that are sent again and again.

use http::{HeaderName, HeaderValue};

/// Fields, and the lines that they are sent as.
#[derive(Clone, Debug)]
pub struct EncodedFields {
    fields: Box<[(HeaderName, HeaderValue)]>,
    lines: Box<[u8]>,
}

impl EncodedFields {
    /// Writes these fields, in this order.
    pub fn new(fields: impl IntoIterator<Item = (HeaderName, HeaderValue)>) -> Self {
        let fields: Box<[_]> = fields.into_iter().collect();
        let mut lines = Vec::new();
        fields.iter().for_each(|(name, value)| write_field_line(&mut lines, name, value));
        Self { fields, lines: lines.into() }
    }

    /// Each field in turn.
    pub fn fields(&self) -> &[(HeaderName, HeaderValue)] {
        &self.fields
    }

    /// All of them, a line for each.
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
