//! The content that is sent on a stream, as the peer grants window (RFC 9113 §5.2).

use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// Sends `content` to its end, with its trailers. If the content fails, the stream is reset with `failed`; if the peer has
/// reset it, the rest is dropped. `polled` is told whenever the peer has granted window, and whether there is more to send
/// at once.
pub async fn send_content<B: Body<Data = Bytes> + Unpin>(
    stream: SendStream<Bytes>,
    content: B,
    failed: Reason,
    mut polled: impl FnMut(bool),
) {
    let mut sending = Sending { stream, content, unsent: None };
    poll_fn(|cx| sending.poll(failed, &mut polled, cx)).await;
}

struct Sending<B> {
    stream: SendStream<Bytes>,
    content: B,
    /// Data for which there is no window yet, and whether the stream ends with it.
    unsent: Option<(Bytes, bool)>,
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
            if self.unsent.is_some() && !ready!(self.poll_capacity(cx)) {
                return Poll::Ready(());
            }
            if let Some((data, ends)) = self.unsent.take()
                && (self.stream.send_data(data, ends).is_err() || ends)
            {
                return Poll::Ready(());
            }
            let frame = Pin::new(&mut self.content).poll_frame(cx);
            polled(frame.is_ready());
            let frame = match ready!(frame) {
                Some(Ok(frame)) => frame,
                Some(Err(_)) => {
                    self.stream.send_reset(failed);
                    return Poll::Ready(());
                }
                None => {
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    if !data.is_empty() {
                        // Not more than one byte: h2 raises it to what is sent, and a claim that is not made use of
                        // would take window from other streams.
                        self.stream.reserve_capacity(1);
                    }
                    self.unsent = Some((data, self.content.is_end_stream()));
                }
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

    /// Waits until the peer grants window for the data that is unsent; `false` if the stream has ended.
    fn poll_capacity(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let is_empty = self.unsent.as_ref().is_none_or(|(data, _)| data.is_empty());
        while !is_empty && self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }
}
