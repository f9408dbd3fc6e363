//! The bytes of an upgraded stream, both ways (RFC 9113 §8.5).

use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;
use std::sync::{Arc, Mutex};

use bytes::{Buf as _, Bytes};
use h2::{Reason, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ContentError, ReceivedContent};
use crate::base::lock::IgnorePoison;

/// An upgraded stream, with what it holds. It is reset if it is dropped before both sides have ended.
#[derive(Debug)]
pub struct UpgradedStream<T> {
    sender: Arc<Mutex<Sender>>,
    received: ReceivedContent,
    /// Bytes that were received and not read.
    unread: Bytes,
    _held: T,
}

#[derive(Debug)]
struct Sender {
    stream: SendStream<Bytes>,
    /// Whether the end was sent.
    is_shut_down: bool,
    /// Whether the peer has ended its side.
    peer_ended: bool,
}

impl<T> UpgradedStream<T> {
    /// Returns the stream, and the moment at which a peer that has ended its side resets the stream or is gone: nothing
    /// else is read that would show it. The same task must poll both, the stream first.
    pub fn new(
        stream: SendStream<Bytes>,
        received: ReceivedContent,
        held: T,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let sender = Sender { stream, is_shut_down: false, peer_ended: false };
        let sender = Arc::new(Mutex::new(sender));
        let watched = Arc::clone(&sender);
        let abandoned = poll_fn(move |cx| {
            let mut sender = watched.lock().ignore_poison();
            if sender.peer_ended { sender.stream.poll_reset(cx).map(drop) } else { Poll::Pending }
        });
        (Self { sender, received, unread: Bytes::new(), _held: held }, abandoned)
    }
}

/// Whether this is how peers end a tunnel.
fn is_cancel(error: &ContentError) -> bool {
    let ContentError::Stream(error) = error else { return false };
    matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL))
}

impl<T: Unpin> AsyncRead for UpgradedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            match ready!(self.received.poll_frame(cx)) {
                // Trailers mean nothing here.
                Some(Ok(frame)) => self.unread = frame.into_data().unwrap_or_default(),
                Some(Err(error)) if !is_cancel(&error) => {
                    return Poll::Ready(Err(io::Error::other(error)));
                }
                Some(Err(_)) | None => {
                    self.sender.lock().ignore_poison().peer_ended = true;
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: Unpin> AsyncWrite for UpgradedStream<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let stream = &mut self.sender.lock().ignore_poison().stream;
        stream.reserve_capacity(buf.len());
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = stream.capacity().min(buf.len());
        let sent = stream.send_data(Bytes::copy_from_slice(&buf[..count]), false);
        Poll::Ready(sent.map(|()| count).map_err(io::Error::other))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sender = self.sender.lock().ignore_poison();
        if sender.is_shut_down {
            return Poll::Ready(Ok(()));
        }
        sender.is_shut_down = true;
        Poll::Ready(sender.stream.send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
