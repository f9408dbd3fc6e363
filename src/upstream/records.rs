//! Where the records of a TLS connection end (RFC 8446 §5.1).
//!
//! A session does not say whether the beginning of a record waits in it for
//! the rest. Whoever wants to know that nothing is left of what a service has
//! sent follows the records' lengths as the bytes pass.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of records.
#[derive(Debug)]
pub(super) struct Records<S> {
    stream: S,
    /// How much of a record's head has passed.
    head: usize,
    /// How much of its content is to come, as far as its head has said.
    left: usize,
}

impl<S> Records<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self { stream, head: 0, left: 0 }
    }

    pub(super) const fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Whether all records that have begun have come to their ends.
    pub(super) const fn is_between(&self) -> bool {
        self.head == 0 && self.left == 0
    }

    /// Follows what was read of the stream by other means.
    pub(super) fn passed(&mut self, mut bytes: &[u8]) {
        while let [byte, rest @ ..] = bytes {
            if self.head < HEAD {
                // The last two bytes are the length.
                if self.head >= HEAD - 2 {
                    self.left = self.left << 8 | usize::from(*byte);
                }
                self.head += 1;
                bytes = rest;
            } else {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
            }
            if self.head == HEAD && self.left == 0 {
                self.head = 0;
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Records<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        this.passed(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Records<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

const HEAD: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_stream_is_between_records_where_one_has_ended(
            lengths in prop::collection::vec(prop_oneof![Just(0_usize), 1..300_usize, Just(16_640)], 1..8),
            cut in 1..400_usize,
        ) {
            let (mut bytes, mut ends) = (Vec::new(), vec![0]);
            for length in lengths {
                bytes.extend([23, 3, 3]);
                bytes.extend((length as u16).to_be_bytes());
                bytes.extend(vec![7; length]);
                ends.push(bytes.len());
            }
            let (mut records, mut at) = (Records::new(()), 0);
            for piece in bytes.chunks(cut) {
                records.passed(piece);
                at += piece.len();
                prop_assert_eq!(records.is_between(), ends.contains(&at), "after {} bytes", at);
            }
        }
    }
}
