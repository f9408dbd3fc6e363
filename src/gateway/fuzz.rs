//! Entry points of the fuzz targets of this module, with the invariants that hold for any input.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version};

use super::policy::authenticate::PresentedCredential;
use super::request::{forwarded, headers, host, path};
use super::routing::match_route;
use crate::config::reserved_headers;
use crate::revocation_sync::entry::RevocationEntry;

/// Checks one or several `Authorization` fields beside a target.
pub fn authorization(fields: &[&[u8]], target: &str) {
    let Ok(uri) = target.parse::<Uri>() else { return };
    let (mut head, ()) = Request::new(()).into_parts();
    head.uri = uri;
    for field in fields {
        let Ok(value) = HeaderValue::from_bytes(field) else { return };
        head.headers.append(AUTHORIZATION, value);
    }
    match PresentedCredential::find(&head) {
        Ok(PresentedCredential::Token { token, .. }) => {
            assert!(fields.len() == 1, "one of several fields was chosen");
            assert!(fields[0].ends_with(token) && !token.starts_with(b" "));
        }
        Ok(PresentedCredential::Basic(_)) => assert_eq!(fields.len(), 1),
        Ok(PresentedCredential::Nothing) => assert!(fields.is_empty()),
        Ok(PresentedCredential::Other) | Err(_) => {}
    }
}

/// Checks a request target and host: what is forwarded has no dot segments, and no reading has invalid characters.
pub fn target(target: &str, field: &[u8], http2: bool) {
    if let Ok(path) = super::request::path_readings::read(target) {
        let written = &*path.written;
        assert_eq!(path::resolve(written).as_deref(), Ok(written), "{target:?}");
        // Bytes beyond ASCII are forwarded as they are, also those of C1 controls.
        let is_control = |character: char| character.is_ascii_control();
        assert!(written.starts_with('/') && !written.contains(is_control), "{written:?}");
        for reading in path.readings.all(written).filter(|_| !path.readings.is_empty()) {
            assert!(reading.starts_with('/'), "{reading:?} of {target:?}");
            let resolved = path::resolve(reading);
            let is_among = path.readings.all(written).any(|other| resolved.as_deref() == Ok(other));
            assert!(is_among, "{reading:?} with its dot segments resolved, of {target:?}");
            assert!(reading.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'));
            assert_eq!(path::canonical(reading).as_deref(), Ok(reading), "{target:?}");
        }
    }
    let (Ok(mut uri), Ok(field)) = (target.parse::<Uri>(), HeaderValue::from_bytes(field)) else {
        return;
    };
    let (mut head, ()) = Request::new(()).into_parts();
    head.uri = uri.clone();
    head.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    head.headers.insert(http::header::HOST, field);
    if let Ok(host) = host::read(&mut head) {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b);
        assert!(!host.name.is_empty() && host.name.bytes().all(allowed), "{host:?}");
    }
    if match_route::read_path(&mut uri).is_ok() {
        assert!(uri.path_and_query().is_some_and(|sent| sent.as_str().starts_with('/')), "{uri:?}");
    }
}

/// Checks header fields: no reserved field remains in any spelling, and forwarding fields never panic.
pub fn fields(fields: &[(&[u8], &[u8])]) {
    let own = HeaderName::from_static("x-auth-subject");
    let reserved_headers = reserved_headers::ReservedHeaders::new([&own]);
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    let peer = core::net::IpAddr::from([10, 0, 0, 1]);
    let trusted = ["10.0.0.0/8".parse().expect("a network")];
    let _ = forwarded::ClientInfo::read(&map, peer, &trusted);
    let _ = headers::strip_untrusted(&mut map, &reserved_headers, false);
    for name in map.keys() {
        let dashed = name.as_str().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        assert!(dashed != "x-auth-subject" && !dashed.starts_with("x-forwarded"), "{name}");
        assert_ne!(dashed, "transfer-encoding", "{name}");
        assert!(!["connection", "upgrade", "keep-alive"].contains(&name.as_str()), "{name}");
    }
    headers::merge_cookie_fields(&mut map);
    assert!(map.get_all(http::header::COOKIE).iter().count() < 2);
    for value in map.values() {
        let text = String::from_utf8_lossy(value.as_bytes());
        assert!(
            headers::encode_field_value(&text)
                .as_bytes()
                .iter()
                .all(|byte| (b' '..0x7f).contains(byte))
        );
    }
}

/// Checks an entry of the revocation stream: a parsed entry is formatted as it was read.
pub fn revocation_entry(fields: &[&[u8]]) {
    let Ok(entry) = RevocationEntry::read(fields) else { return };
    let written = entry.fields();
    let written: Vec<&[u8]> =
        written.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]).collect();
    assert_eq!(RevocationEntry::read(&written), Ok(entry));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_credential_is_found_or_none(
            fields in prop::collection::vec("(bearer|DPoP|Basic)?( |\t|,|=|[a-z0-9]|\u{e9}){0,9}", 0..3),
            query in "([?](access_token=1|a=b|%61ccess_token))?",
        ) {
            let fields: Vec<&[u8]> = fields.iter().map(String::as_bytes).collect();
            super::authorization(&fields, &format!("/{query}"));
        }

        #[test]
        fn a_target_is_read_without_dots(
            target in "(/|[.]|%2f|%2E|%5c|;|[a-z]|%00|%c0%ae){0,12}",
            field in "([a-zA-Z.:\\[\\]@/,]|1){0,9}",
            http2: bool,
        ) {
            super::target(&target, field.as_bytes(), http2);
        }

        #[test]
        fn nothing_that_is_reserved_is_left(
            names in prop::collection::vec("(x|X)[-_.~](auth|forwarded)[-_!](subject|for)|connection|te|upgrade|cookie", 0..6),
            values in prop::collection::vec("(keep-alive|upgrade|x-auth-subject|10[.]0[.]0[.]1|,| ){0,4}", 6),
        ) {
            let pairs = names.iter().zip(&values);
            super::fields(&pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect::<Vec<_>>());
        }
    }
}
