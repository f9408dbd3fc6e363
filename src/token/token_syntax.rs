//! The characters of tokens.

/// Whether a token has the syntax of RFC 6750 §2.1, as every signed and every encrypted one has.
pub fn is_b64token(token: &str) -> bool {
    let body = token.trim_end_matches('=');
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b);
    !body.is_empty() && body.bytes().all(fits)
}

/// Whether an issuer may know the token: some issue tokens with other visible characters (RFC 6749 §A.12). Spaces,
/// quotes, commas and backslashes would be those of a list, or of a parameter, in the field.
pub fn is_token(token: &str) -> bool {
    let fits = |b: u8| b.is_ascii_graphic() && !b"\",\\".contains(&b);
    !token.is_empty() && token.bytes().all(fits)
}
