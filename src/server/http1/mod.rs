//! HTTP/1.1 server connections (RFC 9112): one request after the other. Start with [`Connection::run`].
//!
//! A head is parsed unambiguously or refused, content is read on demand, and a response head is sent together with
//! the beginning of its content. The bytes are parsed once, by one parser.

mod connection_io;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
mod head_limits;
mod interim;
mod request_head;
mod response_head;
mod upgraded_socket;

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Context, Poll};
use std::rc::Rc;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode, Version};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

pub(super) use self::connection_io::Socket;
use self::connection_io::{ConnectionIo, Incoming, Writing};
use self::head_limits::HeadLimits;
use self::interim::InterimResponses;
use self::request_head::{Head, ParseError, RefusedHead};
use self::response_head::ResponseFraming;
use self::upgraded_socket::UpgradedSocket;
use super::connection_timeouts::ConnectionActivity;
use super::{catch_panic, date};
use crate::base::body::Body;
use crate::gateway::{Gateway, Peer, Rejection};
use crate::http1::{BodyWriter, Length, OnUpgrade, Upgraded};

/// One client connection.
pub(super) struct Connection<S> {
    io: Rc<RefCell<ConnectionIo<S>>>,
    peer: Rc<Peer>,
    gateway: Gateway,
    activity: Arc<ConnectionActivity>,
    closing: Rc<Cell<Closing>>,
    /// The interim responses to the request under way.
    interim: Rc<InterimResponses>,
}

/// Whether the gateway closes the connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Closing {
    #[default]
    No,
    /// After the response under way, or else after the next one.
    AfterRequest,
    /// After the response under way, or else at once.
    Now,
}

/// The fate of the connection after a response.
#[derive(Debug)]
enum AfterResponse {
    /// Another request may follow.
    Next,
    /// Close gracefully.
    Last,
    /// Drop the connection: one side has disconnected.
    Cut,
    /// Hand the connection over to another protocol.
    Switch(oneshot::Sender<Upgraded>),
}

impl<S: Socket + Send + 'static> Connection<S> {
    pub(super) fn new(
        stream: S,
        peer: Rc<Peer>,
        gateway: Gateway,
        activity: Arc<ConnectionActivity>,
        closing: Rc<Cell<Closing>>,
    ) -> Self {
        let io = Rc::new(RefCell::new(ConnectionIo::new(stream)));
        Self { io, peer, gateway, activity, closing, interim: Rc::default() }
    }

    /// Serves the requests of the connection until it ends.
    pub(super) async fn run(self) {
        let mut served = false;
        while let Some(next) = self.next(served).await {
            served = true;
            let after = match next {
                Ok(head) => self.handle(head).await,
                Err(refused) => self.reject(refused).await,
            };
            match after {
                AfterResponse::Next => {}
                AfterResponse::Last => return self.close().await,
                AfterResponse::Cut => return,
                AfterResponse::Switch(to) => return self.hand_over(to),
            }
        }
        self.close().await;
    }

    /// Returns the limits of a head, which a reload changes for open connections too.
    fn limits(&self) -> HeadLimits {
        HeadLimits::of(self.gateway.shared().snapshot.load().server())
    }

    /// Reads the head of the next request, or one that is refused; `None` if the connection is to end.
    async fn next(&self, served: bool) -> Option<Result<Head, RefusedHead>> {
        let mut polled_again = false;
        loop {
            let next = poll_fn(|cx| {
                let mut io = self.io.borrow_mut();
                let polled = io.poll_head(self.limits(), cx).map(Some);
                if polled.is_pending() && !io.has_no_buffered_input() {
                    self.activity.header_started();
                }
                // A closing connection still waits for its first request, and for the rest of a partial head.
                let closes = self.closing.get() == Closing::Now;
                let ended = served && closes && io.has_no_buffered_input();
                if polled.is_pending() && ended { Poll::Ready(None) } else { polled }
            })
            .await;
            match next {
                Some(next) => return next,
                None if polled_again => return None,
                None => {}
            }
            // A request that the system has received already is not lost: it is seen once the thread has polled for
            // I/O.
            tokio::task::yield_now().await;
            polled_again = true;
        }
    }

    /// Serves one request, from its head to the last byte of its response.
    async fn handle(&self, head: Head) -> AfterResponse {
        let _active = self.activity.begin();
        let Head { mut parts, persists, upgrades, trailers, .. } = head;
        let framing = ResponseFraming {
            http10: parts.version == Version::HTTP_10,
            to_head: parts.method == Method::HEAD,
            trailers,
        };
        self.interim.start(!framing.http10);
        let switch = upgrades.then(|| {
            let (switch, upgrade) = OnUpgrade::new();
            parts.extensions.insert(upgrade);
            switch
        });
        let Some(response) = self.serve(Request::from_parts(parts, self.body())).await else {
            return AfterResponse::Cut;
        };
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        match (self.write(response, framing, persists).await, switches) {
            (AfterResponse::Next | AfterResponse::Last, true) => {
                switch.map_or(AfterResponse::Cut, AfterResponse::Switch)
            }
            (after, _) => after,
        }
    }

    /// Returns the content of the request whose head was just read.
    fn body(&self) -> Body {
        let incoming = Incoming::of(&self.io);
        if http_body::Body::is_end_stream(&incoming) {
            Body::empty()
        } else {
            Body::streaming(incoming)
        }
    }

    /// Calls the gateway; `None` if the client disconnects before the response.
    async fn serve(&self, request: Request<Body>) -> Option<Response<Body>> {
        let (peer, interim) = (Rc::clone(&self.peer), Rc::clone(&self.interim));
        // Boxed: it is several kilobytes large, and every idle connection would keep the room for it.
        let mut served = Box::pin(catch_panic::serve(&self.gateway, peer, Some(interim), request));
        poll_fn(|cx| match served.as_mut().poll(cx) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            Poll::Pending => {
                self.send_interim(cx);
                self.poll_closed(cx).map(|()| None)
            }
        })
        .await
    }

    /// Sends interim responses as far as the client reads; the rest precedes the response.
    fn send_interim(&self, cx: &mut Context<'_>) {
        let mut io = self.io.borrow_mut();
        if !self.interim.is_empty() {
            io.add_interim(&self.interim.take());
        }
        // If it fails, writing the response fails as well.
        let _ = io.poll_interim(cx);
    }

    /// Whether a reader still holds the request content.
    fn body_is_held(&self) -> bool {
        Rc::weak_count(&self.io) > 0
    }

    /// Waits until the request content is dropped: the response is sent, but the upstream still reads the request.
    ///
    /// The client may close after its last byte: input received until then still goes to the upstream. The reader
    /// notices by itself if the end is missing, and the upstream's timeouts limit the wait.
    async fn body_released(&self) {
        poll_fn(|cx| {
            if !self.body_is_held() {
                return Poll::Ready(());
            }
            self.io.borrow_mut().wait_for_release(cx);
            Poll::Pending
        })
        .await;
    }

    fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.io.borrow_mut().poll_closed(cx)
    }

    /// Responds to input that is not a request.
    async fn reject(&self, refused: RefusedHead) -> AfterResponse {
        let _active = self.activity.begin();
        let rejection = match refused.error {
            ParseError::Malformed => Rejection::BadRequest,
            ParseError::TooLarge => {
                let (cookies, max) = (refused.cookie_bytes, self.limits().cookies);
                Rejection::head_too_large(cookies, max, &refused.fields)
            }
            ParseError::TargetTooLong => Rejection::TargetTooLong,
        };
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = Method::from_bytes(b"UNREADABLE").unwrap_or_default();
        head.headers = refused.fields;
        let response = self.gateway.reject_head(Rc::clone(&self.peer), &head, &rejection);
        let framing = ResponseFraming { http10: false, to_head: false, trailers: false };
        self.write(response, framing, false).await
    }

    /// Sends a response, and returns what follows it.
    async fn write(
        &self,
        response: Response<Body>,
        request: ResponseFraming,
        persists: bool,
    ) -> AfterResponse {
        let (head, body) = response.into_parts();
        let framing = request.framing(&head, &body);
        let mut written = WRITE_BUFFER.take();
        if !self.interim.is_empty() {
            self.io.borrow_mut().add_interim(&self.interim.take());
        }
        self.io.borrow_mut().take_interim(&mut written);
        let last = !self.io.borrow_mut().start_response(self.body_is_held())
            || !persists
            || framing == Some(Length::UntilClose)
            || self.closing.get() != Closing::No
            || response_head::ends_connection(&head.headers);
        let now = || self.gateway.shared().retained().clock.now();
        date::with_date(self.activity.tick(), now, |date| {
            request.write(&mut written, &head, &body, framing, last, date);
        });
        let mut sending = if let Some(length) = framing {
            BodyWriter::framed(body, length)
        } else {
            drop(body);
            BodyWriter::new(Body::empty())
        };
        if !request.trailers {
            sending = sending.without_trailers();
        }
        let until_close = framing == Some(Length::UntilClose);
        let mut unfinished = UnfinishedResponse { io: &self.io, resets: until_close };
        let sent = poll_fn(|cx| match sending.poll(&mut Writing(&self.io), &mut written, cx) {
            Poll::Ready(sent) => Poll::Ready(sent.is_ok()),
            Poll::Pending => {
                unfinished.resets = until_close || !sending.waits_for_data();
                self.poll_closed(cx).map(|()| false)
            }
        })
        .await;
        written.clear();
        WRITE_BUFFER.set(written);
        drop(sending);
        unfinished.resets &= !sent;
        if until_close && sent && self.body_is_held() {
            // A client that is still sending must learn that the response has ended.
            let ended = Writing(&self.io).shutdown().await;
            if ended.is_err() {
                return AfterResponse::Cut;
            }
        }
        if !sent {
            return AfterResponse::Cut;
        }
        self.body_released().await;
        if last || !self.io.borrow_mut().finish_response() {
            AfterResponse::Last
        } else {
            AfterResponse::Next
        }
    }

    /// Hands the connection over to the task of the other protocol.
    fn hand_over(self, to: oneshot::Sender<Upgraded>) {
        // A request with an upgrade has no content, so this is the only reference to the connection.
        if let Some(io) = Rc::into_inner(self.io) {
            let (stream, early) = io.into_inner().into_parts();
            // If the receiver is gone the connection is closed.
            let _ = to.send(Upgraded::new(early, UpgradedSocket::new(stream)));
        }
    }

    /// Closes the connection after its last response, which may still be in flight when more input arrives.
    async fn close(&self) {
        // If no request is unread the connection can close at once.
        if Writing(&self.io).shutdown().await.is_err() || self.io.borrow().is_idle() {
            return;
        }
        self.activity.start_graceful_close();
        let mut left = MAX_LINGERING_BYTES;
        poll_fn(|cx| self.io.borrow_mut().poll_lingering_close(&mut left, cx)).await;
    }
}

/// A response that is being sent. Dropped before its end, it resets the connection where a FIN would do harm: the FIN
/// would look like the end of a response delimited by the close, and behind data that the client does not read it
/// would keep the system's buffers occupied for as long as the client likes.
struct UnfinishedResponse<'a, S: Socket> {
    io: &'a RefCell<ConnectionIo<S>>,
    /// Whether the response is delimited by the close, or the client currently reads nothing.
    resets: bool,
}

impl<S: Socket> Drop for UnfinishedResponse<'_, S> {
    fn drop(&mut self) {
        if self.resets
            && let Ok(io) = self.io.try_borrow()
        {
            io.abort();
        }
    }
}

thread_local! {
    /// The buffer in which response heads are written, reused by all responses of this thread.
    static WRITE_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes that a client may still send after its last response.
const MAX_LINGERING_BYTES: u64 = 256 * 1024 * 1024;
