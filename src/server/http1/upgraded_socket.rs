//! The socket of an upgraded connection.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection_io::Socket;

/// Closes with a reset if the client reads nothing at that moment: a FIN would wait behind data in the system's buffers
/// for as long as the client likes.
pub(super) struct UpgradedSocket<S: Socket> {
    stream: S,
    /// Whether the client did not take the data of the last write.
    is_blocked: bool,
}

impl<S: Socket> UpgradedSocket<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self { stream, is_blocked: false }
    }
}

impl<S: Socket> AsyncRead for UpgradedSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: Socket> AsyncWrite for UpgradedSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.is_blocked = written.is_pending();
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        // Without TLS there is nothing to flush, whether the client reads or not.
        this.is_blocked |= flushed.is_pending();
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S: Socket> Drop for UpgradedSocket<S> {
    fn drop(&mut self) {
        if self.is_blocked {
            self.stream.reset_on_close();
        }
    }
}
