//! What the fuzz target reaches of cookies, with the promises that must hold for any field.

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};

use super::cookie::{self, Cookie};
use super::seal::KeyRing;
use super::settings;
use crate::base::secret::Secret;

/// `Cookie` fields from a client that does not have our keys.
pub fn cookies(fields: &[&[u8]]) {
    let ours = Cookie::new(&settings::Cookie::default(), "web");
    let ring = KeyRing::new(&[Secret::new([7; 32])]);
    let mut headers = HeaderMap::new();
    for field in fields {
        let Ok(field) = HeaderValue::from_bytes(field) else { return };
        headers.append(COOKIE, field);
    }
    let brought = ours.find(&headers);
    if let Some(text) = brought.text() {
        assert!(ring.open(b"web", &text).is_none(), "a forged cookie opens");
    }
    let _ = brought.plain();
    let _ = ours.clear(brought.held());
    let empty = brought.is_empty();
    let before = headers.clone();
    cookie::strip(&mut headers, &[&ours]);
    assert!(ours.find(&headers).is_empty(), "our own cookie goes on to a service");
    assert!(!empty || headers == before, "others' cookies were touched");
}
