//! The content that is sent on a stream, as the peer grants window (RFC 9113 §5.2).

use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

/// Sends `content` to its end, with its trailers, and returns once the peer has granted window for all of it. If the
/// content fails, the stream is reset with `failed`; if the peer has reset it, the rest is dropped. `polled` is
/// notified whenever the peer has granted window, and whether there is more to send at once.
pub async fn send_content<B: Body<Data = Bytes> + Unpin>(
    stream: SendStream<Bytes>,
    content: B,
    failed: Reason,
    mut polled: impl FnMut(bool),
) {
    let content = JoinedContent::new(content);
    let mut sending = Sending { stream, content, unsent: None, fails: false };
    poll_fn(|cx| sending.poll(failed, &mut polled, cx)).await;
}

struct Sending<B: Body> {
    stream: SendStream<Bytes>,
    content: JoinedContent<B>,
    /// Data that was not sent yet, and whether the stream ends with it.
    unsent: Option<(Bytes, bool)>,
    /// Whether the content has failed.
    fails: bool,
}

impl<B: Body<Data = Bytes> + Unpin> Sending<B> {
    /// Ready once the stream has ended, well or not.
    fn poll(
        &mut self,
        failed: Reason,
        polled: &mut impl FnMut(bool),
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            while let Some((data, ends)) = self.unsent.take() {
                match self.send(data, ends, cx) {
                    Poll::Ready(Sent::All) => {}
                    Poll::Ready(Sent::Part) => polled(true),
                    Poll::Ready(Sent::Ended) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.fails {
                self.stream.send_reset(failed);
                return Poll::Ready(());
            }
            let frame = self.content.poll_frame(cx);
            polled(frame.is_ready());
            let frame = match ready!(frame) {
                Some(Ok(frame)) => frame,
                Some(Err(_)) => {
                    // A reset discards what was sent and has not left: the connection has its turn before.
                    self.fails = true;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                None => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            };
            match frame.into_data() {
                Ok(data) => self.unsent = Some((data, self.content.is_end_stream())),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        let _ = self.stream.send_trailers(trailers);
                        return Poll::Ready(());
                    }
                }
            }
        }
    }

    /// Sends as much of `data` as there is window for; the rest is unsent. `h2` would take all of it at once, but the
    /// stream would be thought to have ended while its peer has yet to grant window.
    fn send(&mut self, mut data: Bytes, ends: bool, cx: &mut Context<'_>) -> Poll<Sent> {
        let mut capacity = self.stream.capacity();
        if capacity < data.len() {
            self.stream.reserve_capacity(data.len());
            capacity = self.stream.capacity();
            while capacity == 0 {
                match self.stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => capacity = self.stream.capacity(),
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Sent::Ended),
                    Poll::Pending => {
                        self.unsent = Some((data, ends));
                        return Poll::Pending;
                    }
                }
            }
        }
        let part = data.split_to(capacity.min(data.len()));
        let is_all = data.is_empty();
        if !is_all {
            self.unsent = Some((data, ends));
        }
        Poll::Ready(match self.stream.send_data(part, is_all && ends) {
            Ok(()) if !is_all => Sent::Part,
            Ok(()) if !ends => Sent::All,
            Ok(()) | Err(_) => Sent::Ended,
        })
    }
}

/// Content whose small pieces are joined where several are there at once: a peer may close a connection on which too many
/// small frames wait to be read, with the streams of others.
struct JoinedContent<B: Body> {
    content: B,
    /// The result that follows the data that was joined.
    next: Option<Polled<B>>,
}

type Polled<B> = Option<Result<Frame<Bytes>, <B as Body>::Error>>;

impl<B: Body<Data = Bytes> + Unpin> JoinedContent<B> {
    const fn new(content: B) -> Self {
        Self { content, next: None }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_none() && self.content.is_end_stream()
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Polled<B>> {
        if let Some(next) = self.next.take() {
            return Poll::Ready(next);
        }
        let polled = ready!(Pin::new(&mut self.content).poll_frame(cx));
        let first = match polled.map(|polled| polled.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => data,
            Some(Ok(Err(frame))) => return Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        if first.len() >= SMALL_PIECE_BYTES {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let mut joined = None;
        while !self.content.is_end_stream() {
            let data = match Pin::new(&mut self.content).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) if frame.is_data() => {
                    frame.into_data().unwrap_or_default()
                }
                Poll::Ready(next) => {
                    self.next = Some(next);
                    break;
                }
                Poll::Pending => break,
            };
            let buffer = joined.get_or_insert_with(|| BytesMut::from(&*first));
            buffer.extend_from_slice(&data);
            if buffer.len() >= MAX_JOINED_BYTES {
                break;
            }
        }
        let data = joined.map_or(first, BytesMut::freeze);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

/// Pieces from this size on are sent as they are.
const SMALL_PIECE_BYTES: usize = 1024;
/// Bytes up to which pieces are joined.
const MAX_JOINED_BYTES: usize = 16 * 1024;

/// The outcome of sending data.
enum Sent {
    All,
    /// The rest is unsent.
    Part,
    /// The stream ended with it, or had ended before.
    Ended,
}
