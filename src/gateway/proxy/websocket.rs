//! The opening handshake of a WebSocket, validated on both sides (RFC 6455 §4).
//!
//! Without validation, an upstream that can be made to respond 101 would be a tunnel: only a server that has read the
//! client's key can compute the accept value.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use http_body::Body as _;

use crate::base::body::Body;
use crate::base::websocket::accept_value;
use crate::gateway::Rejection;
use crate::http1::OnUpgrade;

/// The opening handshake of a client, whose connection becomes a tunnel if the upstream accepts it.
#[derive(Debug)]
pub(crate) struct Handshake {
    protocol: HeaderValue,
    expected: ExpectedAccept,
    offers: Offers,
    client: OnUpgrade,
}

impl Handshake {
    /// Reads the handshake of a request for an upgrade to `protocol`; `None` if it cannot become a tunnel: the request is
    /// then forwarded as an ordinary one.
    ///
    /// # Errors
    ///
    /// [`Rejection::BadRequest`] for an invalid handshake, and for one with content, which could be mistaken for data
    /// of the new protocol.
    pub(crate) fn read(
        protocol: HeaderValue,
        head: &mut Parts,
        body: &Body,
    ) -> Result<Option<Self>, Rejection> {
        if !is_websocket(&protocol) {
            return Ok(None);
        }
        if !body.is_end_stream() {
            return Err(Rejection::BadRequest);
        }
        let expected = if head.method == Method::GET { expected(&head.headers)? } else { None };
        let client = expected.is_some().then(|| head.extensions.remove::<OnUpgrade>()).flatten();
        let parts = expected.zip(client);
        let offers = || Offers::of(&head.headers);
        Ok(parts.map(|(expected, client)| Self { protocol, expected, offers: offers(), client }))
    }

    /// Adds the request for the upgrade to the header fields for the upstream.
    pub(crate) fn request(&self, headers: &mut HeaderMap) {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
    }

    /// Returns the client's side of the tunnel, if an upstream's 101 accepts the handshake.
    pub(crate) fn accepted_by(self, response: &HeaderMap) -> Option<OnUpgrade> {
        (self.expected.accepts(response) && self.offers.include(response)).then_some(self.client)
    }
}

/// Whether an upgrade is to WebSocket, the only one allowed (RFC 6455 §4.1).
pub(crate) fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(WEBSOCKET)
}

/// Returns the accept value for a WebSocket request; `None` if it has no key and so is not a WebSocket request.
///
/// # Errors
///
/// [`Rejection::BadRequest`] for another version than 13, or a key that is not sixteen bytes in Base64 (§4.2.1).
fn expected(headers: &HeaderMap) -> Result<Option<ExpectedAccept>, Rejection> {
    if !headers.contains_key(SEC_WEBSOCKET_KEY) {
        return Ok(None);
    }
    let key = only(headers, &SEC_WEBSOCKET_KEY).ok_or(Rejection::BadRequest)?;
    let version = only(headers, &SEC_WEBSOCKET_VERSION);
    let is_key = STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == KEY_BYTES);
    if !is_key || version != Some(b"13") {
        return Err(Rejection::BadRequest);
    }
    Ok(Some(ExpectedAccept(accept_value(key))))
}

/// The `Sec-WebSocket-Accept` value that the upstream must return for one handshake.
#[derive(Debug)]
struct ExpectedAccept(String);

impl ExpectedAccept {
    /// Whether an upstream's 101 accepts this handshake (§4.2.2). `Connection: upgrade` is checked where the response
    /// head is parsed.
    fn accepts(&self, response: &HeaderMap) -> bool {
        only(response, &UPGRADE).is_some_and(|protocol| protocol.eq_ignore_ascii_case(WEBSOCKET))
            && only(response, &SEC_WEBSOCKET_ACCEPT) == Some(self.0.as_bytes())
    }
}

/// The subprotocols and extensions that a client offers.
#[derive(Debug)]
struct Offers {
    protocols: Vec<HeaderValue>,
    extensions: Vec<HeaderValue>,
}

impl Offers {
    fn of(request: &HeaderMap) -> Self {
        let all = |name| request.get_all(name).iter().cloned().collect();
        Self { protocols: all(SEC_WEBSOCKET_PROTOCOL), extensions: all(SEC_WEBSOCKET_EXTENSIONS) }
    }

    /// Whether the subprotocol and the extensions that a 101 selects are among the offers: the client would fail the
    /// connection otherwise (§4.1).
    fn include(&self, response: &HeaderMap) -> bool {
        let mut protocols = response.get_all(SEC_WEBSOCKET_PROTOCOL).iter();
        let has_protocol = protocols.next().is_none_or(|protocol| {
            let selected = protocol.as_bytes().trim_ascii();
            self.protocols.iter().flat_map(elements).any(|offered| offered == selected)
        });
        let mut extensions = response.get_all(SEC_WEBSOCKET_EXTENSIONS).iter().flat_map(elements);
        let is_offered = |selected: &[u8]| {
            let mut offered = self.extensions.iter().flat_map(elements);
            offered.any(|offered| extension_name(offered) == extension_name(selected))
        };
        has_protocol && protocols.next().is_none() && extensions.all(is_offered)
    }
}

/// Returns the elements of a list.
fn elements(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let elements = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    elements.filter(|element| !element.is_empty())
}

/// Returns the name of an extension, without its parameters.
fn extension_name(extension: &[u8]) -> &[u8] {
    extension.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii()
}

/// Returns the value of a field that occurs exactly once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes().trim_ascii())
}

const WEBSOCKET: &[u8] = b"websocket";
const KEY_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6455 §1.3
    #[test]
    fn the_accept_value_is_derived_from_the_key() {
        let expected = expected(&handshake("dGhlIHNhbXBsZSBub25jZQ==", &["13"]));
        let expected = expected.expect("valid").expect("a key");

        assert!(expected.accepts(&response("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
        assert!(!expected.accepts(&response("s3pPLMBiTxaQ9kYGzzhZRbK+xOp=")));
        assert!(!expected.accepts(&response("yes")));
        let mut twice = response("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        twice.append(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("another"));
        assert!(!expected.accepts(&twice));
        let mut other = response("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        other.insert(UPGRADE, HeaderValue::from_static("h2c"));
        assert!(!expected.accepts(&other));
    }

    #[test]
    fn an_invalid_handshake_is_refused() {
        for (key, versions) in [
            ("x", &["13"][..]),
            ("", &["13"]),
            ("dGhlIHNhbXBsZSBub25jZQ", &["13"]),
            ("dGhlIHNhbXBsZSBub25jZQ==", &["8"]),
            ("dGhlIHNhbXBsZSBub25jZQ==", &[]),
            ("dGhlIHNhbXBsZSBub25jZQ==", &["13", "8"]),
            ("dGhlIHNhbXBsZSBub25jZSBvZiBtb3Jl", &["13"]),
        ] {
            let refused = expected(&handshake(key, versions));
            assert!(matches!(refused, Err(Rejection::BadRequest)), "{key} {versions:?}");
        }
        assert!(matches!(expected(&HeaderMap::new()), Ok(None)));
    }

    /// RFC 6455 §4.1
    #[test]
    fn a_101_selects_what_the_client_offered() {
        let fields = |fields: &[(HeaderName, &'static str)]| {
            let fields = fields.iter().cloned();
            fields.map(|(name, value)| (name, HeaderValue::from_static(value))).collect()
        };
        let (protocol, extension) = (SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_EXTENSIONS);
        let offers: HeaderMap = fields(&[
            (protocol.clone(), "chat, mqtt"),
            (protocol.clone(), "stomp"),
            (extension.clone(), "permessage-deflate; client_max_window_bits, x"),
        ]);

        for (selected, included) in [
            (&[][..], true),
            (&[(protocol.clone(), "mqtt")], true),
            (&[(protocol.clone(), "stomp"), (extension.clone(), "permessage-deflate;a=b")], true),
            (&[(protocol.clone(), "evil")], false),
            (&[(protocol.clone(), "Chat")], false),
            (&[(protocol.clone(), "")], false),
            (&[(protocol.clone(), "chat, mqtt")], false),
            (&[(protocol.clone(), "chat"), (protocol.clone(), "chat")], false),
            (&[(extension.clone(), "x, permessage-deflate")], true),
            (&[(extension.clone(), "x, y")], false),
        ] {
            assert_eq!(Offers::of(&offers).include(&fields(selected)), included, "{selected:?}");
            let is_nothing = selected.is_empty();
            assert_eq!(Offers::of(&HeaderMap::new()).include(&fields(selected)), is_nothing);
        }
    }

    fn handshake(key: &'static str, versions: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static(key));
        for version in versions {
            headers.append(SEC_WEBSOCKET_VERSION, HeaderValue::from_static(version));
        }
        headers
    }

    fn response(accept: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(accept));
        headers
    }
}
