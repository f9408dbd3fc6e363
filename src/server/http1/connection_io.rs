//! Connection I/O: the stream and input buffer shared by the requests and responses of one client connection.

use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll, Waker, ready};
use std::io;
use std::rc::{Rc, Weak};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::head_limits::HeadLimits;
use super::request_head::{Head, HeadParser, RefusedHead};
use crate::base::body;
use crate::http1::{ChunkEvent, Decoder, Framing, ReadBufferSize};

/// A stream with its input buffer.
#[derive(Debug)]
pub(super) struct ConnectionIo<S> {
    stream: S,
    /// Input that was not parsed yet.
    read: BytesMut,
    /// The size of the next read of content.
    read_size: ReadBufferSize,
    heads: HeadParser,
    /// The decoder of the content of the last request.
    body: Decoder,
    /// Whether the client waits for `100 Continue` before it sends that content.
    awaits_continue: bool,
    /// Interim responses, of which the first `interim_sent` bytes were written.
    interim: Vec<u8>,
    interim_sent: usize,
    /// Whether interim responses were written but not flushed.
    unflushed: bool,
    /// Whether a reader waits for more of the content.
    awaited: bool,
    /// The waker of that reader, to be woken when the connection is gone.
    reader: BodyWaker,
    /// The waker of the connection task, for when the content is dropped.
    released: Option<Waker>,
    /// The number of requests that were read, or discarded before their content was complete.
    requests: u64,
    /// Whether reading has failed: the content was malformed, or ended early.
    broken: bool,
}

/// The waker of a reader of content. Woken when dropped with the connection, since the reader would not notice
/// otherwise.
#[derive(Debug, Default)]
struct BodyWaker(Option<Waker>);

impl BodyWaker {
    fn register(&mut self, cx: &Context<'_>) {
        match &mut self.0 {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.0 = Some(cx.waker().clone()),
        }
    }
}

impl Drop for BodyWaker {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

/// A stream with access to its TCP socket.
pub(in crate::server) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Returns the TCP socket.
    fn socket(&self) -> &TcpStream;

    /// Makes the connection end in a reset, dropping unsent data.
    fn reset_on_close(&self) {
        if let Err(error) = self.socket().set_zero_linger() {
            tracing::debug!(%error, "Could not set a connection to be reset on close.");
        }
    }
}

impl<S: Socket> ConnectionIo<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            read_size: ReadBufferSize::default(),
            heads: HeadParser::default(),
            body: Decoder::new(Framing::Length(0)),
            awaits_continue: false,
            interim: Vec::new(),
            interim_sent: 0,
            unflushed: false,
            awaited: false,
            reader: BodyWaker::default(),
            released: None,
            requests: 0,
            broken: false,
        }
    }

    /// Returns the stream, and the input after the last request.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.read)
    }

    /// Wakes `cx` when the content of the last request is dropped.
    pub(super) fn wait_for_release(&mut self, cx: &Context<'_>) {
        self.released = Some(cx.waker().clone());
    }

    /// Whether the last request was read completely, and there is no input after it.
    pub(super) fn is_idle(&self) -> bool {
        !self.broken && self.body.is_over() && self.has_no_buffered_input()
    }

    /// Whether there is no unparsed input.
    pub(super) fn has_no_buffered_input(&self) -> bool {
        self.read.is_empty()
    }

    /// Reads the next request head, after discarding the rest of the last request's content. `None` is the end.
    pub(super) fn poll_head(
        &mut self,
        bounds: HeadLimits,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Head, RefusedHead>>> {
        loop {
            if !self.discard_body() {
                return Poll::Ready(None);
            }
            if self.body.is_over() && !self.read.is_empty() {
                match self.heads.parse(&mut self.read, bounds) {
                    Ok(None) => {}
                    Ok(Some(head)) => {
                        self.start_body(&head);
                        return Poll::Ready(Some(Ok(head)));
                    }
                    Err(error) => {
                        self.broken = true;
                        return Poll::Ready(Some(Err(error)));
                    }
                }
            }
            if self.read.is_empty() {
                // An idle connection holds no buffer.
                (self.read, self.read_size) = (BytesMut::new(), ReadBufferSize::default());
            }
            match ready!(self.poll_some(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(None),
                Ok(_) => {}
            }
        }
    }

    fn start_body(&mut self, head: &Head) {
        self.requests += 1;
        self.awaited = false;
        self.body = Decoder::new(head.framing);
        self.awaits_continue = head.expects_continue;
    }

    /// Discards content in the buffer that no reader wants; `false` if it is malformed.
    fn discard_body(&mut self) -> bool {
        if !self.body.is_over() {
            // A reader that still holds the content would miss what is discarded.
            self.requests += 1;
            self.awaited = false;
        }
        while !self.broken && !self.body.is_over() {
            match self.body.take(&mut self.read) {
                Ok(ChunkEvent::Partial) => break,
                Ok(ChunkEvent::Data(_) | ChunkEvent::End(_)) => {}
                Err(_) => self.broken = true,
            }
        }
        !self.broken
    }

    /// Adds interim responses to those that are to be sent.
    pub(super) fn add_interim(&mut self, heads: &[u8]) {
        self.interim.extend_from_slice(heads);
    }

    /// Moves the interim responses, or the rest of them, to the front of the response.
    pub(super) fn take_interim(&mut self, written: &mut Vec<u8>) {
        if !self.interim.is_empty() {
            written.extend_from_slice(&self.interim[self.interim_sent..]);
            (self.interim, self.interim_sent) = (Vec::new(), 0);
        }
    }

    /// Sends interim responses.
    pub(super) fn poll_interim(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.interim_sent < self.interim.len() {
            let rest = &self.interim[self.interim_sent..];
            self.interim_sent += ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            (self.interim, self.interim_sent) = (Vec::new(), 0);
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Starts the response; returns whether another request can follow. `held` is whether a reader may still read the
    /// content.
    pub(super) fn start_response(&mut self, held: bool) -> bool {
        // A client that got no `100 Continue` may or may not send the content.
        let undecided = core::mem::take(&mut self.awaits_continue);
        if held {
            // An early response announces that the connection ends, unless little of the content is left.
            let continues = self.body.is_over() || self.is_almost_complete();
            return !self.broken && !undecided && continues;
        }
        self.discard_body() && (self.body.is_over() || (!undecided && self.is_almost_complete()))
    }

    /// Whether reading the rest of the content takes less than making a new connection.
    fn is_almost_complete(&self) -> bool {
        matches!(self.body, Decoder::Length(left) if left <= MAX_DISCARDED_BYTES)
    }

    /// Ends the response; returns whether another request can follow.
    pub(super) fn finish_response(&mut self) -> bool {
        self.discard_body() && (self.body.is_over() || self.is_almost_complete())
    }

    /// Resolves when the client has disconnected while it waits for a response. Input that arrives meanwhile is
    /// buffered up to one read; a disconnect after that goes unnoticed. A reader that waits for content notices it by
    /// itself.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.awaited {
            return Poll::Pending;
        }
        while self.read.len() < ReadBufferSize::MIN_READ_BYTES {
            match ready!(self.poll_some(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Reads once, a small piece; zero bytes is the end. The connection holds no buffer while it waits.
    fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        READ_BUFFER.with_borrow_mut(|buffer| {
            let mut filled = ReadBuf::new(buffer);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut filled))?;
            self.read.extend_from_slice(filled.filled());
            Poll::Ready(Ok(filled.filled().len()))
        })
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<ChunkEvent>> {
        if core::mem::take(&mut self.awaits_continue) {
            self.add_interim(CONTINUE);
        }
        ready!(self.poll_interim(cx))?;
        loop {
            match self.body.take(&mut self.read) {
                Ok(ChunkEvent::Partial) => {}
                Ok(part) => return Poll::Ready(Ok(part)),
                Err(_) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
            }
            if ready!(self.read_size.poll_read(&mut self.stream, &mut self.read, cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// Makes the connection end in a reset, dropping unsent data.
    pub(super) fn abort(&self) {
        self.stream.reset_on_close();
    }

    /// Reads and discards input until the client has closed, or has sent `left` bytes: if the connection closed
    /// earlier, the client might lose a response that it has not read yet (RFC 9112 §9.6).
    pub(super) fn poll_lingering_close(
        &mut self,
        left: &mut u64,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        while *left > 0 {
            self.read.clear();
            match ready!(self.poll_some(cx)) {
                Ok(0) | Err(_) => break,
                Ok(count) => *left = left.saturating_sub(count as u64),
            }
        }
        Poll::Ready(())
    }
}

/// The content of a request, read from its connection on demand.
#[derive(Debug)]
pub(super) struct Incoming<S> {
    /// The connection; weak, so that a slow reader does not keep it from being closed.
    io: Weak<RefCell<ConnectionIo<S>>>,
    /// The number of the request, which distinguishes its content from the next one's.
    request: u64,
}

impl<S> Incoming<S> {
    /// Creates the content of the last request.
    pub(super) fn of(io: &Rc<RefCell<ConnectionIo<S>>>) -> Self {
        Self { io: Rc::downgrade(io), request: io.borrow().requests }
    }
}

impl<S> Drop for Incoming<S> {
    fn drop(&mut self) {
        if let Some(io) = self.io.upgrade()
            && let Ok(mut io) = io.try_borrow_mut()
            && let Some(waiting) = io.released.take()
        {
            waiting.wake();
        }
    }
}

impl<S: Socket> http_body::Body for Incoming<S> {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let gone = || Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::NotConnected).into())));
        let Some(io) = self.io.upgrade() else { return gone() };
        let io = &mut *io.borrow_mut();
        if io.requests != self.request {
            return gone();
        }
        if io.body.is_over() {
            return Poll::Ready(None);
        }
        let polled = io.poll_part(cx);
        io.awaited = polled.is_pending();
        if io.awaited {
            io.reader.register(cx);
        }
        let part = ready!(polled);
        io.broken |= part.is_err();
        Poll::Ready(match part {
            Ok(ChunkEvent::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(ChunkEvent::End(trailers)) => {
                (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
            }
            Ok(ChunkEvent::Partial) => None,
            Err(error) => Some(Err(error.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.io.upgrade().is_some_and(|io| {
            let io = io.borrow();
            io.requests == self.request && io.body.is_over()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(io) = self.io.upgrade() else { return SizeHint::default() };
        let io = io.borrow();
        match io.body {
            Decoder::Length(left) if io.requests == self.request => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}

/// The write half of a connection whose read half may be used for content at the same time.
#[derive(Debug)]
pub(super) struct Writing<'a, S>(pub(super) &'a RefCell<ConnectionIo<S>>);

impl<S: AsyncWrite + Unpin> AsyncWrite for Writing<'_, S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_shutdown(cx)
    }
}

thread_local! {
    /// The buffer of small reads, shared by all connections of this thread.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; ReadBufferSize::MIN_READ_BYTES].into());
}

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Bytes of content that are read and discarded to keep a connection.
const MAX_DISCARDED_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    #[test]
    fn a_partly_sent_interim_response_precedes_the_response() {
        let whole = "HTTP/1.1 100 Continue\r\n\r\n";
        for (written, left) in [(0, whole), (9, "100 Continue\r\n\r\n"), (25, "")] {
            let mut io = ConnectionIo::new(Full(written));
            io.body = Decoder::new(Framing::Length(3));
            io.awaits_continue = true;

            let part = io.poll_part(&mut Context::from_waker(noop_waker_ref()));

            assert!(part.is_pending(), "the body has not come");
            let mut response = Vec::new();
            io.take_interim(&mut response);
            assert_eq!(response, left.as_bytes(), "{written} bytes are out");
        }
    }

    /// A connection that accepts a number of bytes, and provides none.
    #[derive(Debug)]
    struct Full(usize);

    impl AsyncRead for Full {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Full {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = buf.len().min(self.0);
            self.0 -= count;
            if count == 0 { Poll::Pending } else { Poll::Ready(Ok(count)) }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Socket for Full {
        fn socket(&self) -> &TcpStream {
            unreachable!("nothing is aborted here")
        }
    }
}
