//! Entry point of the fuzz target for cookies, with the properties that must hold for any field.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::cookies::cookie;
use super::cookies::cookie::Cookie;
use super::cookies::seal::SealingKeys;
use super::settings;
use crate::base::secret::Secret;

/// Parses `Cookie` fields from a client that does not have the gateway's keys.
pub fn cookies(fields: &[&[u8]]) {
    let ours = Cookie::new(&settings::Cookie::default(), "web");
    let ring = SealingKeys::new(&[Secret::new([7; 32])]);
    let mut headers = HeaderMap::new();
    for field in fields {
        let Ok(field) = HeaderValue::from_bytes(field) else { return };
        headers.append(COOKIE, field);
    }
    let presented = ours.find(&headers);
    for text in presented.texts() {
        assert!(ring.open(b"web", &text).is_none(), "a forged cookie opens");
    }
    let _ = presented.plain_values().count();
    let _ = ours.clear(presented.held());
    let empty = presented.is_empty();
    let before = headers.clone();
    cookie::strip(&mut headers, |name| ours.owns(name));
    assert!(ours.find(&headers).is_empty(), "our own cookie goes on to a service");
    assert!(!empty || headers == before, "others' cookies were touched");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn foreign_cookies_never_open_and_own_cookies_are_never_forwarded(
            fields in prop::collection::vec("( |;|__Host-web|[.]1|=|[a-c1-3]){0,12}", 0..4),
        ) {
            super::cookies(&fields.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
    }
}
