//! Path normalization: validates a path, resolves its dot segments and lists its readings (RFC 3986 §3.3, §6.2.2).
//!
//! A gateway and an upstream that interpret one path differently are how `/public/..%2fadmin` reaches `/admin`. The
//! gateway therefore does not repair a path: it forwards the path as the client wrote it, except for dot segments, if
//! all its readings lead to one route, and refuses it otherwise. `path_readings` lists the readings; `match_route`
//! compares their routes.
//!
//! A reading has the fewest escapes: characters that a segment may contain stand unescaped, all others as upper-case
//! escapes. An escaped delimiter stays escaped, since an upstream may or may not treat it as the delimiter.

use std::borrow::Cow;

use super::path_error::PathError;
use crate::base::raw_target::{self, escape, is_overlong};

/// Whether a path has one reading and is written in canonical form. One pass over the bytes.
pub(crate) fn is_plain(path: &str) -> bool {
    let mut after_slash = false;
    for &byte in path.as_bytes() {
        match byte {
            b'/' | b'.' if after_slash => return false,
            b'/' => after_slash = true,
            b'%' | b';' => return false,
            _ if is_plain_byte(byte) => after_slash = false,
            _ => return false,
        }
    }
    path.starts_with('/')
}

/// Returns `path` with the fewest escapes, those in upper case; borrowed if it is so already.
///
/// # Errors
///
/// [`PathError::Malformed`] as for `read`, except for climbs above the root.
pub(crate) fn canonical(path: &str) -> Result<Cow<'_, str>, PathError> {
    if path.bytes().all(|byte| byte == b'/' || is_plain_byte(byte)) {
        return Ok(Cow::Borrowed(path));
    }
    let mut out = String::with_capacity(path.len() + 16);
    let bytes = raw_target::bytes(path);
    let mut bytes = bytes.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (hex(bytes.next())?, hex(bytes.next())?);
                match high << 4 | low {
                    0x00..=0x1f | 0x7f => return Err(PathError::Malformed),
                    plain if is_unreserved(plain) => out.push(char::from(plain)),
                    other => escape(&mut out, other),
                }
            }
            b'#' | b'?' | 0x00..=0x20 | 0x7f => return Err(PathError::Malformed),
            b'/' | b'\\' => out.push(char::from(byte)),
            plain if is_plain_byte(plain) => out.push(char::from(plain)),
            other => escape(&mut out, other),
        }
    }
    if is_overlong(&out) {
        return Err(PathError::Malformed);
    }
    Ok(Cow::Owned(out))
}

/// Whether an escaped byte is a delimiter to some upstreams, and data to others (RFC 3986 §2.2).
pub(crate) const fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'/' | b'\\') || (is_plain_byte(byte) && !is_unreserved(byte))
}

/// Removes dot segments from a path (RFC 3986 §5.2.4). All other segments stay as written.
///
/// # Errors
///
/// [`PathError::Malformed`] for a climb above the root.
pub(crate) fn resolve(path: &str) -> Result<Cow<'_, str>, PathError> {
    let Some(segments) = path.strip_prefix('/') else { return Err(PathError::Malformed) };
    if !segments.split('/').any(|segment| dots(segment).is_some()) {
        return Ok(Cow::Borrowed(path));
    }
    let mut output: Vec<&str> = Vec::new();
    let mut segments = segments.split('/').peekable();
    while let Some(segment) = segments.next() {
        match dots(segment) {
            None => {
                output.push(segment);
                continue;
            }
            Some(Dots::Current) => {}
            Some(Dots::Parent) => {
                output.pop().ok_or(PathError::Malformed)?;
            }
        }
        if segments.peek().is_none() {
            output.push("");
        }
    }
    Ok(Cow::Owned(format!("/{}", output.join("/"))))
}

/// The meaning of a dot segment.
enum Dots {
    Current,
    Parent,
}

/// Returns the meaning of a dot segment, escaped or not.
fn dots(segment: &str) -> Option<Dots> {
    let mut left = segment;
    let mut count = 0;
    while !left.is_empty() {
        left = left
            .strip_prefix('.')
            .or_else(|| left.strip_prefix("%2e"))
            .or_else(|| left.strip_prefix("%2E"))?;
        count += 1;
    }
    match count {
        1 => Some(Dots::Current),
        2 => Some(Dots::Parent),
        _ => None,
    }
}

fn hex(digit: Option<u8>) -> Result<u8, PathError> {
    let digit = digit.and_then(|digit| char::from(digit).to_digit(16));
    digit.map(|digit| digit as u8).ok_or(PathError::Malformed)
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether a segment may hold a byte without an escape (RFC 3986 §3.3 `pchar`).
const fn is_plain_byte(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'@'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::gateway::request::path_readings::{Path, read};

    #[test]
    fn a_plain_path_has_one_reading() {
        for path in ["/", "/a/b", "/a/", "/a.b/c..d", "/a:b@c,(d)", "/orders/1"] {
            let read = read(path).expect("a path");
            assert!(matches!(read.written, Cow::Borrowed(same) if same == path), "{path}");
            assert!(read.readings.is_empty(), "{path}");
        }
    }

    #[test]
    fn a_path_is_forwarded_as_the_client_wrote_it_without_dot_segments() {
        for (path, written) in [
            ("//a///b", "//a///b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/%61%2Db", "/%61%2Db"),
            ("/a%3ab", "/a%3ab"),
            ("/a/%2e%2E/b", "/b"),
            ("/.%2e/../a", ""),
            ("/%2e/a", "/a"),
            ("/a//", "/a//"),
            ("/a//./b", "/a//b"),
            ("/é", "/é"),
            ("/a\"b{c}", "/a\"b{c}"),
            ("/@scope%2fname", "/@scope%2fname"),
            ("/a\\b", "/a\\b"),
            ("/a/;x", "/a/;x"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/.hidden/...", "/.hidden/..."),
            ("/caf%E9", "/caf%E9"),
        ] {
            let read = read(path).map(|path| path.written.into_owned());
            assert_eq!(read.unwrap_or_default(), written, "{path}");
        }
    }

    #[test]
    fn a_reading_has_the_fewest_escapes() {
        for (path, expected) in [
            ("/%61%2Db", "/a-b"),
            ("/a%3ab", "/a%3Ab"),
            ("/é", "/%C3%A9"),
            ("/a\"b", "/a%22b"),
            ("/a%20%25%3f", "/a%20%25%3F"),
            ("/%2e%2e", "/.."),
            ("/a\\b%5c", "/a\\b%5C"),
            ("/%c3%80", "/%C3%80"),
        ] {
            assert_eq!(canonical(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn a_malformed_path_is_refused_whatever_the_routes() {
        for path in [
            "/a%00",
            "/a%0d%0ab",
            "/a%7f",
            "/%",
            "/%4",
            "/%zz",
            "/a#b",
            "/a b",
            "/..",
            "/a/../..",
            "/%2e%2e/",
            "/..;x/a",
            "/..%3bx",
            "/..%2fa",
            "/a/..%5c..\\b",
            "/a%2f..%2f..",
            "/a//../..;/..",
            "/%c0%ae%c0%ae/a",
            "/%c0%af",
            "/%C1%9C",
            "/%e0%80%af",
            "/%f0%80%80%af",
            "a",
            "",
            "*",
            "/\u{7f}",
        ] {
            assert_eq!(read(path), Err(PathError::Malformed), "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn a_forwarded_path_has_no_dot_segments_and_is_part_of_the_written_path(
            path in "/([a-c./;\\\\]|%2e|%2E|%2f|%5C|%3b|%41|é){0,12}",
        ) {
            if let Ok(Path { written, .. }) = read(&path) {
                prop_assert!(written.starts_with('/'));
                prop_assert!(written.split('/').all(|segment| dots(segment).is_none()), "{written}");
                for segment in written.split('/') {
                    prop_assert!(path.split('/').any(|own| own == segment), "{segment} of {written}");
                }
                prop_assert_eq!(resolve(&written), Ok(Cow::Borrowed(&*written)));
            }
        }
    }
}
