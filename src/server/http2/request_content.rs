//! The content of the request of one stream.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use http::header::{CONTENT_LENGTH, EXPECT};
use http::request::Parts;
use http_body::{Frame, SizeHint};

use super::responder::Responder;
use crate::base::body::{self, Body};
use crate::base::content_length;
use crate::server::connection_timeouts::ActiveRequest;

/// The content of a request, which keeps its connection active until it ends: the response may end earlier.
///
/// The client gets flow-control window back for what is read.
pub(super) struct ReceivedContent {
    stream: RecvStream,
    /// Whether all DATA frames were read.
    data_ended: bool,
    /// Bytes that are still to come, if the client has said so.
    length: Option<u64>,
    /// Where `100 Continue` goes once the content is wanted.
    awaits_continue: Option<Rc<Responder>>,
    _active: ActiveRequest,
}

impl ReceivedContent {
    /// Returns the content that follows the head of a request.
    pub(super) fn body(
        head: &Parts,
        stream: RecvStream,
        responder: &Rc<Responder>,
        active: impl FnOnce() -> ActiveRequest,
    ) -> Body {
        if stream.is_end_stream() {
            return Body::empty();
        }
        let expected = head.headers.get(EXPECT);
        let expects = expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(CONTINUE));
        Body::streaming(Self {
            stream,
            data_ended: false,
            length: declared_length(head),
            awaits_continue: expects.then(|| Rc::clone(responder)),
            _active: active(),
        })
    }
}

impl http_body::Body for ReceivedContent {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        if let Some(responder) = this.awaits_continue.take() {
            responder.send_continue();
        }
        if !this.data_ended {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails only if the stream has ended, which the next poll says.
                    let _ = this.stream.flow_control().release_capacity(data.len());
                    this.length = this.length.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => this.data_ended = true,
            }
        }
        Poll::Ready(match ready!(this.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) if this.stream.is_end_stream() => None,
            // A reset: content without END_STREAM is not whole (RFC 9113 §8.1).
            Ok(None) => Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
            Err(error) => Some(Err(error.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Returns the length of the content, if all fields agree about it. `h2` refuses content of another length.
fn declared_length(head: &Parts) -> Option<u64> {
    let fields = head.headers.get_all(CONTENT_LENGTH);
    let mut lengths = fields.iter().map(|field| content_length::parse(field.as_bytes()));
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then_some(first)
}

const CONTINUE: &[u8] = b"100-continue";
