//! Response content in a content coding, compressed as it arrives.
//!
//! Content that has arrived is flushed as soon as more must be waited for, so that events are not held back. One call
//! compresses a bounded number of bytes, and nothing is read while the client reads nothing.

use core::cell::Cell;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::io::{self, Write};

use brotli::CompressorWriter;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName};
use http_body::{Body as _, Frame, SizeHint};
use zstd::stream::raw::CParameter;
use zstd::stream::write::Encoder as ZstdEncoder;

use crate::base::body::{self, Body};
use crate::config::route::Coding;

/// Content that is compressed.
pub(crate) struct CompressedBody {
    /// `None` once it has ended.
    content: Option<Body>,
    /// `None` once the end was written.
    encoder: Option<Encoder>,
    /// Content that was received and not compressed yet.
    rest: Bytes,
    /// Whether the encoder holds content that was not flushed.
    dirty: bool,
    trailers: Option<HeaderMap>,
    /// The error of the content, which follows what arrived before it.
    failure: Option<body::Error>,
    _permit: EncoderPermit,
}

impl CompressedBody {
    /// Compresses `content`; gives it back if this thread compresses too much already, or the encoder has no memory.
    pub(crate) fn compress(content: Body, coding: Coding) -> Result<Body, Body> {
        let (Some(permit), Ok(encoder)) = (EncoderPermit::take(), Encoder::new(coding)) else {
            return Err(content);
        };
        Ok(content.wrapped(|content| Self {
            content: Some(content),
            encoder: Some(encoder),
            rest: Bytes::new(),
            dirty: false,
            trailers: None,
            failure: None,
            _permit: permit,
        }))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let mut room = MAX_BYTES_PER_POLL;
        while let Some(encoder) = &mut self.encoder {
            if !self.rest.is_empty() {
                if room == 0 {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                let piece = self.rest.split_to(self.rest.len().min(room));
                room -= piece.len();
                encoder.write(&piece)?;
                self.dirty = true;
            } else if let Some(content) = &mut self.content {
                match Pin::new(content).poll_frame(cx) {
                    Poll::Ready(Some(Err(error))) => {
                        encoder.flush()?;
                        (self.content, self.failure) = (None, Some(error));
                    }
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) => self.rest = data,
                        Err(other) => {
                            self.trailers = other.into_trailers().ok().map(without_digests);
                            self.content = None;
                        }
                    },
                    Poll::Ready(None) => self.content = None,
                    Poll::Pending if self.dirty => {
                        encoder.flush()?;
                        self.dirty = false;
                    }
                    Poll::Pending => return Poll::Pending,
                }
            } else if let Some(error) = self.failure.take() {
                return Poll::Ready(Some(Err(error)));
            } else {
                let end = self.encoder.take().map_or_else(|| Ok(Vec::new()), Encoder::finish)?;
                return Poll::Ready(Some(Ok(Frame::data(end.into()))));
            }
            let output = encoder.take_output();
            if !output.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(output.into()))));
            }
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

impl http_body::Body for CompressedBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let polled = this.poll(cx);
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            // Without its end the content is not whole, whatever follows.
            (this.content, this.encoder) = (None, None);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Removes from trailers the fields about the bytes of the content before it was compressed.
fn without_digests(mut trailers: HeaderMap) -> HeaderMap {
    for name in DIGEST_FIELDS {
        trailers.remove(name);
    }
    trailers
}

/// The fields with a digest of the content or the representation (RFC 9530), and their forerunners.
pub(super) const DIGEST_FIELDS: [HeaderName; 4] = [
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("repr-digest"),
];

/// An encoder, which writes into memory.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<CompressorWriter<Vec<u8>>>),
    Zstd(ZstdEncoder<'static, Vec<u8>>),
}

impl Encoder {
    fn new(coding: Coding) -> io::Result<Self> {
        Ok(match coding {
            Coding::Gzip => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL))),
            Coding::Brotli => Self::Brotli(Box::new(CompressorWriter::new(
                Vec::new(),
                BROTLI_BUFFER_BYTES,
                BROTLI_QUALITY,
                WINDOW_LOG,
            ))),
            Coding::Zstd => {
                let mut encoder = ZstdEncoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
                Self::Zstd(encoder)
            }
        })
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Self::Gzip(encoder) => encoder,
            Self::Brotli(encoder) => encoder,
            Self::Zstd(encoder) => encoder,
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.writer().write_all(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer().flush()
    }

    fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        })
    }

    /// Ends the content; returns the last output.
    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

/// One of the encoders that a thread may have at once, since each takes up to a megabyte.
struct EncoderPermit;

impl EncoderPermit {
    fn take() -> Option<Self> {
        let count = ENCODERS.get();
        (count < MAX_ENCODERS_PER_THREAD).then(|| {
            ENCODERS.set(count + 1);
            Self
        })
    }
}

impl Drop for EncoderPermit {
    fn drop(&mut self) {
        ENCODERS.set(ENCODERS.get().saturating_sub(1));
    }
}

thread_local! {
    /// The encoders of this thread.
    static ENCODERS: Cell<usize> = const { Cell::new(0) };
}

const MAX_ENCODERS_PER_THREAD: usize = 256;
/// Bytes of content that one call compresses: about a millisecond.
const MAX_BYTES_PER_POLL: usize = 32 * 1024;
const GZIP_LEVEL: u32 = 5;
const BROTLI_QUALITY: u32 = 4;
const ZSTD_LEVEL: i32 = 3;
/// The window of brotli and zstd, as a power of two: 128 KiB. A larger one takes more memory on both sides.
const WINDOW_LOG: u32 = 17;
const BROTLI_BUFFER_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicUsize;
    use core::sync::atomic::Ordering::Relaxed;
    use std::io::Read;
    use std::sync::Arc;

    use futures_util::stream;
    use futures_util::task::noop_waker_ref;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn content_is_the_same_after_decoding() {
        let text: Vec<u8> = (0..300_000_u64).map(|n| b'a' + (n * n % 23) as u8).collect();
        for coding in Coding::ALL {
            for size in [1, 700, 100_000, 300_000] {
                let pieces: Vec<_> = text[..size.max(3000)]
                    .chunks(size)
                    .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
                    .collect();
                let body = Body::streaming(StreamBody::new(stream::iter(pieces)));
                let body = CompressedBody::compress(body, coding).expect("a permit");
                let coded = body.collect(1 << 20).await.expect("whole");
                assert_eq!(decode(coding, &coded), text[..size.max(3000)], "{coding:?} {size}");
            }
        }
    }

    #[test]
    fn an_event_is_flushed_before_the_next_one_is_awaited() {
        for coding in Coding::ALL {
            let ready = Arc::new(AtomicUsize::new(0));
            let body =
                CompressedBody::compress(Body::streaming(Events(Arc::clone(&ready))), coding);
            let mut body = body.expect("a permit");
            let mut cx = Context::from_waker(noop_waker_ref());
            let mut coded = Vec::new();
            for count in 1..=3 {
                ready.store(1, Relaxed);
                loop {
                    match Pin::new(&mut body).poll_frame(&mut cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            coded.extend_from_slice(&frame.into_data().expect("data"));
                        }
                        Poll::Ready(_) => panic!("the stream goes on"),
                        Poll::Pending => break,
                    }
                }
                assert_eq!(prefix(coding, &coded), "data: x\n\n".repeat(count).as_bytes());
            }
        }
    }

    #[test]
    fn encoders_are_bounded_and_returned() {
        let held: Vec<_> = core::iter::from_fn(EncoderPermit::take).collect();
        assert_eq!(held.len(), MAX_ENCODERS_PER_THREAD);
        assert!(CompressedBody::compress(Body::empty(), Coding::Gzip).is_err());
        drop(held);
        assert!(CompressedBody::compress(Body::empty(), Coding::Gzip).is_ok());
    }

    #[tokio::test]
    async fn content_that_breaks_off_has_no_end() {
        for coding in Coding::ALL {
            let frames = [Ok(Frame::data(Bytes::from("half"))), Err("broken".into())];
            let body = Body::streaming(StreamBody::new(stream::iter(frames)));
            let body = CompressedBody::compress(body, coding).expect("a permit");
            assert!(body.collect(1 << 20).await.is_err());
        }
    }

    /// As many events as are ready, and then a wait.
    struct Events(Arc<AtomicUsize>);

    impl http_body::Body for Events {
        type Data = Bytes;
        type Error = body::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
            if self.0.swap(0, Relaxed) == 0 {
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(Frame::data(Bytes::from("data: x\n\n")))))
        }
    }

    fn decode(coding: Coding, coded: &[u8]) -> Vec<u8> {
        let mut text = Vec::new();
        let read = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(coded).read_to_end(&mut text),
            Coding::Brotli => brotli::Decompressor::new(coded, 4096).read_to_end(&mut text),
            Coding::Zstd => {
                zstd::stream::read::Decoder::new(coded).expect("one").read_to_end(&mut text)
            }
        };
        read.expect("whole");
        text
    }

    /// Decodes what is there.
    fn prefix(coding: Coding, coded: &[u8]) -> Vec<u8> {
        let mut reader: Box<dyn Read> = match coding {
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(coded)),
            Coding::Brotli => Box::new(brotli::Decompressor::new(coded, 1)),
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(coded).expect("one")),
        };
        let (mut text, mut byte) = (Vec::new(), [0]);
        while let Ok(1) = reader.read(&mut byte) {
            text.push(byte[0]);
        }
        text
    }
}
