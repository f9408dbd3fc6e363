//! An HTTP/1.1 client (RFC 9112): one request at a time per connection.
//!
//! The head is written straight into one buffer, the response head is parsed in
//! another without copying, and a response that arrives whole with its head
//! releases its connection at once. Bodies stream both ways at the same time:
//! an upstream may respond before the request has ended.

mod body;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod head;
mod remaining_upload;

use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll, Waker, ready};
use core::time::Duration;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use tokio::time::Instant;

pub(super) use self::body::ResponseBody;
use self::head::ParseOutcome;
pub(super) use self::head::{MAX_FIELDS, MAX_HEAD_BYTES};
pub(super) use self::remaining_upload::RemainingUpload;
use super::attempt_error::AttemptError;
use super::connections::connect::{FreshRead, Stream};
use super::connections::connection_gauges::Counted;
use super::connections::handshake_error;
use super::request::interim_responses::RelayedInterim;
use super::request::tunnel::Tunnel;
use super::settings::CLIENT_PAUSE;
use super::{InvalidResponse, OutgoingRequest, UpstreamError};
use crate::base::idle_timeout::IdleTimeout;
use crate::http1::{
    BodyWriter, ChunkEvent, Decoder, Framing, HeaderNameCache, InvalidChunk, ReadBufferSize,
    WriteError,
};
use crate::observe::metrics::UpstreamMetrics;

/// An idle connection to an upstream.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// Bytes that were received and not parsed yet.
    read: BytesMut,
    /// The size of the next read.
    read_size: ReadBufferSize,
    names: HeaderNameCache,
    /// The write buffer: a head, a chunk's size.
    write: Vec<u8>,
    /// The timeout for a silent upstream.
    silence: IdleTimeout,
    counted: Counted,
}

/// Marks a response whose content ends with its connection: a part of it cannot be distinguished from the whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CloseDelimited;

/// The head of a response, with its body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response<()>,
    pub(super) content: BodyKind,
    /// Whether the upstream responded while it waited for the client, which had sent nothing for a while.
    pub(super) client_was_silent: bool,
}

#[derive(Debug)]
pub(super) enum BodyKind {
    /// The whole body came with the head.
    Whole(Bytes, RemainingUpload),
    /// The rest is still to come.
    Streaming(Rc<RefCell<ResponseBody>>),
    /// The upstream switched protocols (101); the connection is no longer HTTP.
    Tunnel(Tunnel),
}

impl Connection {
    /// Creates a connection. Boxed, since it is moved often.
    pub(super) fn new(stream: Stream, metrics: Arc<UpstreamMetrics>) -> Box<Self> {
        let counted = Counted::new(metrics);
        Box::new(Self {
            stream,
            read: BytesMut::new(),
            read_size: ReadBufferSize::default(),
            names: HeaderNameCache::default(),
            write: Vec::new(),
            silence: IdleTimeout::default(),
            counted,
        })
    }

    /// Whether no unsolicited bytes were received, in any layer, which would be taken for the
    /// response to the next request.
    pub(super) fn is_quiet(&mut self, read: FreshRead) -> bool {
        self.read.is_empty() && self.stream.is_quiet(read)
    }

    /// Counts the connection as idle, or as active.
    pub(super) fn rest(&mut self, idle: bool) {
        self.counted.set_idle(idle);
    }

    /// Sends a request and waits for the response head. `host`, if given, replaces
    /// the `Host` field of its head; framing fields are written for `sending`.
    ///
    /// `wait` is the maximum silence, the first one from `since`: without progress in sending
    /// and without a response for that long, the request fails. Waiting for the client's body is not silence
    /// of the upstream: that body has timeouts of its own.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: &OutgoingRequest<'_>,
        host: Option<&HeaderValue>,
        mut sending: Box<BodyWriter>,
        wait: Duration,
        since: Instant,
    ) -> Result<Reply, AttemptError> {
        let head = request.head;
        head::write(&mut self.write, request, host, &sending);
        let head_bytes = self.write.len();
        sending.resume(&mut self.write);
        self.silence.start(wait, since);
        let (mut progress, mut interim) = (None, RelayedInterim::new(request.interim));
        // Since when the upstream has waited for the client, and what was sent by then.
        let mut starved: Option<(Instant, u64)> = None;
        let outcome = poll_fn(|cx| {
            let polled = self.poll_response(cx, &mut sending, &head.method, &mut interim);
            if let Poll::Ready(received) = polled {
                return Poll::Ready(received);
            }
            // Bytes written by the first poll count as progress at the beginning of the wait.
            let sent = sending.progress();
            if sending.waits_for_data() {
                if starved.is_none_or(|(_, before)| before != sent) {
                    starved = Some((Instant::now(), sent));
                }
                self.silence.stopped();
                return Poll::Pending;
            }
            if progress.replace(sent).is_some_and(|before| before != sent) {
                self.silence.stopped();
            }
            self.silence.poll_elapsed(cx).map(|()| Err(UpstreamError::Timeout))
        })
        .await;
        let client_was_silent = sending.waits_for_data()
            && starved.is_some_and(|(since, _)| since.elapsed() >= CLIENT_PAUSE);
        match outcome {
            Ok(received) if received.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                self.tunnel(received.response, head)
            }
            Ok(received) => self.reply(received, sending, client_was_silent),
            Err(failure) => {
                // A failed write over TLS does not show whether the records before the last one have arrived.
                let may_have_arrived =
                    self.stream.is_tls() && sending.offered(&self.write) > MAX_TLS_RECORD_BYTES;
                let sent = sending.progress() > 0 || may_have_arrived;
                let remaining_content =
                    sending.for_another_connection(&self.write, head_bytes, sent);
                Err(AttemptError {
                    failure,
                    sent,
                    stale: false,
                    client_was_silent,
                    remaining_content,
                })
            }
        }
    }

    /// Continues sending, and reads until a final head is complete.
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut BodyWriter,
        method: &Method,
        interim: &mut RelayedInterim<'_>,
    ) -> Poll<Result<head::Head, UpstreamError>> {
        // Even if sending fails, a response may arrive: an upstream that refuses
        // a body responds and closes.
        if let Poll::Ready(Err(WriteError::Body)) = self.poll_sending(sending, cx) {
            return Poll::Ready(Err(UpstreamError::Client));
        }
        loop {
            if !self.read.is_empty() {
                let unread = self.read.len();
                match head::parse(&mut self.read, &mut self.names, method) {
                    Ok(ParseOutcome::Head(head)) => return Poll::Ready(Ok(head)),
                    Ok(ParseOutcome::Interim(response)) => {
                        if let Err(invalid) = interim.add(response, unread - self.read.len()) {
                            return Poll::Ready(Err(UpstreamError::Invalid(invalid)));
                        }
                        continue;
                    }
                    Ok(ParseOutcome::Partial) => {}
                    Err(invalid) => return Poll::Ready(Err(UpstreamError::Invalid(invalid))),
                }
            }
            match ready!(self.poll_fill(cx)) {
                // A partial head is a response: the upstream has seen the request.
                Ok(0) if !self.read.is_empty() => {
                    return Poll::Ready(Err(UpstreamError::Invalid(InvalidResponse::PartialHead)));
                }
                Ok(0) => return Poll::Ready(Err(UpstreamError::Reset)),
                Err(error) => {
                    let alert = handshake_error::alert(&error).map(UpstreamError::TlsAlert);
                    return Poll::Ready(Err(alert.unwrap_or(UpstreamError::Reset)));
                }
                Ok(_) => {}
            }
        }
    }

    /// Continues sending.
    fn poll_sending(
        &mut self,
        sending: &mut BodyWriter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        sending.poll(&mut self.stream, &mut self.write, cx)
    }

    /// Reads once; zero bytes is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read_size.poll_read(&mut self.stream, &mut self.read, cx)
    }

    /// Splits the bytes received with the head from those that follow.
    ///
    /// # Errors
    ///
    /// As [`first_chunk`](Self::first_chunk): nothing of the response was relayed yet.
    fn reply(
        mut self: Box<Self>,
        head: head::Head,
        sending: Box<BodyWriter>,
        client_was_silent: bool,
    ) -> Result<Reply, AttemptError> {
        let head::Head { mut response, framing, reusable } = head;
        let mut decoder = Decoder::of_response(framing);
        let first = match framing {
            Framing::Chunked => self.first_chunk(&mut decoder),
            Framing::Length(_) | Framing::UntilClose => Ok(None),
        };
        let first = match first {
            Ok(first) => first,
            Err(failure) => {
                return Err(AttemptError {
                    failure,
                    sent: true,
                    stale: false,
                    client_was_silent,
                    remaining_content: None,
                });
            }
        };
        if framing == Framing::UntilClose {
            response.extensions_mut().insert(CloseDelimited);
        }
        let content = match framing {
            Framing::Length(length) if self.read.len() as u64 >= length => {
                let whole = self.read.split_to(length as usize).freeze();
                BodyKind::Whole(whole, RemainingUpload::new(self, sending, reusable))
            }
            framing => {
                let body = ResponseBody::new(self, framing, decoder, first, sending, reusable);
                BodyKind::Streaming(Rc::new(RefCell::new(body)))
            }
        };
        Ok(Reply { response, content, client_was_silent })
    }

    /// Decodes the first part of chunked content, as far as it has arrived; `None` if it has not.
    ///
    /// # Errors
    ///
    /// [`InvalidResponse::Chunk`] for a malformed chunk, [`UpstreamError::Reset`] if the connection has ended before it.
    fn first_chunk(&mut self, decoder: &mut Decoder) -> Result<Option<ChunkEvent>, UpstreamError> {
        let invalid = |InvalidChunk| UpstreamError::Invalid(InvalidResponse::Chunk);
        let event = decoder.take(&mut self.read).map_err(invalid)?;
        if !matches!(event, ChunkEvent::Partial) {
            return Ok(Some(event));
        }
        // The body that reads the rest waits for it.
        match self.poll_fill(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => Ok(None),
            Poll::Ready(Ok(0) | Err(_)) => Err(UpstreamError::Reset),
            Poll::Ready(Ok(_)) => decoder.take(&mut self.read).map(Some).map_err(invalid),
        }
    }

    /// Hands the connection over after a 101, if the client requested an upgrade.
    fn tunnel(self, response: Response<()>, head: &Parts) -> Result<Reply, AttemptError> {
        if !head.headers.contains_key(http::header::UPGRADE) {
            let (failure, remaining_content) =
                (UpstreamError::Invalid(InvalidResponse::Upgrade), None);
            return Err(AttemptError {
                failure,
                sent: true,
                stale: false,
                client_was_silent: false,
                remaining_content,
            });
        }
        let Self { read, stream, counted, .. } = self;
        let tunnel = Tunnel::of_connection(read.freeze(), stream, counted);
        Ok(Reply { response, content: BodyKind::Tunnel(tunnel), client_was_silent: false })
    }
}

/// The most content of one TLS record (RFC 8446 §5.1): a part of a record cannot be read.
const MAX_TLS_RECORD_BYTES: usize = 16 * 1024;
