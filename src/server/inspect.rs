//! A connection's bytes, looked at on their way in.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Somebody who looks at what comes, piece by piece, and changes nothing.
pub(super) trait Inspect: Unpin {
    /// Looks at the bytes that come next.
    ///
    /// # Errors
    ///
    /// [`Unfit`] ends the connection.
    fn inspect(&mut self, bytes: &[u8]) -> Result<(), Unfit>;
}

/// What came is not to be read on.
#[derive(Debug)]
pub(super) struct Unfit;

/// A stream, and who looks at what comes from it.
#[derive(Debug)]
pub(super) struct Inspected<S, I> {
    stream: S,
    by: I,
}

impl<S, I> Inspected<S, I> {
    pub(super) const fn new(stream: S, by: I) -> Self {
        Self { stream, by }
    }
}

impl<S: AsyncRead + Unpin, I: Inspect> AsyncRead for Inspected<S, I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let looked = this.by.inspect(&buf.filled()[before..]);
        Poll::Ready(looked.map_err(|Unfit| io::ErrorKind::InvalidData.into()))
    }
}

impl<S: AsyncWrite + Unpin, I: Inspect> AsyncWrite for Inspected<S, I> {
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
