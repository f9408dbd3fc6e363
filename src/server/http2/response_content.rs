//! The content of the response on one stream, as its client grants window (RFC 9113 §5.2).

use core::future::poll_fn;
use core::pin::Pin;
use core::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use super::stall_timeout::StreamProgress;
use crate::base::body::Body;

/// Sends `content` to its end, with its trailers. If that fails the stream is reset; if the client has reset it, the rest
/// is dropped.
pub(super) async fn send(stream: SendStream<Bytes>, content: Body, progress: &StreamProgress) {
    let mut sending = Sending { stream, content, unsent: None };
    poll_fn(|cx| sending.poll(progress, cx)).await;
}

struct Sending {
    stream: SendStream<Bytes>,
    content: Body,
    /// Data for which there is no window yet, and whether the stream ends with it.
    unsent: Option<(Bytes, bool)>,
}

impl Sending {
    /// Ready once the stream has ended, well or not.
    fn poll(&mut self, progress: &StreamProgress, cx: &mut Context<'_>) -> Poll<()> {
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
            let polled = Pin::new(&mut self.content).poll_frame(cx);
            progress.frame_polled(polled.is_ready());
            let frame = match ready!(polled) {
                Some(Ok(frame)) => frame,
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
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

    /// Waits until the client grants window for the data that is unsent; `false` if the stream has ended.
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
