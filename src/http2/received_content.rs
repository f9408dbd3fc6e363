//! The content that a peer sends on a stream.

use core::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};

use crate::base::content_length;

/// The content of a message. The peer gets flow-control window back for what is read (RFC 9113 §5.2).
#[derive(Debug)]
pub struct ReceivedContent {
    stream: RecvStream,
    /// Whether all DATA frames were read.
    data_ended: bool,
    /// Bytes that are still to come, if the peer has said so.
    length: Option<u64>,
}

impl ReceivedContent {
    /// Returns the content that follows the header section `headers`.
    pub fn new(headers: &HeaderMap, stream: RecvStream) -> Self {
        Self { stream, data_ended: false, length: declared_length(headers) }
    }

    /// Polls the next frame, as [`http_body::Body::poll_frame`].
    ///
    /// # Errors
    ///
    /// The error of a stream or connection that ended before the content; `NO_ERROR` for a reset that names none.
    pub fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails only if the stream has ended, which the next poll says.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.length = self.length.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(None) if self.stream.is_end_stream() => None,
            // A reset: content without END_STREAM is not whole (RFC 9113 §8.1).
            Ok(None) => Some(Err(Reason::NO_ERROR.into())),
            Err(error) => Some(Err(error)),
        })
    }

    /// Whether the content has ended, without trailers to read.
    pub fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    /// Returns the number of bytes that are still to come, if it is known.
    pub fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Returns the length of the content, if all fields agree about it. `h2` refuses content of another length.
fn declared_length(headers: &HeaderMap) -> Option<u64> {
    let fields = headers.get_all(CONTENT_LENGTH);
    let mut lengths = fields.iter().map(|field| content_length::parse(field.as_bytes()));
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then_some(first)
}
