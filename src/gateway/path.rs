//! One normal form of a path: what is matched is what is sent (RFC 3986 §6.2.2).
//!
//! A gateway and a service that read one path in two ways are how `/public/..%2fadmin`
//! reaches `/admin`. Whatever could be read in two ways is refused.

use std::borrow::Cow;

/// The path could be read in two ways, or climbs above the root.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the path is ambiguous")]
pub(super) struct Ambiguous;

/// The normal form of `path`: escapes of unreserved characters decoded, the others in upper case,
/// slashes merged, dot segments resolved. Borrowed where it was normal already, which is the usual case.
///
/// # Errors
///
/// [`Ambiguous`] for an encoded slash, backslash or control character, a malformed escape, an overlong
/// one, a raw backslash, control or `#`, a segment that is dots or nothing with parameters (`..;x`), and for
/// `..` above the root.
pub(super) fn normalise(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if !path.starts_with('/') {
        return Err(Ambiguous);
    }
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path.as_bytes())?;
    refuse_overlong(&decoded)?;
    let mut normal: Vec<&str> = Vec::new();
    let mut segments = decoded[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | "" if !last => {}
            "." => normal.push(""),
            ".." => {
                normal.pop().ok_or(Ambiguous)?;
                if last {
                    normal.push("");
                }
            }
            _ if is_dots_with_parameters(segment) => return Err(Ambiguous),
            _ => normal.push(segment),
        }
    }
    Ok(Cow::Owned(format!("/{}", normal.join("/"))))
}

/// Whether nothing has to be done: one look at each byte.
fn is_normal(path: &[u8]) -> bool {
    let mut after_slash = false;
    for &byte in path {
        match byte {
            b'/' | b'.' | b';' if after_slash => return false,
            b'/' => after_slash = true,
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'_'
            | b'.'
            | b'~'
            | b'!'
            | b'$'
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
            | b'@' => after_slash = false,
            _ => return false,
        }
    }
    true
}

/// Whether a path in normal form has parameters: `/a;b=c`.
pub(super) fn has_parameters(path: &str) -> bool {
    memchr::memchr(b';', path.as_bytes()).is_some() || path.contains("%3B")
}

/// A path in normal form without the parameters of its segments.
pub(super) fn bare(path: &str) -> String {
    let cut = |segment: &str| {
        let end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
        segment[..end.unwrap_or(segment.len())].to_owned()
    };
    path.split('/').map(cut).collect::<Vec<_>>().join("/")
}

/// A character in more bytes than it takes is another one to whoever does not mind (RFC 3629 §10).
fn refuse_overlong(path: &str) -> Result<(), Ambiguous> {
    let overlong = |escapes: &[u8]| {
        matches!(
            escapes,
            [b'%', b'C', b'0' | b'1', b'%', b'8' | b'9' | b'A' | b'B', ..]
                | [b'%', b'E', b'0', b'%', b'8' | b'9', ..]
                | [b'%', b'F', b'0', b'%', b'8', ..]
        )
    };
    let ambiguous = memchr::memchr_iter(b'%', path.as_bytes())
        .any(|at| overlong(path.as_bytes().get(at..).unwrap_or_default()));
    if ambiguous { Err(Ambiguous) } else { Ok(()) }
}

fn decode(path: &[u8]) -> Result<String, Ambiguous> {
    let mut out = String::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'%' => {
                let (high, low) = (hex(bytes.next())?, hex(bytes.next())?);
                match high << 4 | low {
                    b'/' | b'\\' | 0x00..=0x1f | 0x7f => return Err(Ambiguous),
                    plain if is_unreserved(plain) => out.push(char::from(plain)),
                    other => escape(&mut out, other),
                }
            }
            b'\\' | b'#' | b'?' | 0x00..=0x20 | 0x7f => return Err(Ambiguous),
            // Raw bytes that a URI may not hold travel escaped.
            b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | b'[' | b']' | 0x80.. => {
                escape(&mut out, byte);
            }
            plain => out.push(char::from(plain)),
        }
    }
    Ok(out)
}

fn hex(digit: Option<&u8>) -> Result<u8, Ambiguous> {
    let digit = char::from(*digit.ok_or(Ambiguous)?).to_digit(16).ok_or(Ambiguous)?;
    Ok(digit as u8)
}

fn escape(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(HEX[usize::from(byte >> 4)]));
    out.push(char::from(HEX[usize::from(byte & 15)]));
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `..;x` is a segment to us and a climb to services that cut parameters off first; `;x` is no segment to them.
fn is_dots_with_parameters(segment: &str) -> bool {
    let dots = segment.trim_start_matches('.');
    let count = segment.len() - dots.len();
    count <= 2 && (dots.starts_with(';') || dots.starts_with("%3B"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn leaves_a_normal_path_alone() {
        for path in ["/", "/a/b", "/a/", "/a.b/c..d", "/orders/1;v=2", "/a:b@c"] {
            assert!(matches!(normalise(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
        }
    }

    #[test]
    fn equal_paths_get_one_form() {
        for (path, normal) in [
            ("//a///b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/%61%2Db", "/a-b"),
            ("/a%3ab", "/a%3Ab"),
            ("/a/%2e%2e/b", "/b"),
            ("/%2e/a", "/a"),
            ("/a//", "/a/"),
            ("/é", "/%C3%A9"),
            ("/a%20b", "/a%20b"),
            ("/%252e%252e/a", "/%252e%252e/a"),
            ("/.hidden/...", "/.hidden/..."),
            ("/%c3%80", "/%C3%80"),
            ("/%e0%a4%85", "/%E0%A4%85"),
            ("/caf%E9", "/caf%E9"),
        ] {
            assert_eq!(normalise(path).as_deref(), Ok(normal), "{path}");
        }
    }

    #[test]
    fn refuses_what_can_be_read_in_two_ways() {
        for path in [
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
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
            "/a/..;/b",
            "/.;a",
            "/..%3bx",
            "/;x/a",
            "/a/;/b",
            "/a/%3b",
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
            assert_eq!(normalise(path), Err(Ambiguous), "{path:?}");
        }
    }

    #[test]
    fn parameters_are_cut_off_as_some_services_do() {
        assert!(has_parameters("/a;b/c") && has_parameters("/a%3Bb") && !has_parameters("/a%3Ab"));
        assert_eq!(bare("/a;b=c/d;e;f/g%3Bh"), "/a/d/g");
        assert_eq!(bare("/a/"), "/a/");
    }

    proptest! {
        #[test]
        fn the_normal_form_is_its_own_normal_form(path in "/[a-c./%2eEfF5;é]{0,24}") {
            if let Ok(normal) = normalise(&path) {
                prop_assert_eq!(normalise(&normal), Ok(Cow::Borrowed(&*normal)));
                let segments: Vec<_> = normal.split('/').collect();
                prop_assert!(!segments.contains(&"..") && !segments.contains(&"."));
                prop_assert!(!normal.contains("//"));
            }
        }
    }
}
