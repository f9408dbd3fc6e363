//! The observer of a response's content on its way to the client, which records the exchange when it ends.

use core::task::Poll;
use std::borrow::Cow;

use http_body::Body as _;

use super::{CLIENT_CLOSED, Exchange};
use crate::base::body::{self, Body};
use crate::base::watched_body::{Polled, Watch};
use crate::gateway::proxy::call_deadline::DeadlineExceeded;
use crate::gateway::proxy::stream_guard::{StreamGuard, TerminationReason};
use crate::gateway::response::grpc_refusal::code_of_failure;
use crate::gateway::response::rejection::Rejection;
use crate::upstream::UpstreamError;

/// The observer of a response's content, with the exchange that it ends.
pub(super) struct ResponseRecorder {
    pub(super) status: u16,
    /// Bytes of content sent so far.
    pub(super) sent: u64,
    pub(super) ended: bool,
    /// Whether a failure becomes the status of a gRPC call in trailers.
    pub(super) ends_in_status: bool,
    /// `None` once the body was dropped.
    pub(super) exchange: Option<Box<Exchange>>,
}

impl ResponseRecorder {
    /// Records that the response was aborted.
    fn aborted(&mut self, error: &body::Error) {
        self.ended = true;
        let Some(exchange) = &mut self.exchange else { return };
        let termination = error.downcast_ref::<TerminationReason>();
        // A client that disconnects while its request is forwarded is no fault of the upstream.
        let is_client = error.downcast_ref() == Some(&UpstreamError::Client);
        let refused = exchange.received.is_refused().then(|| exchange.received.rejection());
        let gone = is_client && refused.is_none();
        let is_overdue = error.is::<DeadlineExceeded>();
        if self.ends_in_status {
            exchange.grpc_status = code_of_failure(error, refused);
        }
        exchange.error = match termination {
            Some(reason) => Some(reason.name()),
            None if gone => None,
            None if is_client => {
                exchange.content_refused();
                exchange.error
            }
            None if is_overdue => Some(Rejection::DeadlineExceeded.name()),
            None => Some("upstream-failed"),
        };
        if gone {
            self.status = CLIENT_CLOSED;
        } else if is_overdue {
            exchange.outcome.cause = Some(Cow::Borrowed(OVERDUE));
        } else if let Some(failure) = error.downcast_ref::<UpstreamError>() {
            exchange.outcome.cause = Some(failure.cause());
        }
    }
}

impl Watch for ResponseRecorder {
    fn polled(&mut self, polled: &Polled, body: &Body) {
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.ended |= body.is_end_stream();
                if let Some(trailers) = frame.trailers_ref()
                    && let Some(exchange) = &mut self.exchange
                {
                    exchange.call_ended(trailers);
                }
            }
            Poll::Ready(Some(Err(error))) => self.aborted(error),
            Poll::Ready(None) => self.ended = true,
            Poll::Pending => {}
        }
    }

    fn dropped(&mut self, body: &Body) {
        let Some(mut exchange) = self.exchange.take() else { return };
        let mut status = self.status;
        if !self.ended && !body.is_end_stream() {
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

/// The cause of a response that the deadline of its call ended.
const OVERDUE: &str = "the deadline of the call passed during its response";
