//! The target of a login, checked against open redirects.
//!
//! `?return_to=` is accepted only if it is unambiguous: a plain path of this origin, or a URL at an origin that the
//! operator lists. Anything else is ignored, not repaired, and the login leads to `after_login`. A page that the
//! gateway itself returns to ([`session_hosts`](super::session_hosts)) is sealed there if these rules refuse it.

use http::HeaderValue;

use crate::session::settings::ReturnTo;

/// A target that a login may lead to: a path of this origin, or a URL at a listed origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ReturnTarget(Box<str>);

impl ReturnTarget {
    /// Returns `requested` as a target if `allowed` covers it and all user agents read it alike.
    pub(crate) fn parse(requested: &str, allowed: &[ReturnTo]) -> Option<Self> {
        if requested.len() > MAX_LEN {
            return None;
        }
        let (origin, rest) = match requested.find("://") {
            _ if requested.starts_with('/') => (None, requested),
            Some(scheme) => {
                let host = scheme + "://".len();
                let end =
                    requested[host..].find(['/', '?', '#']).map_or(requested.len(), |at| host + at);
                (Some(&requested[..end]), &requested[end..])
            }
            None => return None,
        };
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let clear = rest.bytes().all(is_clear) && is_plain_path(path, origin.is_some());
        let listed = allowed.iter().any(|allowed| match (allowed, origin) {
            (ReturnTo::SameOrigin, None) => true,
            (ReturnTo::Path { path: only, below }, None) => is_below(path, only, *below),
            (ReturnTo::Origin(listed), Some(origin)) => **listed == *origin,
            _ => false,
        });
        (clear && listed).then(|| Self(requested.into()))
    }

    /// Returns a trusted target: a path that the operator has configured, or one that the gateway has sealed.
    pub(crate) fn trusted(target: &str) -> Self {
        Self(target.into())
    }

    /// Whether it is a path, of the host that the login ends at.
    pub(crate) fn is_path(&self) -> bool {
        self.0.starts_with('/')
    }

    /// The target as written into `Location`.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The target as the value of a `Location` field.
    pub(crate) fn location(&self) -> HeaderValue {
        // `parse` accepts visible ASCII only; a configured path might contain more.
        HeaderValue::from_str(&self.0).unwrap_or(HeaderValue::from_static("/"))
    }
}

/// Visible ASCII, except characters that browsers or proxies drop or read as a slash.
const fn is_clear(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'\\' | b'"' | b'<' | b'>')
}

/// Whether user agents and servers agree that `path` is one of this origin: no `//`, no dot segments, no slashes or
/// control characters that decoding would bring in front of a segment.
fn is_plain_path(path: &str, may_be_empty: bool) -> bool {
    if path.is_empty() {
        return may_be_empty;
    }
    let mut segments = path.split('/').skip(1).peekable();
    let mut plain = path.starts_with('/');
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        plain &= (last || !segment.is_empty()) && is_plain_segment(segment);
    }
    plain
}

/// Whether a segment is not a dot segment, and its escapes are well-formed and harmless, even if they are decoded
/// twice.
fn is_plain_segment(segment: &str) -> bool {
    let mut name = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            name.push(byte);
            continue;
        }
        let Some(decoded) = escaped(rest) else { return false };
        rest = &rest[2..];
        let twice = if decoded == b'%' { escaped(rest) } else { None };
        let is_slash = |byte| matches!(byte, b'/' | b'\\');
        let is_control = |byte: u8| byte < 0x20 || byte == 0x7f;
        // An encoded slash within a name stays there: `/@scope%2fname`.
        let leads_away = is_slash(decoded) && name.is_empty();
        let hides = twice.is_some_and(|byte| is_slash(byte) || is_control(byte) || byte == b'.');
        if is_control(decoded) || leads_away || hides {
            return false;
        }
        name.push(decoded);
    }
    let is_dots =
        |name: &[u8]| matches!(name.split(|byte| *byte == b';').next(), Some(b"." | b".."));
    // Decoded, an encoded slash makes segments of its own.
    !name.split(|byte| matches!(byte, b'/' | b'\\')).any(is_dots)
}

/// The byte that two hexadecimal digits at the beginning of `rest` encode.
fn escaped(rest: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low, ..] = rest else { return None };
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn is_below(path: &str, only: &str, below: bool) -> bool {
    match path.strip_prefix(only.trim_end_matches('/')) {
        Some("" | "/") => true,
        Some(rest) => below && rest.starts_with('/'),
        None => false,
    }
}

/// Bytes of a requested target; a login keeps it in a cookie.
pub(crate) const MAX_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use url::Url;

    use super::*;

    fn same_origin(requested: &str) -> bool {
        ReturnTarget::parse(requested, &[ReturnTo::SameOrigin]).is_some()
    }

    #[test]
    fn paths_of_this_origin_are_accepted() {
        for requested in [
            "/",
            "/app",
            "/app/?a=b&c=%2F%2Fd",
            "/a/b;v=1/c",
            "/app#/orders/1",
            "/my%20files?f={a|b}",
            "/%C3%A9",
            "/100%25",
            "/100%2525/x",
            "/a%2520b",
            "/@scope%2fname",
            "/files/a%5Cb",
            "/file%2Etxt",
        ] {
            assert!(same_origin(requested), "{requested}");
        }
    }

    #[test]
    fn targets_at_other_sites_are_rejected() {
        for requested in [
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "\t//evil.example",
            " //evil.example",
            "https://evil.example",
            "https:evil.example",
            "https:/evil.example",
            "//evil.example@www.example.com",
            "javascript:alert(1)",
            "data:text/html,x",
            "evil.example",
            "?x",
            "#x",
            "",
            "/%2F/evil.example",
            "/%5Cevil.example",
            "/%09/evil.example",
            "/%0d%0aset-cookie:x",
            "/a//evil.example",
            "/./",
            "/../",
            "/a/..;/admin",
            "/..;x=1/admin",
            "/%2e%2e/admin",
            "/.%2e/admin",
            "/%252e%252e/",
            "/a%2F..%2Fadmin",
            "/a%252fadmin",
            "/%252F/evil.example",
            "/a/%2Fevil.example",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%+1",
            "/a b",
            "/é",
            "/a\u{0}",
            "/app?x=\r\nset-cookie:x",
            "/app\"onload",
        ] {
            assert!(!same_origin(requested), "{requested:?}");
        }
        assert!(!same_origin(&format!("/{}", "a".repeat(MAX_LEN))));
    }

    #[test]
    fn a_listed_origin_is_compared_whole() {
        let allowed = [ReturnTo::Origin("https://app.example.com".into())];
        let takes = |requested| ReturnTarget::parse(requested, &allowed).is_some();

        assert!(takes("https://app.example.com"));
        assert!(takes("https://app.example.com/orders?x=1"));
        assert!(takes("https://app.example.com?x=1"));
        for requested in [
            "/app",
            "https://app.example.com.evil.example/",
            "https://app.example.com@evil.example/",
            "https://app.example.com:8443/",
            "https://user@app.example.com/",
            "http://app.example.com/",
            "HTTPS://app.example.com/",
            "https://app.example.com\\@evil.example",
            "https://evil.example/://app.example.com",
            "https://app.example.com//evil.example",
        ] {
            assert!(!takes(requested), "{requested}");
        }
    }

    #[test]
    fn a_listed_path_is_compared_by_segments() {
        let below = [ReturnTo::Path { path: "/app".into(), below: true }];
        let exact = [ReturnTo::Path { path: "/app".into(), below: false }];
        let takes =
            |requested, allowed: &[ReturnTo]| ReturnTarget::parse(requested, allowed).is_some();

        assert!(takes("/app", &below) && takes("/app/", &below) && takes("/app/a?b", &below));
        assert!(!takes("/apple", &below) && !takes("/", &below));
        assert!(takes("/app?x", &exact) && !takes("/app/a", &exact));
        assert!(takes("/x", &[ReturnTo::Path { path: "/".into(), below: true }]));
    }

    proptest! {
        #[test]
        fn accepted_targets_stay_at_this_origin(requested in "[/\\\\.;:@%a-f0-9?#\t \u{e9}]{0,24}") {
            if same_origin(&requested) {
                let home = Url::parse("https://www.example.com/auth/login").unwrap();
                let there = home.join(&requested).expect("a browser can follow it");
                prop_assert_eq!(there.origin(), home.origin());
                prop_assert_eq!(there.path(), requested.split(['?', '#']).next().unwrap());
            }
        }
    }
}
