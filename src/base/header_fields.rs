//! Header fields as bytes.

use http::{HeaderMap, HeaderValue};

/// Returns the bytes of all names and values of `headers`.
pub fn fields_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum()
}

/// Whether no whitespace surrounds a value (RFC 9113 §8.2.1).
pub fn is_trimmed(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    !is_space(bytes.first()) && !is_space(bytes.last())
}
