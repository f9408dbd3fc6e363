//! WebSockets over HTTP/2 (RFC 8441): an extended CONNECT is served as the opening handshake of HTTP/1.1.
//!
//! So authentication, limits, the rules about origins, and the upstream see the handshake that they know. The key,
//! which HTTP/2 does without, is the gateway's own.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade as OnHyperUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::base::body::Body;
use crate::base::random::random;
use crate::gateway::UnknownProtocol;
use crate::http1::{OnUpgrade, Upgraded};
use crate::server::connection_timeouts::{ActiveRequest, ConnectionActivity};

/// A stream that becomes a WebSocket if the response permits it.
pub(in crate::server) struct WebSocketStream {
    stream: OnHyperUpgrade,
    sender: oneshot::Sender<Upgraded>,
}

impl WebSocketStream {
    /// Turns an extended CONNECT for a WebSocket into the handshake of HTTP/1.1. One for another protocol is marked,
    /// and refused by the gateway.
    pub(in crate::server) fn of<B>(request: &mut Request<B>) -> Option<Self> {
        let protocol = request.extensions_mut().remove::<Protocol>()?;
        if !protocol.as_str().eq_ignore_ascii_case(WEBSOCKET) {
            request.extensions_mut().insert(UnknownProtocol);
            return None;
        }
        let stream = hyper::upgrade::on(&mut *request);
        *request.method_mut() = Method::GET;
        let key = STANDARD.encode(random::<16>());
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
        // Base64 is always a field value.
        if let Ok(key) = HeaderValue::try_from(key) {
            headers.insert(SEC_WEBSOCKET_KEY, key);
        }
        let (sender, upgrade) = OnUpgrade::new();
        request.extensions_mut().insert(upgrade);
        Some(Self { stream, sender })
    }

    /// Returns the response of HTTP/2 for that of HTTP/1.1: 200 opens the WebSocket (RFC 8441 §5).
    pub(in crate::server) fn respond(
        self,
        mut response: Response<Body>,
        activity: &Arc<ConnectionActivity>,
    ) -> Response<Body> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Self { stream, sender } = self;
            let active = activity.begin();
            spawn_local(async move {
                // If the stream is reset before, the sender is dropped, which ends the tunnel.
                if let Ok(stream) = stream.await {
                    let stream = ActiveStream { stream: TokioIo::new(stream), _active: active };
                    // If the receiver is gone the stream is closed.
                    let _ = sender.send(Upgraded::new(BytesMut::new(), stream));
                }
            });
            *response.status_mut() = StatusCode::OK;
            for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
                response.headers_mut().remove(name);
            }
            return response.map(|_| Body::empty());
        }
        if response.status().is_success() {
            // To the client any success would open the WebSocket that the upstream has not opened.
            let mut refusal = Response::new(Body::empty());
            *refusal.status_mut() = StatusCode::BAD_GATEWAY;
            return refusal;
        }
        response
    }
}

/// An upgraded stream, which keeps its connection active.
struct ActiveStream<S> {
    stream: S,
    _active: ActiveRequest,
}

impl<S: AsyncRead + Unpin> AsyncRead for ActiveStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ActiveStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

const WEBSOCKET: &str = "websocket";
