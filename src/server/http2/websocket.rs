//! WebSockets over HTTP/2 (RFC 8441): an extended CONNECT is served as the opening handshake of HTTP/1.1.
//!
//! So authentication, limits, the rules about origins, and the upstream see the handshake that they know. The key,
//! which HTTP/2 does without, is the gateway's own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use h2::RecvStream;
use h2::ext::Protocol;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tokio::sync::oneshot;

use super::request_content::MAX_TRAILERS;
use super::responder::Responder;
use crate::base::body::Body;
use crate::base::random::random;
use crate::gateway::{OpensTunnel, UnknownProtocol};
use crate::http1::{OnUpgrade, Upgraded};
use crate::http2::{ReceivedContent, ReceivedContents, UpgradedStream};
use crate::server::connection_timeouts::ActiveRequest;

/// A stream that becomes a WebSocket if the response permits it.
pub(super) struct WebSocketStream {
    receiver: RecvStream,
    upgrade: oneshot::Sender<Upgraded>,
}

impl WebSocketStream {
    /// Turns an extended CONNECT for a WebSocket into the handshake of HTTP/1.1. One for another protocol is marked,
    /// and refused by the gateway.
    ///
    /// # Errors
    ///
    /// `stream` itself, if it is to be no WebSocket.
    pub(super) fn of(request: &mut Parts, stream: RecvStream) -> Result<Self, RecvStream> {
        let Some(protocol) = request.extensions.remove::<Protocol>() else { return Err(stream) };
        if !protocol.as_str().eq_ignore_ascii_case(WEBSOCKET) {
            request.extensions.insert(UnknownProtocol);
            return Err(stream);
        }
        request.method = Method::GET;
        let key = STANDARD.encode(random::<16>());
        request.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
        // Base64 is always a field value.
        if let Ok(key) = HeaderValue::try_from(key) {
            request.headers.insert(SEC_WEBSOCKET_KEY, key);
        }
        let (sender, upgrade) = OnUpgrade::new();
        request.extensions.insert(upgrade);
        request.extensions.insert(OpensTunnel);
        Ok(Self { receiver: stream, upgrade: sender })
    }

    /// Opens the WebSocket if `response`, without fields of a connection, does in HTTP/1.1: 200 opens it (RFC 8441 §5).
    /// Returns the response to send otherwise.
    pub(super) fn respond(
        self,
        response: Response<Body>,
        responder: &Responder,
        contents: &ReceivedContents,
        active: ActiveRequest,
    ) -> Option<Response<Body>> {
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Some(response);
        }
        let (mut head, _) = response.into_parts();
        head.status = StatusCode::OK;
        head.headers.remove(SEC_WEBSOCKET_ACCEPT);
        // If the client has gone, the end of the upgrade ends the tunnel.
        if let Ok(sender) = responder.send_response(Response::from_parts(head, ()), false) {
            let Self { receiver, upgrade } = self;
            let none = HeaderMap::new();
            let received = ReceivedContent::new(&none, receiver, MAX_TRAILERS, contents);
            let (stream, abandoned) = UpgradedStream::new(sender, received, active);
            let upgraded = Upgraded::new(BytesMut::new(), stream).abandoned_when(abandoned);
            // If the gateway does not take it, the stream is closed.
            let _ = upgrade.send(upgraded);
        }
        None
    }
}

const WEBSOCKET: &str = "websocket";
