//! Adaptive sizes of reads.

use core::pin::pin;
use core::task::{Context, Poll, ready};
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// The size of a connection's next read; grows with the amount received.
#[derive(Clone, Copy, Debug)]
pub struct ReadBufferSize(usize);

impl ReadBufferSize {
    /// The initial size of a read.
    pub const MIN_READ_BYTES: usize = 8 * 1024;
    const MAX_READ_BYTES: usize = 64 * 1024;

    /// Reads once into `read`; zero bytes is the end of the stream.
    ///
    /// # Errors
    ///
    /// The error of the connection.
    pub fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        read: &mut BytesMut,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        read.reserve(self.0);
        let room = read.capacity() - read.len();
        let count = ready!(pin!(stream.read_buf(read)).poll(cx))?;
        if count == room && self.0 < Self::MAX_READ_BYTES {
            self.0 *= 2;
        }
        Poll::Ready(Ok(count))
    }
}

impl Default for ReadBufferSize {
    fn default() -> Self {
        Self(Self::MIN_READ_BYTES)
    }
}
