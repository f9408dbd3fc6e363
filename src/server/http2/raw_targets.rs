//! Brings an HTTP/2 `:path` that a `Uri` does not hold past h2, which would refuse its stream before the gateway sees
//! a request.
//!
//! This stream reads the header blocks of a connection before h2 does (RFC 9113 §4.3, §6.2). In one with an
//! unusual path (`hpack`) it puts a placeholder of the same length in place of the path, so that h2's dynamic table
//! stays that of the client, and appends the path as a field. The name of the field is drawn at random when the process
//! starts, and never leaves the process: a client cannot send the field. `request_target` puts the path back.
//!
//! Bytes pass in the buffer of the reader. Only the beginning of a frame that has not arrived as a whole is held, and
//! the frames of a block in several until the last, up to 160 KiB; a block with an unusual path is rewritten. In a
//! longer block an unusual path ends the stream.

use core::mem::take;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::collections::HashSet;
use std::io;
use std::sync::LazyLock;

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::hpack::{HeaderBlocks, MAX_TABLE_SIZE, UnusualPath, UnusualPathInPieces};
use super::{PADDED, PREFACE_BYTES, PRIORITY};
use crate::base::random::random;
use crate::base::raw_target::MAX_TARGET_BYTES;
use crate::base::trailers::MAX_TRAILER_BYTES;
use crate::http2::frames::{
    CONTINUATION, DATA, END_STREAM, FRAME_HEADER_BYTES, HEADERS, RST_STREAM,
};

/// The name of the field that carries a path.
pub(crate) static FIELD: LazyLock<HeaderName> = LazyLock::new(|| {
    let drawn = u128::from_be_bytes(random::<16>());
    let name = HeaderName::try_from(format!("northgate-path-{drawn:032x}"));
    name.expect("letters, digits and hyphens are a name")
});

/// A stream of HTTP/2 frames from a client, with placeholders for unusual paths.
#[derive(Debug)]
pub(crate) struct RawTargets<S> {
    stream: S,
    frames: FrameRewriter,
}

impl<S> RawTargets<S> {
    /// Wraps a stream that begins with the preface.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, frames: FrameRewriter::default() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for RawTargets<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, frames } = self.get_mut();
        while buf.remaining() > 0 {
            if frames.written.has_remaining() {
                let count = frames.written.len().min(buf.remaining());
                buf.put_slice(&frames.written.split_to(count));
                break;
            }
            if frames.is_behind {
                frames.rewrite(&mut [])?;
                continue;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut *stream).poll_read(cx, buf))?;
            if buf.filled().len() == before {
                // The end of the stream, in the middle of a frame or not.
                let rest = [take(&mut frames.block.frames), take(&mut frames.held)].concat();
                if rest.is_empty() {
                    break;
                }
                frames.written.extend_from_slice(&rest);
                continue;
            }
            let passed = frames.rewrite(&mut buf.filled_mut()[before..])?;
            buf.set_filled(before + passed);
            if passed > 0 {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for RawTargets<S> {
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

/// The position among the frames of a client, and the bytes that h2 has not read yet.
#[derive(Debug)]
struct FrameRewriter {
    /// Bytes to pass as they are: the rest of the preface or of a frame.
    skip: usize,
    /// Whether the header block being read began in a frame that has passed.
    in_pieces: bool,
    /// Whether h2 is to refuse that block: a trailer section that is too long.
    refuses: bool,
    /// The last stream that a request has begun on.
    last_stream: u32,
    /// Streams whose client may still send content, unless there are very many.
    open_streams: HashSet<u32>,
    blocks: HeaderBlocks,
    /// The frames of a header block of which more are to come.
    block: HeldBlock,
    /// The beginning of a frame; all frames that follow, if `is_behind`.
    held: Vec<u8>,
    /// Whether frames wait until h2 has read what is written.
    is_behind: bool,
    /// Bytes for h2 that are not in its buffer.
    written: BytesMut,
}

impl Default for FrameRewriter {
    fn default() -> Self {
        Self {
            skip: PREFACE_BYTES,
            in_pieces: false,
            refuses: false,
            last_stream: 0,
            open_streams: HashSet::new(),
            blocks: HeaderBlocks::default(),
            block: HeldBlock::default(),
            held: Vec::new(),
            is_behind: false,
            written: BytesMut::new(),
        }
    }
}

/// A header block that has begun.
#[derive(Debug, Default)]
struct HeldBlock {
    /// Its frames, as they are.
    frames: Vec<u8>,
    /// Their fragments.
    fragments: Vec<u8>,
}

impl HeldBlock {
    /// Returns the header of its first frame; `None` if there is none.
    fn head(&self) -> Option<[u8; FRAME_HEADER_BYTES]> {
        self.frames.first_chunk().copied()
    }
}

/// The next bytes from a client.
enum Next {
    /// So many bytes pass as they are.
    Pass(usize),
    /// Other bytes take the place of so many.
    Replace(usize, Vec<u8>),
    /// More bytes are needed.
    Incomplete,
}

/// The section of a message that a header block is (RFC 9113 §8.1).
enum Section {
    Head,
    Trailers,
    /// None: the stream has ended, or may have.
    Unexpected,
}

/// The error of bytes that h2 must not see.
struct Refused;

impl From<UnusualPathInPieces> for Refused {
    fn from(UnusualPathInPieces: UnusualPathInPieces) -> Self {
        Self
    }
}

impl FrameRewriter {
    /// Rewrites bytes that were read, and returns how many of them h2 reads in place; the rest is in `held` or
    /// `written`.
    fn rewrite(&mut self, read: &mut [u8]) -> io::Result<usize> {
        self.is_behind = false;
        if self.held.is_empty() {
            return self.rewrite_from(read, true);
        }
        let mut bytes = take(&mut self.held);
        bytes.extend_from_slice(read);
        self.rewrite_from(&mut bytes, false)
    }

    fn rewrite_from(&mut self, mut bytes: &mut [u8], mut in_place: bool) -> io::Result<usize> {
        let mut passed = 0;
        while !bytes.is_empty() {
            // One byte of a block can stand for a path of the largest table.
            if self.written.len() >= MAX_WRITTEN_BYTES {
                (self.held, self.is_behind) = (bytes.to_vec(), true);
                break;
            }
            let next = self.next(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
            let taken = match next {
                Next::Pass(count) => {
                    if in_place {
                        passed += count;
                    } else {
                        self.written.extend_from_slice(&bytes[..count]);
                    }
                    count
                }
                Next::Replace(count, frames) => {
                    in_place = false;
                    self.written.extend_from_slice(&frames);
                    count
                }
                Next::Incomplete => {
                    self.held = bytes.to_vec();
                    break;
                }
            };
            bytes = &mut take(&mut bytes)[taken..];
        }
        Ok(passed)
    }

    fn next(&mut self, bytes: &mut [u8]) -> Result<Next, Refused> {
        if self.skip > 0 {
            let count = self.skip.min(bytes.len());
            self.skip -= count;
            return Ok(Next::Pass(count));
        }
        let Some(&head) = bytes.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(Next::Incomplete);
        };
        let [a, b, c, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if kind == RST_STREAM || kind == DATA && flags & END_STREAM != 0 {
            self.open_streams.remove(&stream(&head));
        }
        let is_of_block = || self.block.frames.get(5..FRAME_HEADER_BYTES) == Some(&head[5..]);
        let continues = kind == CONTINUATION && length <= MAX_FRAME_BYTES && is_of_block();
        if !continues && !self.block.frames.is_empty() {
            // h2 refuses a frame within a block.
            return self.release().map(|frames| Next::Replace(0, frames));
        }
        // h2 refuses a longer frame by its header.
        if !matches!(kind, HEADERS | CONTINUATION) || length > MAX_FRAME_BYTES {
            self.skip = FRAME_HEADER_BYTES + length;
            return self.next(bytes);
        }
        let count = FRAME_HEADER_BYTES + length;
        if bytes.len() < count {
            return Ok(Next::Incomplete);
        }
        if kind == HEADERS && flags & END_HEADERS == 0 && !self.in_pieces
            || !self.block.frames.is_empty()
        {
            return self.hold(kind, flags, &mut bytes[..count]);
        }
        let fragment = fragment(kind, flags, &mut bytes[FRAME_HEADER_BYTES..count]);
        let is_whole = kind == HEADERS && flags & END_HEADERS != 0 && !self.in_pieces;
        self.in_pieces = flags & END_HEADERS == 0;
        if !is_whole {
            self.blocks.scan(fragment)?;
            let refuses = self.refuses || self.blocks.has_too_many_fields();
            if !self.in_pieces && refuses {
                self.refuses = false;
                return Ok(Next::Replace(count, frames(&head, &with_connection_field(fragment))));
            }
            return Ok(Next::Pass(count));
        }
        let block = self.rewritten_block(&head, fragment);
        Ok(block.map_or(Next::Pass(count), |block| Next::Replace(count, frames(&head, &block))))
    }

    /// Returns what h2 reads in place of a whole block, if that is something else.
    fn rewritten_block(
        &mut self,
        head: &[u8; FRAME_HEADER_BYTES],
        block: &mut [u8],
    ) -> Option<Vec<u8>> {
        let path = self.blocks.scan_whole(block);
        match self.section(head) {
            Section::Head if self.blocks.has_too_many_fields() => Some(match path {
                Some(path) => with_connection_field(&with_placeholder(block, &path)),
                None => with_connection_field(block),
            }),
            Section::Head => path.map(|path| with_field(block, &path)),
            // h2 would drop a pseudo-header field of a trailer section, which is malformed (RFC 9113 §8.1), in silence, and
            // so what exceeds its own limit.
            Section::Trailers => {
                let refuses = self.blocks.had_pseudo_field()
                    || self.blocks.has_too_many_fields()
                    || block.len() > MAX_TRAILER_BYTES;
                refuses.then(|| match path {
                    Some(path) => with_connection_field(&with_placeholder(block, &path)),
                    None => with_connection_field(block),
                })
            }
            Section::Unexpected => path.map(|path| with_placeholder(block, &path)),
        }
    }

    /// Returns what a HEADERS frame begins, and records it.
    fn section(&mut self, head: &[u8; FRAME_HEADER_BYTES]) -> Section {
        let [_, _, _, _, flags, ..] = *head;
        let stream = stream(head);
        if stream > self.last_stream {
            self.last_stream = stream;
            if flags & END_STREAM == 0 && self.open_streams.len() < MAX_OPEN_STREAMS {
                self.open_streams.insert(stream);
            }
            Section::Head
        } else if self.open_streams.remove(&stream) {
            Section::Trailers
        } else {
            Section::Unexpected
        }
    }
}

impl FrameRewriter {
    /// Takes a frame of a block in several; rewrites them with the last.
    fn hold(&mut self, kind: u8, flags: u8, frame: &mut [u8]) -> Result<Next, Refused> {
        let count = frame.len();
        self.block.frames.extend_from_slice(frame);
        self.block.fragments.extend_from_slice(fragment(
            kind,
            flags,
            &mut frame[FRAME_HEADER_BYTES..],
        ));
        if flags & END_HEADERS == 0 {
            let is_full = self.block.frames.len() > MAX_BLOCK_BYTES;
            let passed = if is_full { self.release()? } else { Vec::new() };
            return Ok(Next::Replace(count, passed));
        }
        let HeldBlock { frames: whole, mut fragments } = take(&mut self.block);
        let (head, _) = whole.split_first_chunk().ok_or(Refused)?;
        let block = self.rewritten_block(head, &mut fragments);
        let rewritten = block.map(|block| frames(head, &block));
        Ok(Next::Replace(count, rewritten.unwrap_or(whole)))
    }

    /// Lets the held frames of a block pass, the rest of which passes as it comes.
    fn release(&mut self) -> Result<Vec<u8>, Refused> {
        if let Some(head) = self.block.head() {
            self.refuses = matches!(self.section(&head), Section::Trailers);
        }
        self.blocks.begin();
        let mut whole = take(&mut self.block).frames;
        let mut left = &mut whole[..];
        while let Some(&[a, b, c, kind, flags, ..]) = left.first_chunk::<FRAME_HEADER_BYTES>() {
            let count = FRAME_HEADER_BYTES + u32::from_be_bytes([0, a, b, c]) as usize;
            let (frame, after) = take(&mut left).split_at_mut(count);
            self.blocks.scan(fragment(kind, flags, &mut frame[FRAME_HEADER_BYTES..]))?;
            left = after;
        }
        self.in_pieces = true;
        Ok(whole)
    }
}

/// Returns the stream of a frame (RFC 9113 §4.1).
const fn stream(head: &[u8; FRAME_HEADER_BYTES]) -> u32 {
    let [.., a, b, c, d] = *head;
    u32::from_be_bytes([a, b, c, d]) & u32::MAX >> 1
}

/// Returns the part of a header block in the payload of a frame: without padding and priority (RFC 9113 §6.2).
fn fragment(kind: u8, flags: u8, mut payload: &mut [u8]) -> &mut [u8] {
    if kind == HEADERS && flags & PADDED != 0 {
        let Some((padding, rest)) = payload.split_first_mut() else { return &mut [] };
        let length = rest.len().saturating_sub((*padding).into());
        payload = &mut rest[..length];
    }
    let priority = if kind == HEADERS && flags & PRIORITY != 0 { PRIORITY_BYTES } else { 0 };
    let start = priority.min(payload.len());
    &mut payload[start..]
}

/// Returns a header block with a placeholder for the path, and the path in a field (RFC 7541 §6.2).
fn with_field(block: &[u8], path: &UnusualPath) -> Vec<u8> {
    let mut out = with_placeholder(block, path);
    out.push(NEVER_INDEXED);
    push_string(&mut out, FIELD.as_str().as_bytes());
    // A path that is too long for any `Uri` is none here.
    let value = if path.value.len() > MAX_TARGET_BYTES { &[] } else { &*path.value };
    // h2 closes a connection for a control character in a field. A space is one that no target has either.
    let is_control = |byte: u8| byte < b' ' || byte == 0x7f;
    let value = value.iter().map(|byte| if is_control(*byte) { b' ' } else { *byte });
    push_string(&mut out, &value.collect::<Bytes>());
    out
}

/// Returns a header block with a placeholder for the path.
fn with_placeholder(block: &[u8], path: &UnusualPath) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() + 2 * path.value.len());
    match &path.literal {
        Some(at) => {
            out.extend_from_slice(&block[..at.start]);
            // An entry beyond the largest table empties the table, however long it is (RFC 7541 §4.4).
            let length = if path.indexed { path.value.len().min(MAX_TABLE_SIZE) } else { 1 };
            let placeholder: Vec<u8> =
                [b'/'].into_iter().chain(core::iter::repeat(b'x')).take(length).collect();
            push_string(&mut out, &placeholder);
            out.extend_from_slice(&block[at.end..]);
        }
        None => out.extend_from_slice(block),
    }
    out
}

/// Returns a header block that h2 refuses as malformed, once it has read it: with a field of HTTP/1.1 (RFC 9113 §8.2.2).
fn with_connection_field(block: &[u8]) -> Vec<u8> {
    let mut out = block.to_vec();
    out.push(NEVER_INDEXED);
    push_string(&mut out, b"connection");
    push_string(&mut out, b"close");
    out
}

/// Appends a string literal (RFC 7541 §5.2).
fn push_string(out: &mut Vec<u8>, text: &[u8]) {
    const PREFIX: usize = 0x7f;
    if text.len() < PREFIX {
        out.push(text.len() as u8);
    } else {
        out.push(PREFIX as u8);
        let mut left = text.len() - PREFIX;
        while left >= 0x80 {
            out.push(left as u8 | 0x80);
            left >>= 7;
        }
        out.push(left as u8);
    }
    out.extend_from_slice(text);
}

/// Returns the frames of a header block, or of its last part, on the stream and with the end of the stream that `head` has.
fn frames(head: &[u8; FRAME_HEADER_BYTES], block: &[u8]) -> Vec<u8> {
    let [_, _, _, first, flags, stream @ ..] = *head;
    let mut out = Vec::with_capacity(block.len() + 2 * FRAME_HEADER_BYTES);
    let mut pieces = block.chunks(MAX_FRAME_BYTES).peekable();
    let (mut kind, mut kept_flags) = (first, if first == HEADERS { flags & END_STREAM } else { 0 });
    while let Some(piece) = pieces.next() {
        let ends = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        out.extend_from_slice(&(piece.len() as u32).to_be_bytes()[1..]);
        out.extend_from_slice(&[kind, kept_flags | ends]);
        out.extend_from_slice(&stream);
        out.extend_from_slice(piece);
        (kind, kept_flags) = (CONTINUATION, 0);
    }
    out
}

/// Checks that h2 reads the same bytes however reads split the frames of a client.
#[cfg(any(fuzzing, test))]
pub fn in_pieces(bytes: &[u8], piece: usize) {
    let read = |piece: usize| {
        let (mut frames, mut out) = (FrameRewriter::default(), Vec::new());
        for piece in bytes.chunks(piece) {
            let mut read = piece.to_vec();
            let passed = frames.rewrite(&mut read).ok()?;
            out.extend_from_slice(&read[..passed]);
            out.extend_from_slice(&frames.written.split());
            while frames.is_behind {
                frames.rewrite(&mut []).ok()?;
                out.extend_from_slice(&frames.written.split());
            }
        }
        out.extend_from_slice(&frames.block.frames);
        out.extend_from_slice(&frames.held);
        Some(out)
    };
    assert_eq!(read(piece.max(1)), read(bytes.len().max(1)));
}

/// The largest frame that h2 accepts: it announces no other size than the default (RFC 9113 §6.5.2).
const MAX_FRAME_BYTES: usize = 16_384;
const END_HEADERS: u8 = 4;
/// Open streams that are remembered: more than a client may have at a time.
const MAX_OPEN_STREAMS: usize = 4096;
/// Bytes of the priority fields of HEADERS.
const PRIORITY_BYTES: usize = 5;
/// A literal field with a name of its own that no table keeps (RFC 7541 §6.2.3).
const NEVER_INDEXED: u8 = 0x10;
/// Bytes of the frames of a header block that are held.
const MAX_BLOCK_BYTES: usize = 160 * 1024;
/// Bytes for h2 beyond which no further frame is rewritten.
const MAX_WRITTEN_BYTES: usize = 64 * 1024;
/// Bytes that the header list of a request grows by: the placeholder, and the appended field without its value.
pub(crate) const MAX_ADDED_BYTES: usize = MAX_TABLE_SIZE + 128;

#[cfg(test)]
mod tests;
