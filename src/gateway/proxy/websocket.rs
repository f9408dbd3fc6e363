//! The opening handshake of a WebSocket, as both sides must keep to it (RFC 6455 §4).
//!
//! A service that can be made to answer 101 would be a tunnel without it: only
//! who has read the client's key knows what to answer.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::gateway::Rejection;

/// What a service must answer to one client's handshake.
#[derive(Debug)]
pub(crate) struct ExpectedAccept(String);

/// Only `WebSockets` are let through (RFC 6455 §4.1).
pub(crate) fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET)
}

/// What the answer to a request must be that asks for a WebSocket; `None` if it has no key, and so asks for none.
///
/// # Errors
///
/// [`Rejection::BadRequest`] for another version than 13, or a key that is not sixteen bytes in Base64 (§4.2.1).
pub(crate) fn expected(headers: &HeaderMap) -> Result<Option<ExpectedAccept>, Rejection> {
    if !headers.contains_key(SEC_WEBSOCKET_KEY) {
        return Ok(None);
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).ok_or(Rejection::BadRequest)?;
    let version = only(headers, &SEC_WEBSOCKET_VERSION);
    let is_key = STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == KEY_BYTES);
    if !is_key || version != Some(b"13") {
        return Err(Rejection::BadRequest);
    }
    let told = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, GUID].concat());
    Ok(Some(ExpectedAccept(STANDARD.encode(told))))
}

impl ExpectedAccept {
    /// Whether a service's 101 is the answer to this handshake, and to a WebSocket's at all (§4.2.2). That it says
    /// `Connection: upgrade` is seen where its head is read.
    pub(crate) fn is(&self, answer: &HeaderMap) -> bool {
        only(answer, &UPGRADE).is_some_and(|protocol| protocol.eq_ignore_ascii_case(WEBSOCKET))
            && only(answer, &SEC_WEBSOCKET_ACCEPT) == Some(self.0.as_bytes())
    }
}

/// The value of a field that comes once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

const WEBSOCKET: &[u8] = b"websocket";
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const KEY_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455 §1.3
    #[test]
    fn an_answer_is_made_from_its_request() {
        let expected = expected(&asked("dGhlIHNhbXBsZSBub25jZQ==", &["13"]));
        let expected = expected.expect("valid").expect("a key");

        assert!(expected.is(&answered("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
        assert!(!expected.is(&answered("s3pPLMBiTxaQ9kYGzzhZRbK+xOp=")));
        assert!(!expected.is(&answered("yes")));
        let mut twice = answered("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        twice.append(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("another"));
        assert!(!expected.is(&twice));
        let mut other = answered("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        other.insert(UPGRADE, HeaderValue::from_static("h2c"));
        assert!(!expected.is(&other));
    }

    #[test]
    fn a_handshake_that_is_none_is_refused() {
        for (key, versions) in [
            ("x", &["13"][..]),
            ("", &["13"]),
            ("dGhlIHNhbXBsZSBub25jZQ", &["13"]),
            ("dGhlIHNhbXBsZSBub25jZQ==", &["8"]),
            ("dGhlIHNhbXBsZSBub25jZQ==", &[]),
            ("dGhlIHNhbXBsZSBub25jZQ==", &["13", "8"]),
            ("dGhlIHNhbXBsZSBub25jZSBvZiBtb3Jl", &["13"]),
        ] {
            let refused = expected(&asked(key, versions));
            assert!(matches!(refused, Err(Rejection::BadRequest)), "{key} {versions:?}");
        }
        assert!(matches!(expected(&HeaderMap::new()), Ok(None)));
    }

    fn asked(key: &'static str, versions: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static(key));
        for version in versions {
            headers.append(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(version));
        }
        headers
    }

    fn answered(accept: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(accept));
        headers
    }
}
