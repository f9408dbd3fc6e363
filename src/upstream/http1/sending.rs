//! A request on its way: the head, then the body as it comes from the client.

use core::pin::Pin;
use core::task::{Context, Poll, ready};
use std::io::IoSlice;
use std::io::Write as _;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use tokio::io::AsyncWrite;

use super::{Connection, content};
use crate::base::body::{Body, Error};
use crate::base::written::write_line;

/// What is still to be sent.
#[derive(Debug)]
pub(super) struct Sending {
    /// The rest of the body; `None` once all of it was read.
    body: Option<Body>,
    length: Length,
    /// How much of the connection's write buffer has gone out.
    written: usize,
    /// The piece of the body that goes out behind the write buffer.
    piece: Bytes,
    /// What goes out behind the piece: the line end that closes a chunk.
    tail: &'static [u8],
    /// Bytes gone out since the beginning.
    progress: u64,
    touched: bool,
    state: State,
}

/// How the end of a request's body is told (RFC 9112 §6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Length {
    /// So many bytes, or so many more.
    Exact(u64),
    /// Nobody knows before the end.
    Chunked,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Sending,
    Done,
    /// The service stopped reading before the end.
    Broken,
}

/// Why no more is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Broken {
    /// The client's body broke off, or is not as long as it said.
    Client,
    /// The service takes no more; it may have answered all the same.
    Service,
}

impl Sending {
    pub(super) fn new(body: Body) -> Self {
        let length = body.size_hint().exact().map_or(Length::Chunked, Length::Exact);
        let body = (length != Length::Exact(0)).then_some(body);
        let (piece, tail) = (Bytes::new(), NOTHING);
        Self {
            body,
            length,
            written: 0,
            piece,
            tail,
            progress: 0,
            touched: false,
            state: State::Sending,
        }
    }

    pub(super) const fn length(&self) -> Length {
        self.length
    }

    /// Bytes sent so far.
    pub(super) const fn progress(&self) -> u64 {
        self.progress
    }

    /// Whether nothing is left to send, for good or bad.
    pub(super) fn is_done(&self) -> bool {
        self.state != State::Sending
    }

    /// Whether the service stopped reading before the end.
    pub(super) fn is_broken(&self) -> bool {
        self.state == State::Broken
    }

    /// The body, if nothing of it was read.
    pub(super) fn untouched(self) -> Option<Body> {
        (!self.touched).then(|| self.body.unwrap_or_default())
    }

    /// Sends what can be sent now; ready when all has gone out.
    pub(super) fn poll(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        match self.state {
            State::Sending => {}
            State::Done => return Poll::Ready(Ok(())),
            State::Broken => return Poll::Ready(Err(Broken::Service)),
        }
        loop {
            let mut starved = false;
            if let Some(body) = &mut self.body
                && self.piece.is_empty()
                && self.tail.is_empty()
            {
                self.touched = true;
                match Pin::new(body).poll_frame(cx) {
                    Poll::Ready(frame) => self.stage(frame, &mut connection.write)?,
                    Poll::Pending => starved = true,
                }
            }
            if ready!(self.poll_flush(connection, cx)).is_err() {
                self.state = State::Broken;
                return Poll::Ready(Err(Broken::Service));
            }
            if starved {
                return Poll::Pending;
            }
            if self.body.is_none() {
                self.state = State::Done;
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Puts the next frame in line.
    fn stage(
        &mut self,
        frame: Option<Result<Frame<Bytes>, Error>>,
        write: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let frame = frame.transpose().map_err(|_| Broken::Client)?;
        match (frame.map(Frame::into_data), &mut self.length) {
            (Some(Ok(data)), Length::Exact(left)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Broken::Client)?;
                self.piece = data;
            }
            // A chunk of no length would be the last one.
            (Some(Ok(data)), Length::Chunked) if data.is_empty() => {}
            (Some(Ok(data)), Length::Chunked) => {
                write!(write, "{:x}\r\n", data.len()).map_err(|_| Broken::Client)?;
                (self.piece, self.tail) = (data, LINE_END);
            }
            (None, Length::Exact(0)) => self.body = None,
            (None, Length::Exact(_)) => return Err(Broken::Client),
            (None, Length::Chunked) => self.end(write, &HeaderMap::new()),
            (Some(Err(frame)), Length::Chunked) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                self.end(write, &trailers);
            }
            (Some(Err(_)), Length::Exact(_)) => {}
        }
        // The client's library may know that nothing follows: do not ask it again.
        if self.length == Length::Exact(0) {
            self.body = None;
        }
        Ok(())
    }

    fn end(&mut self, write: &mut Vec<u8>, trailers: &HeaderMap) {
        self.body = None;
        write.extend_from_slice(b"0\r\n");
        for (name, value) in trailers.iter().filter(|(name, _)| content::may_trail(name)) {
            write_line(write, name, value);
        }
        write.extend_from_slice(b"\r\n");
    }

    /// Writes out the buffer, the piece and its tail, all in one call where the system takes it.
    fn poll_flush(
        &mut self,
        connection: &mut Connection,
        cx: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        let Connection { stream, write, .. } = connection;
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
        self.written = 0;
        Pin::new(stream).poll_flush(cx)
    }
}

const NOTHING: &[u8] = b"";
const LINE_END: &[u8] = b"\r\n";
