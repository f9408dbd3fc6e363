//! The content that a peer sends on a stream.
//!
//! `h2` stores each DATA frame separately until it is read, and closes a connection on which too many small frames
//! wait: one slow reader would end all streams of the connection. So waiting content is gathered into one buffer per
//! stream once many small frames have arrived. The stream's flow-control window bounds it.

use core::cell::{Cell, RefCell};
use core::task::{Context, Poll, Waker, ready};
use std::sync::{Arc, Mutex, Weak};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};

use crate::base::content_length;
use crate::base::header_fields::{fields_bytes, is_trimmed};
use crate::base::lock::IgnorePoison;
use crate::base::trailers::remove_forbidden;

/// The content of a message. The peer gets flow-control window back for what is read (RFC 9113 §5.2).
#[derive(Debug)]
pub struct ReceivedContent(Arc<Mutex<Received>>);

/// The most that the trailer section of a message may have.
#[derive(Clone, Copy, Debug)]
pub struct TrailerLimits {
    /// Fields.
    pub fields: usize,
    /// Bytes of all names and values.
    pub bytes: usize,
}

/// The reason why content is not whole.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The trailer section exceeds its limits, or whitespace surrounds one of its values (RFC 9113 §8.2.1).
    #[error("the trailer section is malformed or too large")]
    Trailers,
    /// The stream or the connection ended before the content; `NO_ERROR` stands for a reset that names none.
    #[error(transparent)]
    Stream(#[from] h2::Error),
}

/// The contents of one connection that are being received. Shared by the scanner of its frames, its streams and its
/// driver.
#[derive(Debug, Default)]
pub struct ReceivedContents {
    contents: RefCell<Vec<Weak<Mutex<Received>>>>,
    /// Small frames that have arrived since content was gathered.
    small_frames: Cell<usize>,
}

impl ReceivedContents {
    /// Records a DATA frame whose payload has `length` bytes.
    pub fn frame_arrived(&self, length: usize) {
        if length < SMALL_FRAME_BYTES {
            self.small_frames.set(self.small_frames.get() + 1);
        }
    }

    /// Whether content is to be gathered before more is read from the connection.
    pub fn is_gathering_due(&self) -> bool {
        self.small_frames.get() >= MAX_SMALL_FRAMES
    }

    /// Takes what waits in `h2` into the buffer of each content, if that is due.
    pub fn gather_if_due(&self) {
        if !self.is_gathering_due() {
            return;
        }
        self.small_frames.set(0);
        self.contents.borrow_mut().retain(|content| {
            let content = content.upgrade();
            content.inspect(|content| content.lock().ignore_poison().gather()).is_some()
        });
    }

    fn add(&self, content: &Arc<Mutex<Received>>) {
        let mut contents = self.contents.borrow_mut();
        if contents.len() == contents.capacity() {
            contents.retain(|content| content.strong_count() > 0);
        }
        contents.push(Arc::downgrade(content));
    }
}

impl ReceivedContent {
    /// Returns the content that follows the header section `headers`, one of `contents`.
    pub fn new(
        headers: &HeaderMap,
        stream: RecvStream,
        limits: TrailerLimits,
        contents: &ReceivedContents,
    ) -> Self {
        let length = declared_length(headers);
        let content = Arc::new(Mutex::new(Received {
            stream,
            limits,
            gathered: BytesMut::new(),
            data_ended: false,
            failed: None,
            length,
            reader: None,
        }));
        contents.add(&content);
        Self(content)
    }

    /// Polls the next frame, as [`http_body::Body::poll_frame`].
    ///
    /// # Errors
    ///
    /// [`ContentError`].
    pub fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ContentError>>> {
        self.0.lock().ignore_poison().poll_frame(cx)
    }

    /// Whether the content has ended, without trailers to read.
    pub fn is_end_stream(&self) -> bool {
        let received = self.0.lock().ignore_poison();
        received.gathered.is_empty() && received.stream.is_end_stream()
    }

    /// Returns the number of bytes that are still to come, if it is known.
    pub fn size_hint(&self) -> SizeHint {
        let length = self.0.lock().ignore_poison().length;
        length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[derive(Debug)]
struct Received {
    stream: RecvStream,
    limits: TrailerLimits,
    /// Data that was taken from `h2` before it was read.
    gathered: BytesMut,
    /// Whether all DATA frames were taken.
    data_ended: bool,
    /// The error after the data that was gathered.
    failed: Option<h2::Error>,
    /// Bytes that are still to be read, if the peer has said how many.
    length: Option<u64>,
    /// The task that was last told to wait.
    reader: Option<Waker>,
}

impl Received {
    fn gather(&mut self) {
        // `h2` knows one task for each stream: that of the reader.
        let reader = self.reader.as_ref().unwrap_or(Waker::noop()).clone();
        let mut cx = Context::from_waker(&reader);
        while !self.data_ended && self.failed.is_none() {
            match self.stream.poll_data(&mut cx) {
                Poll::Ready(Some(Ok(data))) => self.gathered.extend_from_slice(&data),
                Poll::Ready(Some(Err(error))) => self.failed = Some(error),
                Poll::Ready(None) => self.data_ended = true,
                Poll::Pending => break,
            }
        }
    }

    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ContentError>>> {
        if !self.gathered.is_empty() {
            let data = self.gathered.split().freeze();
            return Poll::Ready(Some(Ok(self.read(data))));
        }
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        if !self.data_ended {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => return Poll::Ready(Some(Ok(self.read(data)))),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => self.data_ended = true,
                Poll::Pending => {
                    match &mut self.reader {
                        Some(reader) => reader.clone_from(cx.waker()),
                        reader => *reader = Some(cx.waker().clone()),
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Some(self.check(trailers).map(Frame::trailers)),
            Ok(None) if self.stream.is_end_stream() => None,
            // A reset: content without END_STREAM is not whole (RFC 9113 §8.1).
            Ok(None) => Some(Err(ContentError::Stream(Reason::NO_ERROR.into()))),
            Err(error) => Some(Err(error.into())),
        })
    }

    fn read(&mut self, data: Bytes) -> Frame<Bytes> {
        // It fails only if the stream has ended, which the next poll says.
        let _ = self.stream.flow_control().release_capacity(data.len());
        self.length = self.length.map(|left| left.saturating_sub(data.len() as u64));
        Frame::data(data)
    }

    fn check(&self, mut trailers: HeaderMap) -> Result<HeaderMap, ContentError> {
        if trailers.len() > self.limits.fields
            || fields_bytes(&trailers) > self.limits.bytes
            || !trailers.values().all(is_trimmed)
        {
            return Err(ContentError::Trailers);
        }
        remove_forbidden(&mut trailers);
        Ok(trailers)
    }
}

/// Returns the length of the content, if all fields agree about it. `h2` refuses content of another length.
fn declared_length(headers: &HeaderMap) -> Option<u64> {
    let fields = headers.get_all(CONTENT_LENGTH);
    let mut lengths = fields.iter().map(|field| content_length::parse(field.as_bytes()));
    let first = lengths.next()??;
    lengths.all(|length| length == Some(first)).then_some(first)
}

/// The payload below which a DATA frame costs `h2` more than its bytes.
const SMALL_FRAME_BYTES: usize = 256;
/// Small frames after which content is gathered.
const MAX_SMALL_FRAMES: usize = 8192;
/// The budget of `h2` for small frames: those after which content is gathered, and as many that arrive with the last.
pub const DATA_FRAME_BUDGET: usize = 2 * MAX_SMALL_FRAMES * SMALL_FRAME_BYTES;
