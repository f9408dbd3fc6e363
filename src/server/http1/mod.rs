//! HTTP/1.1 with clients (RFC 9112): one request after the other. Read [`Connection::run`] first.
//!
//! A head is read in one way or refused, a body is read off the connection by
//! whoever asks for it, and an answer's head goes out with the beginning of its
//! body. There is one reader of the bytes: nobody looks at them a second time.

mod connection_io;
#[cfg(any(fuzzing, test))]
pub(super) mod fuzz;
mod request_head;
mod response_head;

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Context, Poll};
use std::rc::Rc;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode, Version};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;

pub(super) use self::connection_io::Socket;
use self::connection_io::{ConnectionIo, Incoming, Writing};
use self::request_head::{Head, HeadLimits, ParseError};
use self::response_head::ResponseFraming;
use super::catch_panic;
use super::connection_timeouts::ConnectionActivity;
use crate::base::body::Body;
use crate::config::server::Server;
use crate::gateway::{Gateway, Peer, Rejection};
use crate::http1::{BodyWriter, Length, OnUpgrade, Upgraded};

/// A client's connection.
pub(super) struct Connection<S> {
    wire: Rc<RefCell<ConnectionIo<S>>>,
    peer: Rc<Peer>,
    gateway: Gateway,
    pulse: Arc<ConnectionActivity>,
    bounds: HeadLimits,
    /// Whether no further request is wanted.
    closing: Rc<Cell<bool>>,
}

/// What follows an answer.
#[derive(Debug)]
enum AfterResponse {
    /// The next request.
    Next,
    /// Nothing: the connection ends in all politeness.
    Last,
    /// Nothing: somebody has broken off.
    Cut,
    /// Another protocol, and who speaks it.
    Switch(oneshot::Sender<Upgraded>),
}

impl<S: Socket + Send + 'static> Connection<S> {
    pub(super) fn new(
        stream: S,
        peer: Rc<Peer>,
        gateway: Gateway,
        pulse: Arc<ConnectionActivity>,
        server: &Server,
        closing: Rc<Cell<bool>>,
    ) -> Self {
        let wire = Rc::new(RefCell::new(ConnectionIo::new(stream)));
        let bounds = HeadLimits { size: server.max_header_size, fields: server.max_headers };
        Self { wire, peer, gateway, pulse, bounds, closing }
    }

    /// Answers the connection's requests, until there are no more.
    pub(super) async fn run(self) {
        let mut served = false;
        while let Some(next) = self.next(served).await {
            served = true;
            let then = match next {
                Ok(head) => self.answer(head).await,
                Err(unreadable) => self.refuse(unreadable).await,
            };
            match then {
                AfterResponse::Next => {}
                AfterResponse::Last => return self.close().await,
                AfterResponse::Cut => return,
                AfterResponse::Switch(to) => return self.hand_over(to),
            }
        }
        self.close().await;
    }

    /// The head of the next request, or what came instead of one; `None` if there is to be none.
    async fn next(&self, served: bool) -> Option<Result<Head, ParseError>> {
        let mut looked_again = false;
        loop {
            let next = poll_fn(|cx| {
                let mut wire = self.wire.borrow_mut();
                let polled = wire.poll_head(self.bounds, cx).map(Some);
                if polled.is_pending() && !wire.has_no_buffered_input() {
                    self.pulse.header_started();
                }
                // Whoever has just come is waited for, and so is the rest of a head.
                let over = served && self.closing.get() && wire.has_no_buffered_input();
                if polled.is_pending() && over { Poll::Ready(None) } else { polled }
            })
            .await;
            match next {
                Some(next) => return next,
                None if looked_again => return None,
                None => {}
            }
            // What the system has taken for us is not lost: it is seen when the thread has looked for news.
            tokio::task::yield_now().await;
            looked_again = true;
        }
    }

    /// Serves one request, from its head to the last byte of its answer.
    async fn answer(&self, head: Head) -> AfterResponse {
        let _busy = self.pulse.begin();
        let Head { mut parts, persists, upgrades, trailers, .. } = head;
        let form = ResponseFraming {
            http10: parts.version == Version::HTTP_10,
            to_head: parts.method == Method::HEAD,
            trailers,
        };
        let switch = upgrades.then(|| {
            let (switch, upgrade) = OnUpgrade::new();
            parts.extensions.insert(upgrade);
            switch
        });
        let Some(response) = self.serve(Request::from_parts(parts, self.body())).await else {
            return AfterResponse::Cut;
        };
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        match (self.write(response, form, persists).await, switches) {
            (AfterResponse::Next | AfterResponse::Last, true) => {
                switch.map_or(AfterResponse::Cut, AfterResponse::Switch)
            }
            (then, _) => then,
        }
    }

    /// The body of the request whose head was just read.
    fn body(&self) -> Body {
        let incoming = Incoming::of(&self.wire);
        if http_body::Body::is_end_stream(&incoming) {
            Body::empty()
        } else {
            Body::streaming(incoming)
        }
    }

    /// What the gateway answers; `None` if the client has gone before it did.
    async fn serve(&self, request: Request<Body>) -> Option<Response<Body>> {
        let mut served = pin!(catch_panic::serve(&self.gateway, Rc::clone(&self.peer), request));
        poll_fn(|cx| match served.as_mut().poll(cx) {
            Poll::Ready(served) => Poll::Ready(Some(served)),
            Poll::Pending => self.poll_gone(cx).map(|()| None),
        })
        .await
    }

    /// Whether somebody still holds the request's body.
    fn body_is_held(&self) -> bool {
        Rc::weak_count(&self.wire) > 0
    }

    /// Waits until nobody holds the request's body any more: its answer is out, and its service reads on.
    ///
    /// The client may close once it has said all: what has come of it goes to the service all the same. The reader
    /// of the body finds out by itself if the end is missing, and the service bounds how long it waits.
    async fn released(&self) {
        poll_fn(|cx| {
            if !self.body_is_held() {
                return Poll::Ready(());
            }
            self.wire.borrow_mut().wait_for_release(cx);
            Poll::Pending
        })
        .await;
    }

    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.wire.borrow_mut().poll_closed(cx)
    }

    /// Answers what is no request.
    async fn refuse(&self, unreadable: ParseError) -> AfterResponse {
        let _busy = self.pulse.begin();
        let rejection = match unreadable {
            ParseError::Malformed => Rejection::BadRequest,
            ParseError::TooLarge => Rejection::HeadTooLarge,
            ParseError::TargetTooLong => Rejection::TargetTooLong,
        };
        let response = self.gateway.reject_unparsable(Rc::clone(&self.peer), &rejection);
        let form = ResponseFraming { http10: false, to_head: false, trailers: false };
        self.write(response, form, false).await
    }

    /// Sends an answer, and says what can follow it.
    async fn write(
        &self,
        response: Response<Body>,
        form: ResponseFraming,
        persists: bool,
    ) -> AfterResponse {
        let (head, body) = response.into_parts();
        let framing = form.framing(&head, &body);
        let mut written = WRITE_BUFFER.take();
        written.extend_from_slice(self.wire.borrow_mut().was_interrupted());
        let last = !self.wire.borrow_mut().send_response(self.body_is_held())
            || !persists
            || framing == Some(Length::UntilClose)
            || self.closing.get()
            || response_head::ends_connection(&head.headers);
        let now = || self.gateway.shared().retained.clock.now();
        response_head::with_date(self.pulse.tick(), now, |date| {
            form.write(&mut written, &head, &body, framing, last, date);
        });
        let mut sending = if let Some(length) = framing {
            BodyWriter::framed(body, length)
        } else {
            drop(body);
            BodyWriter::new(Body::empty())
        };
        if !form.trailers {
            sending = sending.without_trailers();
        }
        let until_close = framing == Some(Length::UntilClose);
        let mut unfinished = Unfinished { wire: &self.wire, resets: until_close };
        let sent = poll_fn(|cx| match sending.poll(&mut Writing(&self.wire), &mut written, cx) {
            Poll::Ready(sent) => Poll::Ready(sent.is_ok()),
            Poll::Pending => {
                unfinished.resets = until_close || !sending.waits_for_data();
                self.poll_gone(cx).map(|()| false)
            }
        })
        .await;
        written.clear();
        WRITE_BUFFER.set(written);
        drop(sending);
        unfinished.resets &= !sent;
        if until_close && sent && self.body_is_held() {
            // The end of the answer is news to a client that still sends.
            let ended = Writing(&self.wire).shutdown().await;
            if ended.is_err() {
                return AfterResponse::Cut;
            }
        }
        if !sent {
            return AfterResponse::Cut;
        }
        self.released().await;
        if last || !self.wire.borrow_mut().next_request() {
            AfterResponse::Last
        } else {
            AfterResponse::Next
        }
    }

    /// Gives the connection to whoever waits for it.
    fn hand_over(self, to: oneshot::Sender<Upgraded>) {
        // A request that switches has no body, so nobody else holds the connection.
        if let Some(wire) = Rc::into_inner(self.wire) {
            let (stream, early) = wire.into_inner().into_parts();
            // Whoever has not waited has closed it.
            let _ = to.send(Upgraded::new(early, stream));
        }
    }

    /// Ends the connection after its last answer, which may still be on its way when something else comes.
    async fn close(&self) {
        // Whoever has said all it had to say needs no more than the goodbye.
        if Writing(&self.wire).shutdown().await.is_err() || self.wire.borrow().is_idle() {
            return;
        }
        self.pulse.start_graceful_close();
        let mut left = MAX_LINGERING_BYTES;
        poll_fn(|cx| self.wire.borrow_mut().poll_lingering_close(&mut left, cx)).await;
    }
}

/// A response that is being sent. Dropped before its end, it resets the connection where a FIN would do harm: it would
/// be taken for the end of a response that ends with its connection, and behind what the client does not read it
/// would keep the system's buffers full for as long as the client likes.
struct Unfinished<'a, S: Socket> {
    wire: &'a RefCell<ConnectionIo<S>>,
    /// Whether the response ends with its connection, or the client takes nothing at the moment.
    resets: bool,
}

impl<S: Socket> Drop for Unfinished<'_, S> {
    fn drop(&mut self) {
        if self.resets
            && let Ok(wire) = self.wire.try_borrow()
        {
            wire.abort();
        }
    }
}

thread_local! {
    /// What answers are written into, one after the other.
    static WRITE_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Bytes that a client may still send when its last answer has gone.
const MAX_LINGERING_BYTES: u64 = 256 * 1024 * 1024;
