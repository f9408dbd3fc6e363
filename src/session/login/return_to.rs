//! The target of a login, checked against open redirects.
//!
//! `?return_to=` is accepted only if it is unambiguous: a plain path of this
//! origin, or a URL at an origin that the operator lists. Anything else is
//! not repaired but ignored, and the login leads to `after_login`.

use http::HeaderValue;

use crate::session::settings::ReturnTo;

/// A target that a login may lead to: a path of this origin, or a URL at a listed origin.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ReturnTarget(Box<str>);

impl ReturnTarget {
    /// Returns `requested` as a target if one of `allowed` covers it and user agents agree on its meaning.
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

    /// Returns a path that the operator configured as a target.
    pub(crate) fn trusted(path: &str) -> Self {
        Self(path.into())
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

/// Whether `path` is unambiguous: no `//`, no dot segments, no encoded slashes or control characters.
fn is_plain_path(path: &str, may_be_empty: bool) -> bool {
    if path.is_empty() {
        return may_be_empty;
    }
    let mut bytes = path.bytes().enumerate().filter(|(_, byte)| *byte == b'%');
    let well_encoded = bytes.all(|(at, _)| {
        let encoded = path.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        encoded
            .is_some_and(|byte| byte >= 0x20 && !matches!(byte, b'/' | b'\\' | b'%' | b'.' | 0x7f))
    });
    let mut segments = path.split('/').skip(1).peekable();
    let mut plain = true;
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        let name = segment.split(';').next().unwrap_or_default();
        plain &= !matches!(name, "." | "..") && (last || !segment.is_empty());
    }
    path.starts_with('/') && well_encoded && plain
}

fn is_below(path: &str, only: &str, below: bool) -> bool {
    match path.strip_prefix(only.trim_end_matches('/')) {
        Some("" | "/") => true,
        Some(rest) => below && rest.starts_with('/'),
        None => false,
    }
}

/// Bytes of a requested target.
const MAX_LEN: usize = 2048;

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
