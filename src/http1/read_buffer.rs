//! Reading as much as there is.

use core::pin::pin;
use core::task::{Context, Poll, ready};
use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How much the next read of a connection asks for; grows with what comes.
#[derive(Clone, Copy, Debug)]
pub struct ReadBufferSize(usize);

impl ReadBufferSize {
    /// What a connection begins with.
    pub const MIN_READ_BYTES: usize = 8 * 1024;
    const MAX_READ_BYTES: usize = 64 * 1024;

    /// Reads once into `read`; zero bytes is the end.
    ///
    /// # Errors
    ///
    /// The connection's.
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
