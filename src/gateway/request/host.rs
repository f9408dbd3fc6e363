//! The host of a request: exactly one valid host (RFC 9112 §3.2, RFC 9113 §8.3.1).

use core::net::Ipv6Addr;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Version};

use crate::gateway::Rejection;

/// The host of a request.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Host {
    /// As it was sent, port included; `None` only in HTTP/1.0.
    pub authority: Option<HeaderValue>,
    /// In lower case and without a port; empty only in HTTP/1.0.
    pub name: Box<str>,
}

/// Reads the host of a request, and sets `Host` to the authority of the target if it has one. An absolute target
/// takes precedence over the field in HTTP/1.1; in HTTP/2 the two must agree if both are present.
///
/// # Errors
///
/// [`Rejection::BadRequest`] if the host is missing, repeated or invalid.
pub(crate) fn read(head: &mut Parts) -> Result<Host, Rejection> {
    let mut fields = head.headers.get_all(HOST).iter();
    let (field, second) = (fields.next().cloned(), fields.next().is_some());
    if second {
        return Err(Rejection::BadRequest);
    }
    let target = head.uri.authority().map(http::uri::Authority::as_str);
    if target.is_some() && !head.uri.scheme_str().is_none_or(is_http) {
        return Err(Rejection::BadRequest);
    }
    let authority = match (target, field) {
        (None, None) if head.version == Version::HTTP_10 => {
            return Ok(Host { authority: None, name: "".into() });
        }
        (None, None) => return Err(Rejection::BadRequest),
        (None, Some(field)) => field,
        // Every HTTP/1.1 request has the field, even if the target takes precedence over it (RFC 9112 §3.2).
        (Some(_), None) if head.version == Version::HTTP_11 => return Err(Rejection::BadRequest),
        (Some(_), Some(field)) if name(field.as_bytes()).is_none() => {
            return Err(Rejection::BadRequest);
        }
        (Some(target), Some(field))
            if head.version == Version::HTTP_2 && !same(field.as_bytes(), target.as_bytes()) =>
        {
            return Err(Rejection::BadRequest);
        }
        (Some(target), _) => {
            let authority = HeaderValue::from_str(target).map_err(|_| Rejection::BadRequest)?;
            head.headers.insert(HOST, authority.clone());
            authority
        }
    };
    let name = name(authority.as_bytes()).ok_or(Rejection::BadRequest)?;
    Ok(Host { authority: Some(authority), name })
}

/// Whether two authorities have the same host and port.
pub(crate) fn same(one: &[u8], other: &[u8]) -> bool {
    let port = |authority: &[u8]| {
        let after = authority.iter().rposition(|&byte| byte == b':')?;
        let port = &authority[after + 1..];
        (!port.contains(&b']')).then(|| port.to_owned())
    };
    one.eq_ignore_ascii_case(other)
        || (one.starts_with(b"[") && name(one) == name(other) && port(one) == port(other))
}

/// Returns the host of `host[:port]` in lower case, an IPv6 address in canonical form (RFC 5952); `None` if it is
/// invalid.
fn name(authority: &[u8]) -> Option<Box<str>> {
    if let Some(rest) = authority.strip_prefix(b"[") {
        let end = rest.iter().position(|&b| b == b']')?;
        let address: Ipv6Addr = core::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
        let has_port = is_port_suffix(&rest[end + 1..]);
        return has_port.then(|| format!("[{address}]").into_boxed_str());
    }
    let end = authority.iter().position(|&b| b == b':').unwrap_or(authority.len());
    let (host, port) = authority.split_at(end);
    // A host name may end in the dot of the root.
    let host = host.strip_suffix(b".").unwrap_or(host);
    if !has_only_labels(host) || !is_port_suffix(port) {
        return None;
    }
    String::from_utf8(host.to_ascii_lowercase()).ok().map(String::into_boxed_str)
}

/// Whether `host` is a sequence of non-empty labels separated by dots.
fn has_only_labels(host: &[u8]) -> bool {
    let mut before = b'.';
    host.iter().all(|&b| {
        let fits =
            b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || (b == b'.' && before != b'.');
        before = b;
        fits
    }) && before != b'.'
}

fn is_http(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

/// Whether `suffix` is empty, or a colon with or without a port.
fn is_port_suffix(suffix: &[u8]) -> bool {
    matches!(suffix, [] | [b':']) || suffix.strip_prefix(b":").is_some_and(is_port)
}

fn is_port(digits: &[u8]) -> bool {
    let append = |port: u16, digit: &u8| {
        let value = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        port.checked_mul(10)?.checked_add(value)
    };
    digits.iter().try_fold(0, append).is_some()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_host_name_has_no_port_and_is_in_lower_case() {
        for (authority, expected) in [
            ("Example.COM", "example.com"),
            ("example.com:8443", "example.com"),
            ("example.com.", "example.com"),
            ("[::1]:80", "[::1]"),
            ("[0:0:0:0:0:0:0:1]", "[::1]"),
            ("[2001:DB8:0::1]:443", "[2001:db8::1]"),
            ("10.0.0.1", "10.0.0.1"),
            ("example.com:", "example.com"),
        ] {
            assert_eq!(name(authority.as_bytes()).as_deref(), Some(expected), "{authority}");
        }
    }

    #[test]
    fn an_invalid_host_is_refused() {
        for authority in [
            "",
            ":80",
            "a b",
            "user@host",
            "a:b",
            "a:99999",
            "a/b",
            "[::1",
            "[x]",
            "a,b",
            "é",
            "a:80:80",
            "[::1]x",
            ".",
            "..",
            "a..b",
            ".a",
            "a..",
        ] {
            assert_eq!(name(authority.as_bytes()), None, "{authority}");
        }
    }

    #[test]
    fn a_request_has_exactly_one_host() {
        assert_eq!(host("/", &["a"], Version::HTTP_11), Ok("a".into()));
        assert_eq!(host("/", &["a", "a"], Version::HTTP_11), Err(Rejection::BadRequest));
        assert_eq!(host("/", &[], Version::HTTP_11), Err(Rejection::BadRequest));
        assert_eq!(host("/", &[], Version::HTTP_10), Ok(String::new()));
    }

    #[test]
    fn an_absolute_target_wins_and_in_http2_must_agree() {
        assert_eq!(host("http://b/", &["a"], Version::HTTP_11), Ok("b".into()));
        assert_eq!(host("http://b/", &["a"], Version::HTTP_2), Err(Rejection::BadRequest));
        assert_eq!(host("http://b/", &["b"], Version::HTTP_2), Ok("b".into()));
        assert_eq!(host("http://b/", &[], Version::HTTP_2), Ok("b".into()));
        assert_eq!(host("http://b/", &[], Version::HTTP_10), Ok("b".into()));
    }

    #[test]
    fn an_absolute_target_does_not_replace_a_missing_or_bad_host_field() {
        assert_eq!(host("http://b/", &[], Version::HTTP_11), Err(Rejection::BadRequest));
        assert_eq!(host("http://b/", &["a b"], Version::HTTP_11), Err(Rejection::BadRequest));
        assert_eq!(host("http://b/", &["b", "b"], Version::HTTP_11), Err(Rejection::BadRequest));
        assert_eq!(host("http://u@b/", &["b"], Version::HTTP_11), Err(Rejection::BadRequest));
        assert_eq!(host("ftp://b/", &["b"], Version::HTTP_11), Err(Rejection::BadRequest));
        assert_eq!(host("file://b/", &[], Version::HTTP_2), Err(Rejection::BadRequest));
        assert_eq!(host("HTTPS://b/", &["b"], Version::HTTP_11), Ok("b".into()));
    }

    fn host(uri: &str, fields: &[&str], version: Version) -> Result<String, Rejection> {
        let mut request = Request::builder().uri(uri).version(version);
        for field in fields {
            request = request.header(HOST, *field);
        }
        read(&mut request.body(()).expect("valid").into_parts().0).map(|host| host.name.into())
    }
}
