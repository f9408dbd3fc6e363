//! The content of the request of one stream.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use http::header::EXPECT;
use http::request::Parts;
use http_body::{Frame, SizeHint};

use super::responder::Responder;
use crate::base::body::{self, Body};
use crate::base::trailers::{MAX_TRAILER_BYTES, MAX_TRAILER_FIELDS};
use crate::http2::{ReceivedContent, ReceivedContents, TrailerLimits};
use crate::server::connection_timeouts::ActiveRequest;

/// The content of a request, which keeps its connection active until it ends: the response may end earlier.
pub(super) struct Http2RequestBody {
    received: ReceivedContent,
    /// The responder that sends `100 Continue` once the content is wanted.
    awaits_continue: Option<Rc<Responder>>,
    _active: ActiveRequest,
}

impl Http2RequestBody {
    /// Returns the content that follows the head of a request.
    pub(super) fn body(
        head: &Parts,
        stream: RecvStream,
        responder: &Rc<Responder>,
        contents: &ReceivedContents,
        active: impl FnOnce() -> ActiveRequest,
    ) -> Body {
        if stream.is_end_stream() {
            return Body::empty();
        }
        let expected = head.headers.get(EXPECT);
        let expects = expected.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(CONTINUE));
        Body::streaming(Self {
            received: ReceivedContent::new(&head.headers, stream, MAX_TRAILERS, contents),
            awaits_continue: expects.then(|| Rc::clone(responder)),
            _active: active(),
        })
    }
}

impl http_body::Body for Http2RequestBody {
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
        this.received.poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.received.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.received.size_hint()
    }
}

/// The limits of a trailer section, as in HTTP/1.1.
pub(super) const MAX_TRAILERS: TrailerLimits =
    TrailerLimits { fields: MAX_TRAILER_FIELDS, bytes: MAX_TRAILER_BYTES };
const CONTINUE: &[u8] = b"100-continue";
