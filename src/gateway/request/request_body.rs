//! Request content: limits its size, idle time and rate, and removes reserved fields from its trailers.

use core::any::Any;
use core::cell::{Cell, RefCell};
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;
use std::rc::Rc;

use bytes::Bytes;
use http::Method;
use http::request::Parts;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use crate::base::body::{self, Body};
use crate::base::clock::Clock;
use crate::base::idle_timeout::IdleTimeout;
use crate::config::reserved_headers::ReservedHeaders;
use crate::config::server::Server;
use crate::gateway::Rejection;
use crate::limit::{ContentCharge, Decision, LimitExceeded, Limited, Now, Question};
use crate::upstream::{UploadPermit, UpstreamError};

/// The limits on request content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// Bytes; `None` is unlimited.
    pub size: Option<u64>,
    /// The longest time without new content; `None` is off.
    pub gap: Option<Duration>,
    /// Bytes per second, on average after the first five seconds; `None` is off.
    pub rate: Option<u64>,
}

impl BodyLimits {
    /// Returns the limits of the server, without one on size.
    pub(crate) const fn of(server: &Server) -> Self {
        Self { size: None, gap: Some(server.body_timeout), rate: server.min_body_rate }
    }

    /// Returns the limits of a stream, whose messages may be hours apart.
    pub(crate) const fn of_stream(self) -> Self {
        Self { size: self.size, gap: None, rate: None }
    }
}

/// The progress of a request's content; shared by the content and the exchange.
#[derive(Debug, Default)]
pub struct BodyProgress {
    bytes: Cell<u64>,
    fault: Cell<Option<Fault>>,
    /// Whether the content exists, and may still be read.
    is_open: Cell<bool>,
    /// Whether the content was dropped before its end.
    is_unread: Cell<bool>,
    /// The index of the first limit that would have ended the content, were it no dry run.
    dry_run: Cell<Option<u16>>,
    /// The exchange, if its response ended before the content.
    finished_exchange: RefCell<Option<Box<dyn Any>>>,
}

/// How request content ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ContentEnd {
    /// All of it was read, or there was none.
    Whole,
    /// The gateway aborted it.
    Refused,
    /// The client aborted it.
    Broken,
    /// The upstream stopped reading it.
    Unread,
}

/// The reason for aborting request content.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Fault {
    #[error("the request content is too large")]
    TooLarge,
    #[error("the request content arrived too slowly")]
    TooSlow,
    #[error("the client aborted its request")]
    Broken,
    #[error("the request content exceeds a limit of the client")]
    Limited(Limited),
}

/// Charges request content to limits as it arrives.
pub(crate) struct ContentCharging {
    /// The limits that count bytes.
    charge: ContentCharge,
    /// The clock that dates each charge.
    clock: Clock,
    /// The part of the content that waits for the store of a limit.
    waiting: Option<WaitingPart>,
}

struct WaitingPart {
    frame: Frame<Bytes>,
    asked: Pin<Box<dyn Future<Output = Question>>>,
}

impl ContentCharging {
    pub(crate) const fn new(charge: ContentCharge, clock: Clock) -> Self {
        Self { charge, clock, waiting: None }
    }

    /// Charges a part of the content; `None` if [`ContentCharging::poll_waiting`] returns the part once a store has responded.
    fn begin(&mut self, frame: Frame<Bytes>) -> Result<Option<Frame<Bytes>>, LimitExceeded> {
        let bytes = length(&frame);
        if bytes == 0 || !self.charge.counts_bytes() {
            return Ok(Some(frame));
        }
        match self.charge.decide(bytes, Now::of(&self.clock)) {
            Decision::Made(made) => made.map(|()| Some(frame)),
            Decision::Ask(mut question) => {
                let asked = Box::pin(async {
                    question.send().await;
                    question
                });
                self.waiting = Some(WaitingPart { frame, asked });
                Ok(None)
            }
        }
    }

    /// Polls the part that waits for a store; `None` if none does.
    fn poll_waiting(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LimitExceeded>>> {
        let Some(waiting) = &mut self.waiting else { return Poll::Ready(None) };
        let question = ready!(waiting.asked.as_mut().poll(cx));
        let part = self.waiting.take().map(|waiting| waiting.frame);
        Poll::Ready(part.map(|frame| {
            let moment = Now::of(&self.clock);
            self.charge.settle(length(&frame), moment, question).map(|()| frame)
        }))
    }
}

/// Returns the bytes of content in a frame.
fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

impl BodyProgress {
    /// Returns the bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Returns the index among the route's limits of the first that would have ended the content, were it no dry run.
    pub fn dry_run(&self) -> Option<u16> {
        self.dry_run.get()
    }

    /// Whether the gateway aborted the content.
    pub fn is_refused(&self) -> bool {
        matches!(self.fault.get(), Some(Fault::TooLarge | Fault::TooSlow | Fault::Limited(_)))
    }

    /// Whether the content may still be read.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.get()
    }

    /// Returns how the content ended.
    pub(crate) fn end(&self) -> ContentEnd {
        match self.fault.get() {
            Some(Fault::Broken) => ContentEnd::Broken,
            Some(_) => ContentEnd::Refused,
            None if self.is_unread.get() => ContentEnd::Unread,
            None => ContentEnd::Whole,
        }
    }

    /// Keeps the exchange, and what it holds of limits, until the content has ended.
    pub(crate) fn hold_exchange(&self, exchange: Box<dyn Any>) {
        self.finished_exchange.replace(Some(exchange));
    }

    /// Returns the rejection for content that was aborted.
    pub fn rejection(&self) -> Rejection {
        match self.fault.get() {
            Some(Fault::TooLarge) => Rejection::BodyTooLarge,
            Some(Fault::TooSlow) => Rejection::BodyTimeout,
            Some(Fault::Limited(limited)) => Rejection::Limited(limited),
            Some(Fault::Broken) | None => Rejection::Upstream(UpstreamError::Client),
        }
    }
}

/// The reason for which the end of a request cannot be determined; an extension of the request (RFC 9112 §6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FramingError {
    /// The head can be parsed in two ways.
    Ambiguous,
    /// The content has a transfer coding that the gateway does not decode.
    UnknownCoding,
}

/// The mark of a request for a tunnel of an unknown protocol (RFC 8441 §4); an extension of the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UnknownProtocol;

/// The mark of a request that any success turns into a tunnel (RFC 8441 §5); an extension of the request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpensTunnel;

/// Refuses a request with a [`FramingError`]. The server that attached the error reads nothing more from the
/// connection.
///
/// # Errors
///
/// [`Rejection::UnknownCoding`] for a transfer coding before `chunked`, [`Rejection::UnknownProtocol`] for a tunnel of
/// another protocol than WebSocket, [`Rejection::BadRequest`] otherwise.
pub(crate) fn check_framing(head: &Parts) -> Result<(), Rejection> {
    if head.extensions.get::<UnknownProtocol>().is_some() {
        return Err(Rejection::UnknownProtocol);
    }
    match head.extensions.get::<FramingError>() {
        None => Ok(()),
        Some(FramingError::Ambiguous) => Err(Rejection::BadRequest),
        Some(FramingError::UnknownCoding) => Err(Rejection::UnknownCoding),
    }
}

/// Whether an HTTP/2 request obeys the rules that `h2` does not check: the path begins with a slash, and no field value
/// begins or ends with white space (RFC 9113 §8.2.1, §8.3.1).
pub(crate) fn is_well_formed_http2(head: &Parts) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    (is_asterisk_form(head)
        || head.uri.path_and_query().is_some_and(|target| target.as_str().starts_with('/')))
        && head.headers.values().all(|value| {
            let value = value.as_bytes();
            !blank(value.first()) && !blank(value.last())
        })
}

/// Whether a request is `OPTIONS *`, which addresses the gateway and no resource: a client tests for its presence
/// (RFC 9110 §9.3.7).
pub(crate) fn is_asterisk_form(head: &Parts) -> bool {
    head.method == Method::OPTIONS
        && head.uri.path_and_query().is_some_and(|target| target.as_str() == "*")
}

/// Limits `body` by `bounds`; `None` if it is empty. Boxed: most requests have none, and it is moved often.
///
/// # Errors
///
/// [`Rejection::BodyTooLarge`] if the declared length exceeds the limit.
pub(crate) fn limit_body(
    body: Body,
    bounds: BodyLimits,
    reserved: &ReservedHeaders,
    received: &Rc<BodyProgress>,
    charging: Option<ContentCharging>,
) -> Result<Option<Box<LimitedBody>>, Rejection> {
    if body.is_end_stream() {
        return Ok(None);
    }
    if bounds.size.is_some_and(|size| body.size_hint().lower() > size) {
        return Err(Rejection::BodyTooLarge);
    }
    let gap = IdleTimeout::new(bounds.gap);
    received.is_open.set(true);
    Ok(Some(Box::new(LimitedBody {
        body,
        first: None,
        unstarted: None,
        bounds,
        gap,
        reserved: reserved.clone(),
        waiting_since: None,
        waited: Duration::ZERO,
        charging,
        has_ended: false,
        received: Rc::clone(received),
    })))
}

/// Request content within its limits.
pub(crate) struct LimitedBody {
    body: Body,
    /// The first part, if it was awaited before the request was forwarded.
    first: Option<Frame<Bytes>>,
    /// The place that the request holds at the upstream until its content begins.
    unstarted: Option<UploadPermit>,
    bounds: BodyLimits,
    gap: IdleTimeout,
    /// The fields to remove from trailers.
    reserved: ReservedHeaders,
    /// The beginning of the current wait for the client.
    waiting_since: Option<Instant>,
    /// The time of all waits before. Pauses of the upstream, in which nothing is read, are not the client's.
    waited: Duration,
    /// The limits to charge, if the length was not declared.
    charging: Option<ContentCharging>,
    /// Whether the end was read.
    has_ended: bool,
    received: Rc<BodyProgress>,
}

impl LimitedBody {
    /// Polls until content has arrived, or none will come; false if it was aborted. Parts without a byte do not count.
    pub(crate) fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            match ready!(self.poll(cx)) {
                Some(Ok(part)) if part.data_ref().is_some_and(Bytes::is_empty) => {}
                Some(Ok(part)) => {
                    self.first = Some(part);
                    return Poll::Ready(true);
                }
                Some(Err(fault)) => {
                    self.received.fault.set(Some(fault));
                    return Poll::Ready(false);
                }
                None => return Poll::Ready(true),
            }
        }
    }

    /// Returns the length that the client declared, if it did.
    pub(crate) fn declared_length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Holds `permit` until content arrives.
    pub(crate) fn hold_until_begun(&mut self, permit: UploadPermit) {
        self.unstarted = Some(permit);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        if let Some(charging) = &mut self.charging
            && let Some(charged) = ready!(charging.poll_waiting(cx))
        {
            self.received.dry_run.set(charging.charge.dry_run());
            return Poll::Ready(Some(charged.map_err(|exceeded| self.exceeded(exceeded))));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                self.gap.stopped();
                self.waited += self.waiting_since.take().map_or(Duration::ZERO, |at| at.elapsed());
                if let Some(trailers) = frame.trailers_mut() {
                    self.reserved.strip_from(trailers);
                }
                let bytes = self.received.bytes.get() + length(&frame);
                self.received.bytes.set(bytes);
                if self.bounds.size.is_some_and(|size| bytes > size) {
                    return Poll::Ready(Some(Err(self.too_large())));
                }
                if self.is_slow(bytes) {
                    return Poll::Ready(Some(Err(Fault::TooSlow)));
                }
                let Some(charging) = &mut self.charging else {
                    return Poll::Ready(Some(Ok(frame)));
                };
                let begun = charging.begin(frame);
                self.received.dry_run.set(charging.charge.dry_run());
                match begun {
                    Ok(Some(frame)) => Poll::Ready(Some(Ok(frame))),
                    Ok(None) => self.poll(cx),
                    Err(exceeded) => Poll::Ready(Some(Err(self.exceeded(exceeded)))),
                }
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Fault::Broken))),
            Poll::Ready(None) => {
                self.has_ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => {
                self.waiting_since.get_or_insert_with(Instant::now);
                self.gap.poll_elapsed(cx).map(|()| Some(Err(Fault::TooSlow)))
            }
        }
    }

    fn exceeded(&mut self, exceeded: LimitExceeded) -> Fault {
        match exceeded {
            LimitExceeded::Limited(limited) => Fault::Limited(limited),
            _ => self.too_large(),
        }
    }

    /// Refunds the charge of content that was refused.
    fn too_large(&mut self) -> Fault {
        if let Some(ContentCharging { charge, clock, .. }) = &mut self.charging {
            charge.refund(Now::of(clock));
        }
        Fault::TooLarge
    }

    /// Whether the content is below the minimum rate: content that drips holds a connection as long as none at all.
    fn is_slow(&self, bytes: u64) -> bool {
        let (waited, bytes) = (self.waited, bytes as f64);
        let is_below = |rate: u64| bytes < rate as f64 * waited.as_secs_f64();
        waited > SLOW_BODY_GRACE && self.bounds.rate.is_some_and(is_below)
    }
}

impl Drop for LimitedBody {
    fn drop(&mut self) {
        let has_ended = self.has_ended || http_body::Body::is_end_stream(self);
        self.received.is_unread.set(!has_ended);
        self.received.is_open.set(false);
        // Records the exchange, and releases what it holds of limits.
        drop(self.received.finished_exchange.take());
    }
}

impl http_body::Body for LimitedBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        if let Some(first) = this.first.take() {
            return Poll::Ready(Some(Ok(first)));
        }
        let polled = this.poll(cx);
        if this.unstarted.is_some() && polled.is_ready() {
            this.unstarted = None;
        }
        if let Poll::Ready(Some(Err(fault))) = &polled {
            this.received.fault.set(Some(*fault));
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        let waits = self.charging.as_ref().is_some_and(|charging| charging.waiting.is_some());
        self.first.is_none() && !waits && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let rest = self.body.size_hint();
        let Some(first) = self.first.as_ref().and_then(Frame::data_ref) else { return rest };
        let first = first.len() as u64;
        let mut whole = SizeHint::new();
        whole.set_lower(rest.lower().saturating_add(first));
        if let Some(upper) = rest.upper() {
            whole.set_upper(upper.saturating_add(first));
        }
        whole
    }
}

const SLOW_BODY_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn content_of_a_declared_excess_length_is_not_read() {
        assert_eq!(
            limit_body(
                "123456".into(),
                bounds(),
                &ReservedHeaders::default(),
                &Rc::default(),
                None
            )
            .err(),
            Some(Rejection::BodyTooLarge)
        );
    }

    #[tokio::test]
    async fn content_beyond_its_limit_is_aborted() {
        let pieces = stream::iter([
            Ok(Frame::data(Bytes::from("1234"))),
            Ok(Frame::data(Bytes::from("56"))),
        ]);

        assert_eq!(
            read(Body::streaming(StreamBody::new(pieces))).await,
            Err(Rejection::BodyTooLarge)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn stalled_content_is_aborted() {
        let pieces = stream::iter([Ok(Frame::data(Bytes::from("1")))]).chain(stream::pending());

        assert_eq!(
            read(Body::streaming(StreamBody::new(pieces))).await,
            Err(Rejection::BodyTimeout)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn content_below_the_minimum_rate_is_aborted() {
        let began = Instant::now();
        let drops = stream::unfold((), async |()| {
            tokio::time::sleep(Duration::from_secs(4)).await;
            Some((Ok(Frame::data(Bytes::from("1"))), ()))
        });

        assert_eq!(
            read(Body::streaming(StreamBody::new(Box::pin(drops)))).await,
            Err(Rejection::BodyTimeout)
        );
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_the_upstream_is_not_one_of_the_client() {
        let pieces = stream::unfold(0, async |piece| {
            tokio::time::sleep(Duration::from_secs(1) * (1 - piece.min(1))).await;
            Some((Ok(Frame::data(Bytes::from("1"))), piece + 1))
        });
        let body = Body::streaming(StreamBody::new(Box::pin(pieces)));
        let limited = limit_body(body, bounds(), &ReservedHeaders::default(), &Rc::default(), None);
        let mut body = limited.expect("within the limits").expect("content");

        for _ in 0..3 {
            let frame = http_body_util::BodyExt::frame(&mut *body).await;
            assert!(frame.expect("more").is_ok());
            // The upstream reads nothing meanwhile.
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }

    async fn read(body: Body) -> Result<Bytes, Rejection> {
        let received = Rc::default();
        let body = limit_body(body, bounds(), &ReservedHeaders::default(), &received, None)?;
        let body = body.map_or_else(Body::empty, Body::streaming);
        body.collect(1000).await.map_err(|_| received.rejection())
    }

    fn bounds() -> BodyLimits {
        BodyLimits { size: Some(5), gap: Some(Duration::from_secs(30)), rate: Some(240) }
    }
}
