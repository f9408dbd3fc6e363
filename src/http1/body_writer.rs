//! A message on its way: its head, then its body as that comes from the other side.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io::IoSlice;
use std::io::Write as _;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName};
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;

use super::is_allowed_trailer;
use crate::base::body::{Body, Error, PollCut};
use crate::base::encoded_fields::write_field_line;

/// What is still to be sent.
///
/// The head is whatever stands in the write buffer when it begins.
#[derive(Debug)]
pub struct BodyWriter {
    /// The rest of the body; `None` once all of it was read.
    body: Option<Body>,
    length: Length,
    /// How much is still to come of it, if it is known.
    left: Length,
    /// What stood behind the head of a connection that took nothing of it.
    gathered: Vec<u8>,
    /// How much of the write buffer has gone out.
    written: usize,
    /// The piece of the body that goes out behind the write buffer.
    piece: Bytes,
    /// What goes out behind the piece: the line end that closes a chunk.
    tail: &'static [u8],
    /// Bytes gone out since the beginning.
    progress: u64,
    touched: bool,
    /// How much is gathered in the write buffer before it goes out.
    room: usize,
    /// Whether nothing goes out because the body has nothing more yet.
    starved: bool,
    /// Whether the body broke off, or is not as long as it said.
    cut_short: bool,
    /// What may end the message while its reader takes nothing.
    cut: Option<Rc<dyn PollCut>>,
    /// Whether who reads takes trailers.
    trailers: bool,
    state: WriteState,
}

/// How the end of a body that is sent is told (RFC 9112 §6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Length {
    /// So many bytes, or so many more.
    Exact(u64),
    /// Nobody knows before the end.
    Chunked,
    /// Nobody knows, and who reads knows no chunks: the connection ends with it.
    UntilClose,
}

impl Length {
    /// As `body` says of itself.
    pub fn of(body: &Body) -> Self {
        body.size_hint().exact().map_or(Self::Chunked, Self::Exact)
    }

    /// Appends the field that tells it.
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
    /// The other side stopped reading before the end.
    Broken,
}

/// Why no more is sent.
#[derive(Clone, Copy, Debug)]
pub enum WriteError {
    /// The body broke off, or is not as long as it said.
    Body,
    /// Whoever reads takes no more.
    Stream,
}

impl BodyWriter {
    /// Sends `body`, framed as it says of itself.
    pub fn new(body: Body) -> Self {
        let length = Length::of(&body);
        Self::framed(body, length)
    }

    /// Sends `body`, framed so.
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

    /// The same without the fields behind it, for who has not said that they would be read (RFC 9110 §6.5.1).
    #[must_use]
    pub const fn without_trailers(mut self) -> Self {
        self.trailers = false;
        self
    }

    /// How the end of the body is told.
    pub const fn length(&self) -> Length {
        self.length
    }

    /// Bytes sent so far.
    pub const fn progress(&self) -> u64 {
        self.progress
    }

    /// Whether nothing is left to send, for good or bad.
    pub fn is_done(&self) -> bool {
        self.state != WriteState::Sending
    }

    /// Whether all that has come of the body has gone out, and more is to come.
    pub const fn waits_for_data(&self) -> bool {
        self.starved
    }

    /// Whether the other side stopped reading before the end.
    pub fn has_failed(&self) -> bool {
        self.state == WriteState::Broken
    }

    /// The message as it is sent on another connection behind another head: if nothing has gone out, or if nothing of
    /// its body was read. `write` is the buffer, of which the first `head` bytes are the head.
    #[must_use]
    pub fn anew(mut self, write: &[u8], head: usize) -> Option<Self> {
        if self.cut_short {
            return None;
        }
        if self.progress > 0 {
            return (!self.touched).then(|| Self::new(self.body.unwrap_or_default()));
        }
        self.gathered = write.get(head..)?.to_vec();
        self.state = WriteState::Sending;
        Some(self)
    }

    /// Puts in line, behind the head, what a connection before has not taken.
    pub fn resume(&mut self, write: &mut Vec<u8>) {
        write.append(&mut self.gathered);
    }

    /// Sends what can be sent now; ready when all has gone out. `write` is the same buffer each time.
    ///
    /// # Errors
    ///
    /// Why the message is not whole.
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
                // What has come before is sent if it can be sent at once; the message is lost either way.
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

    /// Puts in line what there is of the body, small pieces side by side: a system call for each would cost more than
    /// all else. Returns whether the body has nothing more yet; then what there is goes out at once.
    ///
    /// So much and no more: whoever does not read is sent nothing more. The first pieces go out with the head.
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

    /// Puts the next frame in line.
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
            // A chunk of no length would be the last one.
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
        // The body may know that nothing follows: do not ask it again.
        if self.left == Length::Exact(0) {
            self.body = None;
        }
        Ok(())
    }

    /// Puts a piece in line. To gather two pieces takes the system ten times as long as to lay a kilobyte
    /// beside the head.
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

    /// Writes out the buffer, the piece and its tail, all in one call where the system takes it.
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

/// Bytes that go out beside what is written already.
const MAX_COALESCED_PART_BYTES: usize = 4 * 1024;
/// Bytes that are gathered of small pieces before they go out.
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
    fn a_body_that_is_not_as_long_as_it_said_is_broken() {
        for length in [2, 4] {
            let mut sending =
                BodyWriter::framed(body([Ok(Frame::data("abc".into()))]), Length::Exact(length));
            let polled = poll(&mut sending, &mut Vec::new(), &mut Vec::new());
            assert!(matches!(polled, Poll::Ready(Err(WriteError::Body))), "{length}");
        }
    }

    #[test]
    fn trailers_go_to_whoever_reads_them() {
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
    fn a_message_is_sent_anew_only_if_nothing_of_it_is_lost() {
        let pieces = || ["ab", "cd"].map(|piece| Ok(Frame::data(Bytes::from(piece))));
        let begun = |body, room: usize| {
            let mut sending = BodyWriter::new(body);
            let mut write = b"head ".to_vec();
            let mut out = vec![0; room];
            let mut stream = std::io::Cursor::new(&mut out[..]);
            assert!(poll(&mut sending, &mut stream, &mut write).is_ready(), "it takes {room}");
            sending.anew(&write, 5)
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

    /// However often it is asked to go on, and however small the pieces are.
    #[tokio::test]
    async fn whoever_reads_nothing_is_kept_one_piece_for() {
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
