//! HTTP/1.1 towards services (RFC 9112): one request at a time on a connection that it owns.
//!
//! The head is written straight into one buffer, the answer's head is read out
//! of another without copying, and an answer that has come whole with its head
//! gives its connection back at once. Bodies stream both ways at the same time:
//! a service may answer before the request has ended.

mod body;
#[cfg(any(fuzzing, test))]
pub mod fuzz;
mod head;
mod remaining_upload;

use core::cell::RefCell;
use core::future::poll_fn;
use core::task::{Context, Poll, ready};
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
pub(super) use self::remaining_upload::RemainingUpload;
use super::connect::Stream;
use super::{OutgoingRequest, UpstreamError};
use crate::base::idle_timeout::IdleTimeout;
use crate::http1::{BodyWriter, Decoder, Framing, HeaderNameCache, ReadBufferSize, WriteError};
use crate::observe::metrics::UpstreamMetrics;

/// A connection to a service, between two answers.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// What has come and was not understood yet.
    read: BytesMut,
    /// What the next read asks for.
    read_size: ReadBufferSize,
    names: HeaderNameCache,
    /// What is being written: a head, a chunk's size.
    write: Vec<u8>,
    /// Rings when the service is silent for too long.
    silence: IdleTimeout,
    counted: Counted,
}

/// The head of an answer, and where its body is.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) response: Response<()>,
    pub(super) content: BodyKind,
    /// Whether the service answered while more of the request was still to come from the client.
    pub(super) early: bool,
}

#[derive(Debug)]
pub(super) enum BodyKind {
    /// The whole body came with the head.
    Whole(Bytes, RemainingUpload),
    /// The rest is still to come.
    Streaming(Rc<RefCell<ResponseBody>>),
    /// The service switched protocols; the connection is no longer HTTP.
    Tunnel(Tunnel),
}

/// A request without an answer.
#[derive(Debug)]
pub(super) struct SendError {
    pub(super) failure: UpstreamError,
    /// Whether some of the request may have reached the service.
    pub(super) sent: bool,
    /// Whether it was lost on a connection that had rested, and that the service may have closed meanwhile.
    pub(super) stale: bool,
    /// Whether more of the request was still to come from the client.
    pub(super) early: bool,
    /// The request as it can be sent on another connection: `None` if a part of its body is lost.
    pub(super) anew: Option<BodyWriter>,
}

impl SendError {
    /// A request that never left.
    pub(super) const fn not_sent(failure: UpstreamError, sending: BodyWriter) -> Self {
        Self { failure, sent: false, stale: false, early: false, anew: Some(sending) }
    }
}

/// A connection that speaks another protocol now (RFC 9110 §7.8).
#[derive(Debug)]
pub struct Tunnel {
    /// What the service sent right behind its answer.
    early: Bytes,
    stream: Stream,
}

impl Tunnel {
    /// Passes bytes both ways until both sides have ended.
    ///
    /// # Errors
    ///
    /// The first error of either side.
    pub async fn join<T>(mut self, client: &mut T) -> io::Result<(u64, u64)>
    where
        T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        tokio::io::AsyncWriteExt::write_all(client, &self.early).await?;
        tokio::io::copy_bidirectional(client, &mut self.stream).await
    }
}

impl Connection {
    /// A new one. Boxed, because it passes through many hands.
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

    /// Whether nothing has come that nobody has asked for, in any layer: what is left there would be taken for the
    /// answer to the next request.
    pub(super) fn is_quiet(&mut self) -> bool {
        self.read.is_empty() && self.stream.is_quiet()
    }

    /// Counts the connection as idle, or as active.
    pub(super) fn rest(&mut self, idle: bool) {
        self.counted.is(idle);
    }

    /// Sends a request and awaits the head of its answer. `host`, if given, stands in for
    /// the `Host` field of its head; framing fields are written from what `sending` says of itself.
    ///
    /// `wait` is the longest silence, the first one from `since` on: without progress in sending for as
    /// long, and without an answer, the request is lost. Waiting for the client to send on is no silence
    /// of the service's: the body has bounds of its own.
    pub(super) async fn exchange(
        mut self: Box<Self>,
        request: &OutgoingRequest<'_>,
        host: Option<&HeaderValue>,
        mut sending: BodyWriter,
        wait: Duration,
        since: Instant,
    ) -> Result<Reply, SendError> {
        let head = request.head;
        head::write(&mut self.write, request, host, &sending);
        let head_bytes = self.write.len();
        sending.resume(&mut self.write);
        self.silence.start(wait, since);
        let mut progress = None;
        let outcome = poll_fn(|cx| {
            if let Poll::Ready(answer) = self.poll_answer(cx, &mut sending, &head.method) {
                return Poll::Ready(answer);
            }
            // What went out at once, went out when the wait began.
            let sent = sending.progress();
            if sending.waits_for_data() {
                self.silence.stopped();
                return Poll::Pending;
            }
            if progress.replace(sent).is_some_and(|before| before != sent) {
                self.silence.stopped();
            }
            self.silence.poll_elapsed(cx).map(|()| Err(UpstreamError::Timeout))
        })
        .await;
        match outcome {
            Ok(answer) if answer.response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                self.tunnel(answer.response, head)
            }
            Ok(answer) => Ok(self.reply(answer, sending)),
            Err(failure) => Err(SendError {
                failure,
                sent: sending.progress() > 0,
                stale: false,
                early: sending.waits_for_data(),
                anew: sending.anew(&self.write, head_bytes),
            }),
        }
    }

    /// Sends on, and reads until a final head has come.
    fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut BodyWriter,
        method: &Method,
    ) -> Poll<Result<head::Head, UpstreamError>> {
        // Whatever sending comes to, the answer may be on its way: a service that refuses
        // a body answers and closes.
        if let Poll::Ready(Err(WriteError::Body)) = self.poll_sending(sending, cx) {
            return Poll::Ready(Err(UpstreamError::Client));
        }
        loop {
            if !self.read.is_empty() {
                match head::parse(&mut self.read, &mut self.names, method) {
                    Ok(ParseOutcome::Head(head)) => return Poll::Ready(Ok(head)),
                    Ok(ParseOutcome::Interim) => continue,
                    Ok(ParseOutcome::Partial) => {}
                    Err(head::InvalidResponse) => return Poll::Ready(Err(UpstreamError::Protocol)),
                }
            }
            match ready!(self.poll_fill(cx)) {
                // An answer cut off in its head was an answer: the request has been seen.
                Ok(0) if !self.read.is_empty() => return Poll::Ready(Err(UpstreamError::Protocol)),
                Ok(0) | Err(_) => return Poll::Ready(Err(UpstreamError::Reset)),
                Ok(_) => {}
            }
        }
    }

    /// Sends on.
    fn poll_sending(
        &mut self,
        sending: &mut BodyWriter,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), WriteError>> {
        sending.poll(&mut self.stream, &mut self.write, cx)
    }

    /// Reads once; zero bytes is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read_size.poll_read(&mut self.stream, &mut self.read, cx)
    }

    /// Splits what came with the head from what is still to come.
    fn reply(mut self: Box<Self>, head: head::Head, sending: BodyWriter) -> Reply {
        let head::Head { response, framing, reusable } = head;
        let early = sending.waits_for_data();
        let content = match framing {
            Framing::Length(length) if self.read.len() as u64 >= length => {
                let whole = self.read.split_to(length as usize).freeze();
                BodyKind::Whole(whole, RemainingUpload::new(self, sending, reusable))
            }
            framing => BodyKind::Streaming(Rc::new(RefCell::new(ResponseBody::new(
                self,
                Decoder::new(framing),
                sending,
                reusable,
            )))),
        };
        Reply { response, content, early }
    }

    /// Hands the connection over after a 101, if the client asked for another protocol.
    fn tunnel(self, response: Response<()>, head: &Parts) -> Result<Reply, SendError> {
        if !head.headers.contains_key(http::header::UPGRADE) {
            let (failure, anew) = (UpstreamError::Protocol, None);
            return Err(SendError { failure, sent: true, stale: false, early: false, anew });
        }
        let tunnel = Tunnel { early: self.read.freeze(), stream: self.stream };
        Ok(Reply { response, content: BodyKind::Tunnel(tunnel), early: false })
    }
}

/// A connection in the gauge `northgate_upstream_connections`, for as long as it is open.
#[derive(Debug)]
struct Counted {
    metrics: Arc<UpstreamMetrics>,
    idle: bool,
}

impl Counted {
    fn new(metrics: Arc<UpstreamMetrics>) -> Self {
        metrics.active.inc();
        Self { metrics, idle: false }
    }

    fn is(&mut self, idle: bool) {
        let (from, to) = if idle {
            (&self.metrics.active, &self.metrics.idle)
        } else {
            (&self.metrics.idle, &self.metrics.active)
        };
        if self.idle != idle {
            from.dec();
            to.inc();
            self.idle = idle;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.idle { &self.metrics.idle } else { &self.metrics.active }.dec();
    }
}
