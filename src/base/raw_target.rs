//! Request targets with bytes that the type `Uri` cannot hold.
//!
//! Clients send `<`, `>`, `"` and backticks as they are, and bytes that are not UTF-8, and upstreams read them. `Uri`
//! refuses them. Here such a byte is carried within a `Uri` as one private-use character, U+10F700 plus the byte, which
//! every transformation of the target moves like any other character. Where the target leaves the gateway it is
//! turned back into the byte ([`bytes()`]), or escaped where only text may stand ([`escaped`]). A client's own character
//! of that range is carried byte by byte, so that the form is reversible. Only those bytes have a carrier that a `Uri`
//! refuses in an ordinary place: none for a line break, a space or another delimiter of a request line, so that a `Uri`
//! that no parser of this file produced cannot smuggle one in.

use std::borrow::Cow;

use bytes::Bytes;
use http::Uri;
use memchr::memchr;

/// Parses a request target as it was received; bytes that `Uri` cannot hold are carried.
///
/// # Errors
///
/// [`BadTarget::Malformed`] if the target has no path to carry them in, or holds a control character,
/// [`BadTarget::TooLong`] if it is longer than a `Uri`; a carried byte counts as four.
pub fn parse(target: Bytes) -> Result<Uri, BadTarget> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(BadTarget::TooLong);
    }
    let has_carriers = memchr(LEAD, &target).is_some();
    if !has_carriers {
        match Uri::from_maybe_shared(target.clone()) {
            Ok(uri) => return Ok(uri),
            Err(_) if !is_repairable(&target) => return Err(BadTarget::Malformed),
            Err(_) => {}
        }
    }
    let carried = carried(&target);
    if carried.len() > MAX_TARGET_BYTES {
        return Err(BadTarget::TooLong);
    }
    Uri::from_maybe_shared(Bytes::from(carried)).map_err(|_| BadTarget::Malformed)
}

/// Why a request target is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadTarget {
    /// It is no request target.
    #[error("the request target is malformed")]
    Malformed,
    /// It is longer than a `Uri` can be.
    #[error("the request target is too long")]
    TooLong,
}

/// Returns the bytes of a target, or of a part of one, as they were received.
pub fn bytes(text: &str) -> Cow<'_, [u8]> {
    if memchr(LEAD, text.as_bytes()).is_none() {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut out = Vec::with_capacity(text.len());
    for character in text.chars() {
        match carried_byte(character) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(out)
}

/// Returns a target, or a part of one, with carried bytes as escapes: for `Location` and other texts that must be a
/// valid URI reference, and for upstreams whose protocol carries text only.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if memchr(LEAD, text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match carried_byte(character) {
            Some(byte) => escape(&mut out, byte),
            None => out.push(character),
        }
    }
    Cow::Owned(out)
}

/// Returns a path and query as a `Uri` can hold them, for upstreams in HTTP/2: as they were received but for the bytes that
/// a `Uri` refuses where they stand, which are escaped.
pub fn held(text: &str) -> Cow<'_, str> {
    let Cow::Owned(raw) = bytes(text) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len());
    let mut is_query = false;
    for chunk in raw.utf8_chunks() {
        for character in chunk.valid().chars() {
            is_query |= character == '?';
            match u8::try_from(character) {
                Ok(b'"') if !is_query => out.push('"'),
                Ok(byte) if is_refused(byte) => escape(&mut out, byte),
                _ => out.push(character),
            }
        }
        for byte in chunk.invalid() {
            escape(&mut out, *byte);
        }
    }
    Cow::Owned(out)
}

/// Appends the escape of `byte` (RFC 3986 §2.1).
pub fn escape(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

/// Whether carrying bytes can make a target valid.
fn is_repairable(target: &[u8]) -> bool {
    target.iter().any(|byte| is_refused(*byte) || !byte.is_ascii())
}

/// Returns the target with every byte carried that a `Uri` cannot hold.
fn carried(target: &[u8]) -> Vec<u8> {
    // Scheme and host of an absolute target stay as they are: `Uri` refuses what is wrong with them.
    let path = if target.starts_with(b"/") { 0 } else { path_of_absolute(target) };
    let (before, mut left) = target.split_at(path);
    let mut out = before.to_vec();
    while !left.is_empty() {
        let valid = match core::str::from_utf8(left) {
            Ok(text) => text,
            Err(error) => {
                let (valid, _) = left.split_at(error.valid_up_to());
                core::str::from_utf8(valid).unwrap_or_default()
            }
        };
        for character in valid.chars() {
            let mut encoded = [0; 4];
            let encoded = character.encode_utf8(&mut encoded).as_bytes();
            if carried_byte(character).is_some() || encoded.iter().any(|byte| is_refused(*byte)) {
                for byte in encoded {
                    carry(*byte, &mut out);
                }
            } else {
                out.extend_from_slice(encoded);
            }
        }
        left = &left[valid.len()..];
        if let [invalid, rest @ ..] = left {
            carry(*invalid, &mut out);
            left = rest;
        }
    }
    out
}

/// Returns where the path or the query of an absolute target begins.
fn path_of_absolute(target: &[u8]) -> usize {
    let authority = target.windows(3).position(|three| three == b"://").map(|at| at + 3);
    let path = authority.and_then(|start| {
        target[start..].iter().position(|byte| matches!(byte, b'/' | b'?')).map(|at| start + at)
    });
    path.unwrap_or(target.len())
}

/// Whether `Uri` refuses an ASCII character, in a path or a query, which is no control character.
const fn is_refused(byte: u8) -> bool {
    matches!(byte, b'<' | b'>' | b'"' | b'`')
}

fn carry(byte: u8, out: &mut Vec<u8>) {
    let carrier = char::from_u32(FIRST + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(carrier.encode_utf8(&mut [0; 4]).as_bytes());
}

/// Returns the byte that a character carries: one that is not ASCII, or an ASCII character that `Uri` refuses.
fn carried_byte(character: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(character).checked_sub(FIRST)?).ok()?;
    (!byte.is_ascii() || is_refused(byte)).then_some(byte)
}

/// Bytes of a request target, the limit of the type `Uri`.
pub const MAX_TARGET_BYTES: usize = u16::MAX as usize - 1;
/// The character that carries the byte zero.
const FIRST: u32 = 0x10_f700;
/// The first byte of the carriers in UTF-8, and of few other characters.
const LEAD: u8 = 0xf4;

/// Whether a path has an overlong UTF-8 escape: a lenient upstream decodes it to another character (RFC 3629 §10).
pub(crate) fn is_overlong(canonical: &str) -> bool {
    let overlong = |escapes: &[u8]| {
        matches!(
            escapes,
            [b'%', b'C', b'0' | b'1', b'%', b'8' | b'9' | b'A' | b'B', ..]
                | [b'%', b'E', b'0', b'%', b'8' | b'9', ..]
                | [b'%', b'F', b'0', b'%', b'8', ..]
        )
    };
    let path = canonical.as_bytes();
    memchr::memchr_iter(b'%', path).any(|at| overlong(path.get(at..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use http::uri::PathAndQuery;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_target_that_a_uri_can_hold_stays_as_it_is() {
        for target in ["/a?b", "/caf\u{e9}", "http://h/a", "*", "h:1", "/a{b}|c"] {
            let uri = parse(Bytes::from(target)).expect("a target");
            assert_eq!(uri, target.parse::<Uri>().expect("a URI"), "{target}");
        }
    }

    #[test]
    fn a_uri_holds_all_that_it_can_as_it_was_received() {
        for (target, expected) in [
            (
                &b"/t/\"q\"/caf\xc3\xa9|^{}?x=|^{}caf\xc3\xa9"[..],
                "/t/\"q\"/caf\u{e9}|^{}?x=|^{}caf\u{e9}",
            ),
            (b"/t/\"q\"<\xe9\xff?\"<>`", "/t/\"q\"%3C%E9%FF?%22%3C%3E%60"),
            ("/\u{10f73c}?\u{10f7ff}\"".as_bytes(), "/\u{10f73c}?\u{10f7ff}%22"),
        ] {
            let uri = parse(Bytes::copy_from_slice(target)).expect("a target");
            let path = uri.path_and_query().expect("a path").as_str();

            assert_eq!(held(path), expected);
            let held = PathAndQuery::try_from(held(path).as_ref()).expect("it can be held");
            assert_eq!(held.as_str(), expected);
        }
    }

    #[test]
    fn bytes_that_a_uri_cannot_hold_are_carried_and_come_back() {
        for target in [
            &b"/a<b>`c\"?q=<\"`>"[..],
            b"/caf\xe9/\xff\xc0\xaf",
            b"/?query=rate(x{a=\"b\"}[5m])>0",
            b"http://h/<?>",
            b"http://h?\"",
            "/\u{10f73c}/\u{10f7ff}\u{10ffff}".as_bytes(),
        ] {
            let uri = parse(Bytes::copy_from_slice(target)).expect("a target");
            let sent = bytes(uri.path_and_query().expect("a path").as_str()).into_owned();
            assert!(target.ends_with(&sent[1..]), "{target:?}: {sent:?}");
        }
    }

    #[test]
    fn an_invalid_target_is_refused() {
        for target in [
            &b"/a\x00<"[..],
            b"/a\x7f<",
            b"/a <",
            b"h<:80",
            b"ht<tp://h/",
            b"http://h<h/a",
            b"",
            b"<",
        ] {
            assert!(parse(Bytes::copy_from_slice(target)).is_err(), "{target:?}");
        }
    }

    #[test]
    fn carried_bytes_are_escapes_in_text() {
        let uri = parse(Bytes::from_static(b"/a<\xe9\xc3\xa9?\"")).expect("a target");

        assert_eq!(escaped(uri.path_and_query().expect("a path").as_str()), "/a%3C%E9\u{e9}?%22");
    }

    #[test]
    fn no_character_of_an_unparsed_uri_carries_a_delimiter_of_a_request_line() {
        for byte in (0..=b' ').chain([b'#', b'?', b'/', b'%', 0x7f]) {
            let character = char::from_u32(FIRST + u32::from(byte)).expect("a character");
            let uri: Uri = format!("/a?b{character}").parse().expect("a URI");

            let sent = bytes(uri.path_and_query().expect("a path").as_str()).into_owned();

            assert_eq!(sent, format!("/a?b{character}").into_bytes(), "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn every_path_comes_back_byte_by_byte(path in prop::collection::vec(0x21_u8..=0xff, 0..40)) {
            prop_assume!(!path.contains(&b'#') && !path.contains(&0x7f));
            let target = [b"/", &path[..]].concat();

            let uri = parse(Bytes::from(target.clone())).expect("a target");

            prop_assert_eq!(bytes(uri.path_and_query().expect("a path").as_str()).into_owned(), target);
        }
    }
}
