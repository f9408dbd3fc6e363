//! Writes a body with its framing, after a head that is in the write buffer.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io::IoSlice;
use std::io::Write as _;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;

use crate::base::body::{Body, Error, PollCut};
use crate::base::encoded_fields::write_field_line;
use crate::base::trailers::is_allowed_trailer;

/// The state of a message that is being written.
///
/// The head is the content of the write buffer at the start.
#[derive(Debug)]
pub struct BodyWriter {
    /// The rest of the body; `None` once it was read to its end.
    body: Option<Body>,
    length: Length,
    /// The remaining length of the body, if known.
    left: Length,
    /// The bytes that followed the head on an earlier connection, which took none of them.
    gathered: Vec<u8>,
    /// The number of bytes of the write buffer that were written.
    written: usize,
    /// The piece of the body that follows the write buffer.
    piece: Bytes,
    /// The bytes that follow the piece: the line end of a chunk.
    tail: &'static [u8],
    /// Bytes written since the start.
    progress: u64,
    touched: bool,
    /// The number of bytes that are gathered in the write buffer before it is written.
    room: usize,
    /// Whether writing waits for more of the body.
    starved: bool,
    /// Whether the body ended early, or has not its announced length.
    cut_short: bool,
    /// A condition that ends the message while its reader reads nothing.
    cut: Option<Rc<dyn PollCut>>,
    /// Whether the recipient accepts trailers.
    trailers: bool,
    state: WriteState,
}

/// The framing of a body that is sent (RFC 9112 §6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Length {
    /// `Content-Length`: the number of (remaining) bytes.
    Exact(u64),
    /// Unknown length, in the chunked coding.
    Chunked,
    /// Unknown length, for a recipient without the chunked coding: the body ends with the connection.
    UntilClose,
}

impl Length {
    /// Returns the framing for `body`.
    pub fn of(body: &Body) -> Self {
        body.size_hint().exact().map_or(Self::Chunked, Self::Exact)
    }

    /// Appends the header field for this framing.
    pub fn write(self, head: &mut Vec<u8>) {
        match self {
            Self::Exact(length) => {
                head.extend_from_slice(b"content-length: ");
                head.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
                head.extend_from_slice(LINE_END);
            }
            Self::Chunked => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Self::UntilClose => {}
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum WriteState {
    Sending,
    Done,
    /// The recipient stopped reading before the end.
    Broken,
}

/// The reason why a message was not written completely.
#[derive(Clone, Copy, Debug)]
pub enum WriteError {
    /// The body ended early, or has not its announced length.
    Body,
    /// The recipient reads no more.
    Stream,
}

impl BodyWriter {
    /// Writes `body` with the framing that fits it.
    pub fn new(body: Body) -> Self {
        let length = Length::of(&body);
        Self::framed(body, length)
    }

    /// Writes `body` with this framing.
    pub fn framed(body: Body, length: Length) -> Self {
        let cut = body.cut();
        let body = (length != Length::Exact(0)).then_some(body);
        let (piece, tail) = (Bytes::new(), EMPTY);
        Self {
            body,
            length,
            left: length,
            gathered: Vec::new(),
            written: 0,
            piece,
            tail,
            progress: 0,
            touched: false,
            room: 0,
            starved: false,
            cut_short: false,
            cut,
            trailers: true,
            state: WriteState::Sending,
        }
    }

    /// Returns the body, if nothing of it was read.
    ///
    /// # Errors
    ///
    /// The writer itself, if a part of the body was read.
    pub fn into_untouched(self: Box<Self>) -> Result<Body, Box<Self>> {
        let whole = !self.touched && self.gathered.is_empty() && !self.cut_short;
        if whole { Ok(self.body.unwrap_or_default()) } else { Err(self) }
    }

    /// Drops trailers, for a recipient that has not announced to accept them (RFC 9110 §6.5.1).
    #[must_use]
    pub const fn without_trailers(mut self) -> Self {
        self.trailers = false;
        self
    }

    /// Returns the framing.
    pub const fn length(&self) -> Length {
        self.length
    }

    /// Returns the number of bytes written so far.
    pub const fn progress(&self) -> u64 {
        self.progress
    }

    /// Returns the number of bytes that the next write offers to the stream; `write` is the write buffer.
    pub fn offered(&self, write: &[u8]) -> usize {
        write.len() - self.written + self.piece.len() + self.tail.len()
    }

    /// Whether writing has ended, successfully or not.
    pub fn is_done(&self) -> bool {
        self.state != WriteState::Sending
    }

    /// Whether all that arrived of the body is written, and more is expected.
    pub const fn waits_for_data(&self) -> bool {
        self.starved
    }

    /// Whether the recipient stopped reading before the end.
    pub fn has_failed(&self) -> bool {
        self.state == WriteState::Broken
    }

    /// Returns the message for writing to another connection behind another head: if nothing may have arrived (`sent` is
    /// false), or if nothing of its body was read. The first `head` bytes of `write` are the head.
    #[must_use]
    pub fn for_another_connection(
        mut self: Box<Self>,
        write: &[u8],
        head: usize,
        sent: bool,
    ) -> Option<Box<Self>> {
        if self.cut_short {
            return None;
        }
        if sent {
            return (!self.touched).then(|| Box::new(Self::new(self.body.unwrap_or_default())));
        }
        self.gathered = write.get(head..)?.to_vec();
        self.state = WriteState::Sending;
        Some(self)
    }

    /// Appends to the head what an earlier connection has not taken.
    pub fn resume(&mut self, write: &mut Vec<u8>) {
        write.append(&mut self.gathered);
    }

    /// Writes what can be written now; ready when everything is written. `write` is the same buffer in each call.
    ///
    /// # Errors
    ///
    /// The reason why the message is incomplete.
    pub fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        write: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        match self.state {
            WriteState::Sending => {}
            WriteState::Done => return Poll::Ready(Ok(())),
            WriteState::Broken => return Poll::Ready(Err(WriteError::Stream)),
        }
        self.starved = false;
        loop {
            let starved = self.coalesce(write, cx);
            let flushed = self.poll_flush(stream, write, cx);
            if self.cut_short {
                // Writes what arrived before the error if that is possible at once; the message is lost in any case.
                return Poll::Ready(Err(WriteError::Body));
            }
            if flushed.is_pending()
                && self.cut.as_ref().is_some_and(|cut| cut.poll_cut(cx).is_ready())
            {
                (self.cut_short, self.body) = (true, None);
                return Poll::Ready(Err(WriteError::Body));
            }
            if ready!(flushed).is_err() {
                self.state = WriteState::Broken;
                return Poll::Ready(Err(WriteError::Stream));
            }
            if starved {
                self.starved = true;
                return Poll::Pending;
            }
            if self.body.is_none() {
                self.state = WriteState::Done;
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Gathers the available pieces of the body, since a system call for each small one would dominate the
    /// cost. Returns whether the body has nothing more yet; then everything gathered is written at once.
    ///
    /// Bounded, so that a recipient that reads nothing costs no more memory. The first pieces go out with the head.
    fn coalesce(&mut self, write: &mut Vec<u8>, cx: &mut Context<'_>) -> bool {
        if self.written > 0 {
            return false;
        }
        if !self.touched {
            self.room = write.len() + MAX_COALESCED_BYTES;
        }
        while let Some(body) = &mut self.body
            && self.piece.is_empty()
            && self.tail.is_empty()
            && write.len() < self.room
        {
            self.touched = true;
            match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => {
                    if self.stage(frame, write).is_err() {
                        (self.cut_short, self.body) = (true, None);
                    }
                }
                Poll::Pending => return true,
            }
        }
        false
    }

    /// Stages the next frame.
    fn stage(
        &mut self,
        frame: Option<Result<Frame<Bytes>, Error>>,
        write: &mut Vec<u8>,
    ) -> Result<(), WriteError> {
        let frame = frame.transpose().map_err(|_| WriteError::Body)?;
        match (frame.map(Frame::into_data), &mut self.left) {
            (Some(Ok(data)), Length::Exact(left)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(WriteError::Body)?;
                self.put(data, EMPTY, write);
            }
            // An empty chunk would be the last one.
            (Some(Ok(data)), Length::Chunked) if data.is_empty() => {}
            (Some(Ok(data)), Length::Chunked) => {
                write!(write, "{:x}\r\n", data.len()).map_err(|_| WriteError::Body)?;
                self.put(data, LINE_END, write);
            }
            (Some(Ok(data)), Length::UntilClose) => self.put(data, EMPTY, write),
            (None, Length::Exact(0) | Length::UntilClose) => self.body = None,
            (None, Length::Exact(_)) => return Err(WriteError::Body),
            (None, Length::Chunked) => self.end(write, &HeaderMap::new()),
            (Some(Err(frame)), Length::Chunked) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                self.end(write, &trailers);
            }
            (Some(Err(_)), Length::Exact(_) | Length::UntilClose) => {}
        }
        // The body may know that it has ended: it must not be polled again.
        if self.left == Length::Exact(0) {
            self.body = None;
        }
        Ok(())
    }

    /// Stages a piece. A vectored write of two pieces costs ten times as much as copying a kilobyte
    /// behind the head.
    fn put(&mut self, data: Bytes, tail: &'static [u8], write: &mut Vec<u8>) {
        if data.len() <= MAX_COALESCED_PART_BYTES {
            write.extend_from_slice(&data);
            write.extend_from_slice(tail);
        } else {
            (self.piece, self.tail) = (data, tail);
        }
    }

    fn end(&mut self, write: &mut Vec<u8>, trailers: &HeaderMap) {
        self.body = None;
        write.extend_from_slice(b"0\r\n");
        let wanted = |name: &HeaderName| self.trailers && is_allowed_trailer(name);
        for (name, value) in trailers.iter().filter(|(name, _)| wanted(name)) {
            write_field_line(write, name, value);
        }
        write.extend_from_slice(b"\r\n");
    }

    /// Writes the buffer, the piece and its tail, in one call where possible.
    fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        write: &mut Vec<u8>,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        loop {
            let buffer = &write[self.written..];
            if buffer.len() + self.piece.len() + self.tail.len() == 0 {
                break;
            }
            let parts = [IoSlice::new(buffer), IoSlice::new(&self.piece), IoSlice::new(self.tail)];
            let count = if self.piece.is_empty() && self.tail.is_empty() {
                ready!(Pin::new(&mut *stream).poll_write(cx, buffer))?
            } else {
                ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &parts))?
            };
            if count == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            self.progress += count as u64;
            let of_buffer = count.min(buffer.len());
            let of_piece = (count - of_buffer).min(self.piece.len());
            self.written += of_buffer;
            self.piece.advance(of_piece);
            self.tail = &self.tail[count - of_buffer - of_piece..];
        }
        write.clear();
        (self.written, self.room) = (0, MAX_COALESCED_BYTES);
        Pin::new(stream).poll_flush(cx)
    }
}

/// The size in bytes up to which a piece is copied after earlier ones.
const MAX_COALESCED_PART_BYTES: usize = 4 * 1024;
/// The number of bytes of small pieces that are gathered before they are written.
const MAX_COALESCED_BYTES: usize = 16 * 1024;
const EMPTY: &[u8] = b"";
const LINE_END: &[u8] = b"\r\n";

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn a_body_is_framed_as_its_length_says() {
        let pieces = || ["ab", "", "cde"].map(|piece| Ok(Frame::data(Bytes::from(piece))));
        for (length, sent) in [
            (Length::Exact(5), "abcde"),
            (Length::Chunked, "2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"),
            (Length::UntilClose, "abcde"),
        ] {
            let mut sending = BodyWriter::framed(body(pieces()), length);
            let (mut out, mut write) = (Vec::new(), b"head ".to_vec());

            assert!(matches!(poll(&mut sending, &mut out, &mut write), Poll::Ready(Ok(()))));
            assert_eq!(String::from_utf8(out).expect("text"), format!("head {sent}"));
        }
    }

    #[test]
    fn a_body_without_its_announced_length_is_an_error() {
        for length in [2, 4] {
            let mut sending =
                BodyWriter::framed(body([Ok(Frame::data("abc".into()))]), Length::Exact(length));
            let polled = poll(&mut sending, &mut Vec::new(), &mut Vec::new());
            assert!(matches!(polled, Poll::Ready(Err(WriteError::Body))), "{length}");
        }
    }

    #[test]
    fn trailers_are_sent_only_to_a_recipient_that_accepts_them() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("7"));
        trailers.insert("set-cookie", http::HeaderValue::from_static("a=b"));
        for (wanted, sent) in [(true, "0\r\nx-sum: 7\r\n\r\n"), (false, "0\r\n\r\n")] {
            let mut sending =
                BodyWriter::framed(body([Ok(Frame::trailers(trailers.clone()))]), Length::Chunked);
            if !wanted {
                sending = sending.without_trailers();
            }
            let mut out = Vec::new();
            assert!(poll(&mut sending, &mut out, &mut Vec::new()).is_ready());
            assert_eq!(String::from_utf8(out).expect("text"), sent);
        }
    }

    #[test]
    fn a_message_is_sent_again_only_if_none_of_it_is_lost() {
        let pieces = || ["ab", "cd"].map(|piece| Ok(Frame::data(Bytes::from(piece))));
        let begun = |body, room: usize| {
            let mut sending = BodyWriter::new(body);
            let mut write = b"head ".to_vec();
            let mut out = vec![0; room];
            let mut stream = std::io::Cursor::new(&mut out[..]);
            assert!(poll(&mut sending, &mut stream, &mut write).is_ready(), "it takes {room}");
            {
                let sent = sending.progress() > 0;
                Box::new(sending).for_another_connection(&write, 5, sent)
            }
        };

        for room in [1, 5, 8] {
            assert!(begun(body(pieces()), room).is_none(), "{room} bytes are out");
        }
        assert!(begun(Body::empty(), 2).is_some(), "there is no body to be lost");
        let mut anew = begun(body(pieces()), 0).expect("nothing is out");
        let (mut out, mut write) = (Vec::new(), b"another ".to_vec());
        anew.resume(&mut write);
        assert!(matches!(poll(&mut anew, &mut out, &mut write), Poll::Ready(Ok(()))));
        assert_eq!(
            String::from_utf8(out).expect("text"),
            "another 2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"
        );
    }

    /// Independent of the number of polls and the size of the pieces.
    #[tokio::test]
    async fn a_recipient_that_reads_nothing_costs_one_piece_of_memory() {
        let endless =
            futures_util::stream::repeat_with(|| Ok(Frame::data(vec![b'x'; 4000].into())));
        let mut sending =
            BodyWriter::new(Body::streaming(http_body_util::StreamBody::new(endless)));
        let (mut ours, mut theirs) = tokio::io::duplex(1000);
        let mut write = b"head".to_vec();

        for _ in 0..100 {
            assert!(poll(&mut sending, &mut ours, &mut write).is_pending());
            assert!(
                write.len() < MAX_COALESCED_BYTES + 2 * MAX_COALESCED_PART_BYTES,
                "{} bytes wait",
                write.len()
            );
        }
        let mut read = vec![0; 100_000];
        let reading = theirs.read_exact(&mut read);
        let sent = core::future::poll_fn(|cx| sending.poll(&mut ours, &mut write, cx));
        tokio::select! {
            _ = sent => panic!("it has no end"),
            read = reading => assert!(read.is_ok(), "it goes on when it is read"),
        }
    }

    fn poll<S: AsyncWrite + Unpin>(
        sending: &mut BodyWriter,
        stream: &mut S,
        write: &mut Vec<u8>,
    ) -> Poll<Result<(), WriteError>> {
        sending.poll(stream, write, &mut Context::from_waker(noop_waker_ref()))
    }

    fn body(frames: impl IntoIterator<Item = Result<Frame<Bytes>, Error>>) -> Body {
        let frames: Vec<_> = frames.into_iter().collect();
        Body::streaming(http_body_util::StreamBody::new(futures_util::stream::iter(frames)))
    }
}
