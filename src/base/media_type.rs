//! Media types (RFC 9110 §8.3.1).

/// Returns the type and subtype of a `Content-Type` value as written, without parameters.
pub fn essence(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}
