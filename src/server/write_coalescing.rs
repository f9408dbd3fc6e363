//! Coalesces small HTTP/2 writes; HTTP/1.1 responses are coalesced by [`BodyWriter`](crate::http1::BodyWriter).
//!
//! A head and its content are two buffers. A vectored write of them costs a quarter of a microsecond, ten times as
//! much as copying a kilobyte.

use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::io;

use tokio::io::AsyncWrite;

/// Writes `pieces`: copied into one buffer if they are small, by a vectored write otherwise.
pub(super) fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    cx: &mut Context<'_>,
    pieces: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let size: usize = pieces.iter().map(|piece| piece.len()).sum();
    if size > MAX_COALESCED_BYTES || pieces.len() < 2 {
        return Pin::new(stream).poll_write_vectored(cx, pieces);
    }
    COALESCED.with_borrow_mut(|whole| {
        whole.clear();
        for piece in pieces {
            whole.extend_from_slice(piece);
        }
        Pin::new(stream).poll_write(cx, whole)
    })
}

thread_local! {
    static COALESCED: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(MAX_COALESCED_BYTES));
}

const MAX_COALESCED_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    #[test]
    fn small_pieces_are_written_at_once_and_in_order() {
        for sizes in [&[350_usize, 1024][..], &[1, 0, 4095], &[350, 8192], &[10], &[]] {
            let pieces: Vec<Vec<u8>> =
                sizes.iter().enumerate().map(|(at, &size)| vec![at as u8; size]).collect();
            let slices: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
            let mut written = Vec::new();

            let mut cx = Context::from_waker(noop_waker_ref());
            let Poll::Ready(Ok(count)) = poll_write(&mut written, &mut cx, &slices) else {
                panic!("a vector takes everything")
            };

            assert_eq!((count, written), (sizes.iter().sum(), pieces.concat()), "{sizes:?}");
        }
    }
}
