//! A client's connection, as its requests, their bodies and its answers share it.

use core::cell::RefCell;
use core::pin::Pin;
use core::task::{Context, Poll, Waker, ready};
use std::io;
use std::rc::{Rc, Weak};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::request_head::{Head, HeadLimits, HeadParser, ParseError};
use crate::base::body;
use crate::http1::{ChunkEvent, Decoder, Framing, ReadBufferSize};

/// A stream, and what has come on it.
#[derive(Debug)]
pub(super) struct ConnectionIo<S> {
    stream: S,
    /// What has come and was not understood yet.
    read: BytesMut,
    /// What the next read of a body asks for.
    read_size: ReadBufferSize,
    heads: HeadParser,
    /// The body of the request that was read last.
    body: Decoder,
    /// What is still to be said before its client sends that body.
    interim: &'static [u8],
    /// Whether that has been said and not gone out yet.
    unflushed: bool,
    /// Whether somebody waits for more of the body.
    awaited: bool,
    /// Who does, to be told when nothing more will come.
    reader: InputBuffer,
    /// The connection itself, to be told when nobody holds the body any more.
    released: Option<Waker>,
    /// How many requests were read, or given up before their bodies had come.
    requests: u64,
    /// Whether nothing can be read any more: the body was not in its coding, or broke off.
    broken: bool,
}

/// Who waits for more of a body. Woken when the connection is gone, of which they would not hear otherwise.
#[derive(Debug, Default)]
struct InputBuffer(Option<Waker>);

impl InputBuffer {
    fn waits(&mut self, cx: &Context<'_>) {
        match &mut self.0 {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.0 = Some(cx.waker().clone()),
        }
    }
}

impl Drop for InputBuffer {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }
}

/// A connection whose socket can be reached.
pub(in crate::server) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// The socket below.
    fn socket(&self) -> &TcpStream;
}

impl<S: Socket> ConnectionIo<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            read_size: ReadBufferSize::default(),
            heads: HeadParser::default(),
            body: Decoder::new(Framing::Length(0)),
            interim: EMPTY,
            unflushed: false,
            awaited: false,
            reader: InputBuffer::default(),
            released: None,
            requests: 0,
            broken: false,
        }
    }

    /// The stream, and what was read of it beyond the last request.
    pub(super) fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.read)
    }

    /// Has `cx` woken when nobody holds the last request's body any more.
    pub(super) fn wait_for_release(&mut self, cx: &Context<'_>) {
        self.released = Some(cx.waker().clone());
    }

    /// Whether the last request was read to its end, and nothing has come beyond it.
    pub(super) fn is_idle(&self) -> bool {
        !self.broken && self.body.is_over() && self.has_no_buffered_input()
    }

    /// Whether nothing has come beyond the last request.
    pub(super) fn has_no_buffered_input(&self) -> bool {
        self.read.is_empty()
    }

    /// Reads the next request's head, past what is left of the last one's body. `None` is the end.
    pub(super) fn poll_head(
        &mut self,
        bounds: HeadLimits,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Head, ParseError>>> {
        loop {
            if !self.discard_body() {
                return Poll::Ready(None);
            }
            if self.body.is_over() && !self.read.is_empty() {
                match self.heads.take(&mut self.read, bounds) {
                    Ok(None) => {}
                    Ok(Some(head)) => {
                        self.begin(&head);
                        return Poll::Ready(Some(Ok(head)));
                    }
                    Err(unreadable) => {
                        self.broken = true;
                        return Poll::Ready(Some(Err(unreadable)));
                    }
                }
            }
            if self.read.is_empty() {
                // An idle connection holds no memory.
                (self.read, self.read_size) = (BytesMut::new(), ReadBufferSize::default());
            }
            match ready!(self.poll_some(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(None),
                Ok(_) => {}
            }
        }
    }

    fn begin(&mut self, head: &Head) {
        self.requests += 1;
        self.awaited = false;
        self.body = Decoder::new(head.framing);
        self.interim = if head.expects { CONTINUE } else { EMPTY };
    }

    /// Drops what has come of a body that nobody reads; `false` if it is not in its coding.
    fn discard_body(&mut self) -> bool {
        if !self.body.is_over() {
            // Whoever still holds it would miss what is dropped here.
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

    /// What is left of a `100 Continue` that has gone out in part: it comes before the answer.
    pub(super) fn was_interrupted(&mut self) -> &'static [u8] {
        if self.interim.len() < CONTINUE.len() { core::mem::take(&mut self.interim) } else { EMPTY }
    }

    /// The answer begins: whether another request can follow it. `held` is whether somebody may still read the body.
    pub(super) fn send_response(&mut self, held: bool) -> bool {
        // Whoever was not told to go on may send its body, or may not.
        let untold = !core::mem::take(&mut self.interim).is_empty();
        if held {
            return !self.broken && !untold;
        }
        self.discard_body() && (self.body.is_over() || (!untold && self.is_almost_complete()))
    }

    /// Whether what is left of the body is read sooner than a new connection is made.
    fn is_almost_complete(&self) -> bool {
        matches!(self.body, Decoder::Length(left) if left <= MAX_DISCARDED_BYTES)
    }

    /// The answer has ended: whether another request can follow.
    pub(super) fn next_request(&mut self) -> bool {
        self.discard_body() && (self.body.is_over() || self.is_almost_complete())
    }

    /// Whether whoever waits for an answer has gone. What they send meanwhile is kept, a piece of it, behind which
    /// nothing is seen. Who waits for more of the body finds out as well.
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

    /// Reads once, little; zero bytes is the end. Nothing is kept for it while nothing comes.
    fn poll_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        READ_BUFFER.with_borrow_mut(|room| {
            let mut some = ReadBuf::new(room);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut some))?;
            self.read.extend_from_slice(some.filled());
            Poll::Ready(Ok(some.filled().len()))
        })
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<ChunkEvent>> {
        while !self.interim.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, self.interim))?;
            self.interim = &self.interim[count..];
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
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

    /// Lets the connection end in a reset, whatever is still to be sent.
    pub(super) fn abort(&self) {
        if let Err(error) = self.stream.socket().set_zero_linger() {
            tracing::debug!(%error, "A connection cannot be reset.");
        }
    }

    /// Reads and drops what still comes, until the client has closed, too, or has sent too much: closed before,
    /// a connection may take an answer away from whoever has not read it yet (RFC 9112 §9.6).
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

/// The body of a request, read off its connection as it is asked for.
#[derive(Debug)]
pub(super) struct Incoming<S> {
    /// The connection, as long as it lives: who reads on must not keep it from being closed.
    wire: Weak<RefCell<ConnectionIo<S>>>,
    /// The request's number: the next one's body is not this one's.
    request: u64,
}

impl<S> Incoming<S> {
    /// The body of the request that was read last.
    pub(super) fn of(wire: &Rc<RefCell<ConnectionIo<S>>>) -> Self {
        Self { wire: Rc::downgrade(wire), request: wire.borrow().requests }
    }
}

impl<S> Drop for Incoming<S> {
    fn drop(&mut self) {
        if let Some(wire) = self.wire.upgrade()
            && let Ok(mut wire) = wire.try_borrow_mut()
            && let Some(waiting) = wire.released.take()
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
        let Some(wire) = self.wire.upgrade() else { return gone() };
        let wire = &mut *wire.borrow_mut();
        if wire.requests != self.request {
            return gone();
        }
        if wire.body.is_over() {
            return Poll::Ready(None);
        }
        let polled = wire.poll_part(cx);
        wire.awaited = polled.is_pending();
        if wire.awaited {
            wire.reader.waits(cx);
        }
        let part = ready!(polled);
        wire.broken |= part.is_err();
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
        self.wire.upgrade().is_some_and(|wire| {
            let wire = wire.borrow();
            wire.requests == self.request && wire.body.is_over()
        })
    }

    fn size_hint(&self) -> SizeHint {
        let Some(wire) = self.wire.upgrade() else { return SizeHint::default() };
        let wire = wire.borrow();
        match wire.body {
            Decoder::Length(left) if wire.requests == self.request => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }
}

/// The writing side of a connection whose reading side may be asked for a body meanwhile.
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
    /// What a read may bring, for all connections that wait on this thread.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; ReadBufferSize::MIN_READ_BYTES].into());
}

const EMPTY: &[u8] = b"";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
/// Bytes of a body that are read for nothing, to keep a connection.
const MAX_DISCARDED_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    #[test]
    fn what_has_gone_out_in_part_comes_before_the_answer() {
        for (written, left) in [(0, ""), (9, "100 Continue\r\n\r\n"), (25, "")] {
            let mut wire = ConnectionIo::new(Full(written));
            wire.body = Decoder::new(Framing::Length(3));
            wire.interim = CONTINUE;

            let part = wire.poll_part(&mut Context::from_waker(noop_waker_ref()));

            assert!(part.is_pending(), "the body has not come");
            assert_eq!(wire.was_interrupted(), left.as_bytes(), "{written} bytes are out");
        }
    }

    /// A connection that takes so many bytes more, and brings none.
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
