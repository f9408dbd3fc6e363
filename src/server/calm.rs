//! HTTP/2 frames that ask for work and bring nothing (RFC 9113 §10.5; CVE-2019-9512, -9515, -9518).
//!
//! A PING or SETTINGS costs its sender a few bytes and us an answer; PRIORITY, empty DATA and unknown types are
//! read for nothing. The library below answers them as fast as they come, without end. Here a connection may send
//! so many at once and so many a second, far more than clients that measure their line do, and then it is over.
//!
//! Requests, resets, CONTINUATION and header bytes are bounded by the library. `WINDOW_UPDATE` is answered by nothing,
//! and a fast download brings very many.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// A connection that ends in a flood.
#[derive(Debug)]
pub(super) struct Calm<S> {
    stream: S,
    frames: Frames,
}

impl<S> Calm<S> {
    /// A connection that begins `now`, with the preface.
    pub(super) fn new(stream: S, now: Instant) -> Self {
        Self { stream, frames: Frames::new(now) }
    }
}

/// More frames that bring nothing than anybody needs.
#[derive(Debug, Eq, PartialEq)]
struct Flood;

/// Where in the frames the next byte belongs, and how many more may bring nothing.
#[derive(Debug)]
struct Frames {
    /// Bytes to step over: what is left of the preface or of a payload.
    skip: usize,
    /// A frame's head that was cut between two reads.
    head: [u8; HEAD],
    have: usize,
    allowance: u32,
    refilled: Instant,
}

impl Frames {
    fn new(now: Instant) -> Self {
        Self { skip: PREFACE, head: [0; HEAD], have: 0, allowance: AT_ONCE, refilled: now }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (HEAD - self.have).min(bytes.len());
            self.head[self.have..self.have + wanted].copy_from_slice(&bytes[..wanted]);
            self.have += wanted;
            bytes = &bytes[wanted..];
            if self.have == HEAD {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                if brings_nothing(kind, flags, self.skip) {
                    self.spend()?;
                }
            }
        }
        Ok(())
    }

    fn spend(&mut self) -> Result<(), Flood> {
        if self.allowance == 0 {
            let seconds = self.refilled.elapsed().as_secs();
            if seconds == 0 {
                return Err(Flood);
            }
            self.refilled = Instant::now();
            let earned = seconds.saturating_mul(A_SECOND.into());
            self.allowance = u32::try_from(earned).unwrap_or(AT_ONCE).min(AT_ONCE);
        }
        self.allowance -= 1;
        Ok(())
    }
}

const fn brings_nothing(kind: u8, flags: u8, length: usize) -> bool {
    match kind {
        DATA if flags & END_STREAM != 0 => false,
        // All that a short one holds may be padding.
        DATA => length == 0 || (flags & PADDED != 0 && length <= MOST_PADDING),
        HEADERS | RST_STREAM | PUSH_PROMISE | GOAWAY | WINDOW_UPDATE | CONTINUATION => false,
        // PRIORITY, SETTINGS, PING, and types that nobody knows.
        _ => true,
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Calm<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let taken = this.frames.take(&buf.filled()[before..]);
        Poll::Ready(taken.map_err(|Flood| io::ErrorKind::InvalidData.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Calm<S> {
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

/// Frames that bring nothing: so many may come at once.
const AT_ONCE: u32 = 10_000;
/// So many more every second.
const A_SECOND: u32 = 1_000;

/// Length of the client's connection preface (RFC 9113 §3.4).
const PREFACE: usize = 24;
/// Length of a frame's head (RFC 9113 §4.1).
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const PADDED: u8 = 8;
/// Padding and its length (RFC 9113 §6.1).
const MOST_PADDING: usize = 256;

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const PING: u8 = 6;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_what_brings_nothing_is_over_soon() {
        for (kind, flags, payload) in [
            (PING, 0, 8),
            (4, 0, 6),
            (2, 0, 5),
            (DATA, 0, 0),
            (DATA, PADDED, 1),
            (DATA, PADDED, 256),
            (0x55, 0, 0),
            (0xff, 0, 100),
        ] {
            let mut frames = after_preface();
            let frame = frame(kind, flags, payload);
            let mut taken = 0;
            while taken <= AT_ONCE && frames.take(&frame).is_ok() {
                taken += 1;
            }
            assert_eq!(taken, AT_ONCE, "{kind} {flags} {payload}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_brings_something_is_never_too_much() {
        let mut frames = after_preface();
        let whole: Vec<u8> = [
            frame(HEADERS, 5, 30),
            frame(DATA, 0, 1),
            frame(DATA, PADDED, 257),
            frame(DATA, END_STREAM, 0),
            frame(WINDOW_UPDATE, 0, 4),
        ]
        .concat();

        for _ in 0..AT_ONCE * 2 {
            assert_eq!(frames.take(&whole), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_measures_its_line_goes_on_for_ever() {
        let mut frames = after_preface();
        let pings = frame(PING, 0, 8).repeat(900);

        for _ in 0..100 {
            assert_eq!(frames.take(&pings), Ok(()));
            advance(Duration::from_secs(1)).await;
        }
    }

    proptest! {
        #[test]
        fn however_it_is_cut_it_is_counted_alike(kinds in proptest::collection::vec(0_u8..12, 1..40), piece in 1_usize..40) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let _within = runtime.enter();
            let bytes: Vec<u8> = kinds.iter().flat_map(|kind| frame(*kind, 0, usize::from(*kind) * 3)).collect();
            let (mut whole, mut cut) = (after_preface(), after_preface());
            let _ = whole.take(&bytes);
            for piece in bytes.chunks(piece) {
                let _ = cut.take(piece);
            }
            prop_assert_eq!((whole.allowance, whole.skip, whole.have), (cut.allowance, cut.skip, cut.have));
        }
    }

    fn after_preface() -> Frames {
        let mut frames = Frames::new(Instant::now());
        assert_eq!(frames.take(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Ok(()));
        frames
    }

    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let mut frame = (length as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(vec![7; length]);
        frame
    }
}
