//! The value of a `Content-Length` field (RFC 9110 §8.6).

/// Parses a length: digits and nothing else. `None` for any other text, and for a number beyond 64 bits.
pub fn parse(value: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(value).ok()?;
    // `parse` takes a sign, too.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_digits_and_nothing_else() {
        assert_eq!(parse(b"0"), Some(0));
        assert_eq!(parse(b"18446744073709551615"), Some(u64::MAX));
        for other in ["", "+5", "-1", " 5", "5, 5", "0x5", "18446744073709551616"] {
            assert_eq!(parse(other.as_bytes()), None, "{other}");
        }
    }
}
