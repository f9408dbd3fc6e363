//! The content of a response on its way to the client, which records its exchange when it ends.

use core::pin::Pin;
use core::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::{CLIENT_CLOSED, Exchange};
use crate::base::body::{self, Body};
use crate::gateway::proxy::stream_guard::{StreamGuard, TerminationReason};
use crate::upstream::UpstreamError;

/// The content of a response, with the exchange that it ends.
pub(super) struct RecordedBody {
    pub(super) body: Body,
    pub(super) status: u16,
    /// Bytes of content sent so far.
    pub(super) sent: u64,
    pub(super) ended: bool,
    /// `None` once the body was dropped.
    pub(super) exchange: Option<Box<Exchange>>,
}

impl RecordedBody {
    /// Records that the response was aborted.
    fn aborted(&mut self, error: &body::Error) {
        self.ended = true;
        let Some(exchange) = &mut self.exchange else { return };
        let termination = error.downcast_ref::<TerminationReason>();
        // A client that disconnects while its request is forwarded is no fault of the upstream.
        let is_client = error.downcast_ref() == Some(&UpstreamError::Client);
        let gone = is_client && !exchange.received.is_refused();
        exchange.error = match termination {
            Some(reason) => Some(reason.name()),
            None if gone => None,
            None if is_client => Some(exchange.body_failed().name()),
            None => Some("upstream-failed"),
        };
        if gone {
            self.status = CLIENT_CLOSED;
        } else if let Some(failure) = error.downcast_ref::<UpstreamError>() {
            exchange.outcome.cause = Some(failure.cause());
        }
    }
}

impl http_body::Body for RecordedBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                this.ended |= this.body.is_end_stream();
            }
            Poll::Ready(Some(Err(error))) => this.aborted(error),
            Poll::Ready(None) => this.ended = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RecordedBody {
    fn drop(&mut self) {
        let Some(mut exchange) = self.exchange.take() else { return };
        let mut status = self.status;
        if !self.ended && !self.body.is_end_stream() {
            // Content that was dropped before its end: the gateway ended the stream of a client that did not read, or
            // the client disconnected.
            match exchange.stream_guard.as_ref().and_then(StreamGuard::reason) {
                Some(reason) => exchange.error = Some(reason.name()),
                None => status = CLIENT_CLOSED,
            }
        }
        exchange.response_ended(status, self.sent);
    }
}
