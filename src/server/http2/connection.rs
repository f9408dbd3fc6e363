//! One HTTP/2 connection (RFC 9113): its handshake, and a task for each of its streams. `h2` speaks the protocol.

use core::future::Future;
use core::mem;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::rc::Rc;

use bytes::Bytes;
use h2::server::{self, Builder, Handshake};
use tokio::io::{AsyncRead, AsyncWrite};

use super::stream::StreamService;

/// Serves a connection to its end.
pub(in crate::server) struct Connection<S> {
    state: State<S>,
    service: Rc<StreamService>,
}

enum State<S> {
    Handshake { handshake: Handshake<S, Bytes>, closes: bool },
    Serving(server::Connection<S, Bytes>),
    Ended,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(in crate::server) fn new(builder: &Builder, stream: S, service: StreamService) -> Self {
        let handshake = builder.handshake(stream);
        Self { state: State::Handshake { handshake, closes: false }, service: Rc::new(service) }
    }

    /// Announces the end of the connection (GOAWAY); the streams that have begun are served.
    pub(in crate::server) fn close(&mut self) {
        match &mut self.state {
            State::Handshake { closes, .. } => *closes = true,
            State::Serving(connection) => connection.graceful_shutdown(),
            State::Ended => {}
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Connection<S> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Handshake { handshake, closes } => {
                    let closes = *closes;
                    let Ok(mut connection) = ready!(Pin::new(handshake).poll(cx)) else { break };
                    if closes {
                        connection.graceful_shutdown();
                    }
                    this.state = State::Serving(connection);
                }
                // An error of the connection was counted when it was sent to the client.
                State::Serving(connection) => {
                    let accepted = connection.poll_accept(cx);
                    this.service.contents.gather_if_due();
                    if let Some(reason) = this.service.flood.take() {
                        connection.abrupt_shutdown(reason);
                        continue;
                    }
                    match ready!(accepted) {
                        Some(Ok((request, response))) => this.service.begin(request, response),
                        Some(Err(_)) | None => break,
                    }
                }
                State::Ended => break,
            }
        }
        drop(mem::replace(&mut this.state, State::Ended));
        Poll::Ready(())
    }
}
