//! A stream whose bytes are inspected as they pass, in either direction.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// An inspector of a stream's bytes. An error ends the stream.
pub trait Inspector {
    /// Inspects bytes that were read, and may change them.
    ///
    /// # Errors
    ///
    /// The error that the reader gets in place of the bytes.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<()>;

    /// Is notified that reading has failed.
    fn failed(&mut self, error: &io::Error) {
        let _ = error;
    }

    /// Whether nothing is to be read now. The task is woken at once, after it has done its other work.
    fn pauses(&self) -> bool {
        false
    }

    /// Inspects bytes that were written.
    ///
    /// # Errors
    ///
    /// The error that the writer gets.
    fn wrote(&mut self, bytes: &[u8]) -> io::Result<()> {
        let _ = bytes;
        Ok(())
    }
}

/// A stream with an inspector.
#[derive(Debug)]
pub struct InspectedStream<S, T> {
    /// The stream; bytes read from it directly are not inspected.
    pub stream: S,
    /// The inspector.
    pub inspector: T,
}

impl<S: AsyncRead + Unpin, T: Inspector + Unpin> AsyncRead for InspectedStream<S, T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.inspector.pauses() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))
            .inspect_err(|error| this.inspector.failed(error))?;
        Poll::Ready(this.inspector.read(&mut buf.filled_mut()[before..]))
    }
}

impl<S: AsyncWrite + Unpin, T: Inspector + Unpin> AsyncWrite for InspectedStream<S, T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, buf))?;
        Poll::Ready(this.inspector.wrote(&buf[..written]).map(|()| written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, bufs))?;
        let mut left = written;
        for buf in bufs {
            let count = left.min(buf.len());
            this.inspector.wrote(&buf[..count])?;
            left -= count;
        }
        Poll::Ready(Ok(written))
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[derive(Default)]
    struct Both {
        read: Vec<u8>,
        wrote: Vec<u8>,
    }

    impl Inspector for Both {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
            self.read.extend_from_slice(bytes);
            bytes.make_ascii_uppercase();
            if self.read.ends_with(b"!") { Err(io::ErrorKind::InvalidData.into()) } else { Ok(()) }
        }

        fn wrote(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.wrote.extend_from_slice(bytes);
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_tap_sees_each_transferred_byte_once() {
        let (near, mut far) = duplex(4);
        let mut tapped = InspectedStream { stream: near, inspector: Both::default() };

        assert_eq!(tapped.write(b"one-and-more").await.unwrap(), 4);
        assert_eq!(tapped.inspector.wrote, b"one-");
        let mut room = [0; 4];
        far.read_exact(&mut room).await.unwrap();
        let pieces = [io::IoSlice::new(b"a"), io::IoSlice::new(b"bcd"), io::IoSlice::new(b"ef")];
        let count = tapped.write_vectored(&pieces).await.unwrap();
        assert_eq!(tapped.inspector.wrote, b"one-abcdef"[..4 + count]);

        far.write_all(b"got").await.unwrap();
        let mut room = *b"x___";
        assert_eq!(tapped.read(&mut room[1..]).await.unwrap(), 3);
        assert_eq!((&room, &tapped.inspector.read[..]), (b"xGOT", &b"got"[..]));
        far.write_all(b"!").await.unwrap();
        assert!(tapped.read(&mut room).await.is_err());
    }
}
