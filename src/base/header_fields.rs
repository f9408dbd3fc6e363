//! Header fields as bytes, and the spellings of their names.

use http::{HeaderMap, HeaderName, HeaderValue};

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

/// Whether upstreams that compare letters and digits only, such as those that translate fields to variables, take the two
/// names for one: `X-Auth`, `x_auth` and `X.Auth`.
pub fn are_alike(one: &HeaderName, other: &HeaderName) -> bool {
    one.as_str().len() == other.as_str().len()
        && begins_alike(one.as_str().as_bytes(), other.as_str().as_bytes())
}

/// Whether a name begins with `with` for upstreams that compare letters, in any case, and digits only.
pub fn begins_alike(name: &[u8], with: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| {
        a.eq_ignore_ascii_case(b) || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric())
    };
    name.len() >= with.len() && name.iter().zip(with).all(same)
}

/// Whether there is a field whose name is another spelling of `name`.
pub fn has_other_spelling(headers: &HeaderMap, name: &HeaderName) -> bool {
    headers.keys().any(|sent| sent != name && are_alike(sent, name))
}
