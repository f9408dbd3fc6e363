//! The content of a request on its way to an HTTP/2 upstream.
//!
//! A task of its own sends it. What was read of it is retained, within a limit, until the response begins, so that a
//! request that the upstream refused unprocessed can be sent again with its content (every gRPC call has some).

use core::cell::{Cell, RefCell};
use core::pin::Pin;
use core::task::{Context, Poll};
use std::collections::VecDeque;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use super::super::settings::CLIENT_PAUSE;
use crate::base::body::{self, Body};

/// The state of the content of one request.
#[derive(Debug)]
pub(super) struct UploadState {
    /// `None` once the content has ended, or was taken back.
    body: RefCell<Option<Body>>,
    /// The frames that were read, for sending the request again; `None` once they are too large or not needed.
    read: RefCell<Option<Vec<Piece>>>,
    read_bytes: Cell<usize>,
    /// Whether a frame was read.
    touched: Cell<bool>,
    /// Whether all that the client has sent was read, and more is expected.
    starved: Cell<bool>,
    /// Whether the client's content ended in an error.
    failed: Cell<bool>,
    /// Whether the content was dropped: all of it was sent, or its rest never will be.
    over: Cell<bool>,
    /// Whether the response has begun.
    has_response: Cell<bool>,
    /// The time of the last frame.
    last: Cell<Option<Instant>>,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl UploadState {
    /// Creates the state of `body`, of which nothing was read.
    pub(super) fn new(body: Body) -> Self {
        let over = body.is_end_stream();
        Self {
            body: RefCell::new(Some(body)),
            read: RefCell::new(Some(Vec::new())),
            read_bytes: Cell::new(0),
            touched: Cell::new(false),
            starved: Cell::new(false),
            failed: Cell::new(false),
            over: Cell::new(over),
            has_response: Cell::new(false),
            last: Cell::new(None),
        }
    }

    /// Whether the upstream waits for the client, and not the other way round.
    pub(super) fn is_starved(&self) -> bool {
        self.starved.get() && !self.over.get()
    }

    /// Whether the upstream waits for the client, which has sent nothing for a while. `since` is the beginning of the request.
    pub(super) fn waits_long(&self, since: Instant) -> bool {
        self.is_starved() && self.progress_since(since).elapsed() >= CLIENT_PAUSE
    }

    /// Returns the time of the last frame, or `since`, the beginning of the request, if that is later.
    pub(super) fn progress_since(&self, since: Instant) -> Instant {
        self.last.get().map_or(since, |last| last.max(since))
    }

    /// Whether the client's content ended in an error.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Whether nothing more of the content will be sent.
    pub(super) fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Returns the time at which a frame was last read.
    pub(super) fn last_progress(&self) -> Option<Instant> {
        self.last.get()
    }

    /// Whether anything of the content was read.
    pub(super) fn is_touched(&self) -> bool {
        self.touched.get()
    }

    /// Forgets what was read: the response has begun, and the request will not be sent again.
    pub(super) fn response_began(&self) {
        self.has_response.set(true);
        self.read.take();
        if self.over.get() {
            self.body.take();
        }
    }

    /// Whether the response has begun.
    pub(super) fn has_response(&self) -> bool {
        self.has_response.get()
    }

    /// Takes the whole content back, for another attempt; `None` if a part of it is lost.
    pub(super) fn take_back(&self) -> Option<Body> {
        let read = self.read.take().filter(|_| !self.failed.get())?;
        let rest = self.body.take();
        if read.is_empty() {
            return Some(rest.unwrap_or_default());
        }
        Some(Body::streaming(Replay { read: read.into(), rest }))
    }

    /// Records that the content was dropped by the task that sends it.
    pub(super) fn ended(&self) {
        self.over.set(true);
        // Until the response begins, the content may be needed for another attempt.
        if self.read.borrow().is_none() {
            self.body.take();
        }
    }

    /// Whether the content has ended, or is known to be empty.
    pub(super) fn is_end_stream(&self) -> bool {
        self.body.borrow().as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// Returns the length of the content, if it is known.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.borrow().as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }

    /// Polls the next frame.
    pub(super) fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let mut slot = self.body.borrow_mut();
        let Some(body) = &mut *slot else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        self.starved.set(polled.is_pending());
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(frame))) => {
                self.touched.set(true);
                self.last.set(Some(Instant::now()));
                self.remember(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.failed.set(true);
                *slot = None;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                *slot = None;
                Poll::Ready(None)
            }
        }
    }

    fn remember(&self, frame: &Frame<Bytes>) {
        let mut read = self.read.borrow_mut();
        let Some(pieces) = &mut *read else { return };
        if let Some(data) = frame.data_ref() {
            let bytes = self.read_bytes.get() + data.len();
            self.read_bytes.set(bytes);
            if bytes > MAX_REPLAY_BYTES || pieces.len() >= MAX_REPLAY_PIECES {
                *read = None;
            } else {
                pieces.push(Piece::Data(data.clone()));
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            pieces.push(Piece::Trailers(trailers.clone()));
        }
    }
}

/// Content of which a part was read by an earlier attempt.
struct Replay {
    read: VecDeque<Piece>,
    rest: Option<Body>,
}

impl http_body::Body for Replay {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        match this.read.pop_front() {
            Some(Piece::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Piece::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None => match &mut this.rest {
                Some(rest) => Pin::new(rest).poll_frame(cx),
                None => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.read.iter().map(|piece| match piece {
            Piece::Data(data) => data.len() as u64,
            Piece::Trailers(_) => 0,
        });
        let read: u64 = read.sum();
        match &self.rest {
            None => SizeHint::with_exact(read),
            Some(rest) => match rest.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(read + rest),
                None => SizeHint::default(),
            },
        }
    }
}

/// Bytes of content that are remembered for another attempt.
const MAX_REPLAY_BYTES: usize = 64 * 1024;
/// Pieces of content that are remembered: each may keep a larger buffer alive.
const MAX_REPLAY_PIECES: usize = 16;
