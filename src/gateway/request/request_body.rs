//! A request's body on its way in: bounded in size, in silence and in slowness, and with
//! nothing in its trailers that only the gateway may say.

use core::cell::{Cell, RefCell};
use core::pin::Pin;
use core::task::{Context, Poll};
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
use crate::gateway::exchange::Exchange;
use crate::limit::{Limited, Meter, Now};
use crate::upstream::UpstreamError;

/// Bounds of a request's body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyLimits {
    /// Bytes; `None` is no limit.
    pub size: Option<u64>,
    /// The longest gap between two pieces.
    pub gap: Duration,
    /// Bytes per second, on average after the first five seconds; `None` is off.
    pub rate: Option<u64>,
}

impl BodyLimits {
    /// Those of the server, for a body whose reader bounds its size.
    pub(crate) const fn of(server: &Server) -> Self {
        Self { size: None, gap: server.body_timeout, rate: server.min_body_rate }
    }
}

/// What came of a request's body so far; the exchange keeps the other end.
#[derive(Debug, Default)]
pub struct BodyProgress {
    bytes: Cell<u64>,
    fault: Cell<Option<Fault>>,
    /// The exchange, if its answer has ended before the body.
    answered: RefCell<Option<Box<Exchange>>>,
}

/// Why a body was given up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Fault {
    #[error("the request's body is too large")]
    TooLarge,
    #[error("the request's body came too slowly")]
    TooSlow,
    #[error("the client broke off its request")]
    Broken,
    #[error("the request's body is more than its client may have")]
    Limited(Limited),
}

/// What charges a body as it comes.
#[derive(Debug)]
pub(crate) struct Metering {
    /// For limits that count bytes.
    pub(crate) meter: Meter,
    /// The time of the charge.
    pub(crate) clock: Clock,
}

impl BodyProgress {
    /// Bytes of the body so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Whether the gateway wanted no more of it.
    pub fn is_refused(&self) -> bool {
        matches!(self.fault.get(), Some(Fault::TooLarge | Fault::TooSlow | Fault::Limited(_)))
    }

    /// Keeps the exchange until the body has ended, too.
    pub(crate) fn has_timed_out(&self, answered: Box<Exchange>) {
        self.answered.replace(Some(answered));
    }

    /// What to answer if a body broke off.
    pub fn rejection(&self) -> Rejection {
        match self.fault.get() {
            Some(Fault::TooLarge) => Rejection::BodyTooLarge,
            Some(Fault::TooSlow) => Rejection::BodyTimeout,
            Some(Fault::Limited(limited)) => Rejection::Limited(limited),
            Some(Fault::Broken) | None => Rejection::Upstream(UpstreamError::Client),
        }
    }
}

/// Marks a request, among its extensions, whose end nobody can tell for certain (RFC 9112 §6).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FramingError {
    /// Its head could be read in two ways.
    Ambiguous,
    /// Its body is in a coding that nobody here can take apart.
    UnknownCoding,
}

/// Refuses a request whose end is unclear. Whoever has marked it reads nothing more on its connection.
///
/// # Errors
///
/// [`Rejection::UnknownCoding`] for a coding before `chunked`, [`Rejection::BadRequest`] for all else.
pub(crate) fn check_framing(head: &Parts) -> Result<(), Rejection> {
    match head.extensions.get::<FramingError>() {
        None => Ok(()),
        Some(FramingError::Ambiguous) => Err(Rejection::BadRequest),
        Some(FramingError::UnknownCoding) => Err(Rejection::UnknownCoding),
    }
}

/// Whether an HTTP/2 request obeys the rules that the library below leaves to us: the path begins with a slash,
/// and no value begins or ends with white space (RFC 9113 §8.2.1, §8.3.1).
pub(crate) fn is_well_formed_http2(head: &Parts) -> bool {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    (is_asterisk_form(head)
        || head.uri.path_and_query().is_some_and(|target| target.as_str().starts_with('/')))
        && head.headers.values().all(|value| {
            let value = value.as_bytes();
            !blank(value.first()) && !blank(value.last())
        })
}

/// Whether a request is `OPTIONS *`, which is about the gateway and not about a resource: a client asks whether it is
/// there (RFC 9110 §9.3.7).
pub(crate) fn is_asterisk_form(head: &Parts) -> bool {
    head.method == Method::OPTIONS
        && head.uri.path_and_query().is_some_and(|target| target.as_str() == "*")
}

/// Puts `body` under `bounds`, unless it is empty.
///
/// # Errors
///
/// [`Rejection::BodyTooLarge`] if the body says itself that it is.
pub(crate) fn limit_body(
    body: Body,
    bounds: BodyLimits,
    reserved: &ReservedHeaders,
    received: &Rc<BodyProgress>,
    metering: Option<Metering>,
) -> Result<Body, Rejection> {
    if body.is_end_stream() {
        return Ok(Body::empty());
    }
    if bounds.size.is_some_and(|size| body.size_hint().lower() > size) {
        return Err(Rejection::BodyTooLarge);
    }
    let gap = IdleTimeout::new(Some(bounds.gap));
    Ok(Body::streaming(LimitedBody {
        body,
        bounds,
        gap,
        reserved: reserved.clone(),
        waiting_since: None,
        metering,
        received: Rc::clone(received),
    }))
}

struct LimitedBody {
    body: Body,
    bounds: BodyLimits,
    gap: IdleTimeout,
    /// What trailers must not say.
    reserved: ReservedHeaders,
    /// When the client first let us wait.
    waiting_since: Option<Instant>,
    /// What its bytes cost, if it has not said how many come.
    metering: Option<Metering>,
    received: Rc<BodyProgress>,
}

impl LimitedBody {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                self.gap.stopped();
                if let Some(trailers) = frame.trailers_mut() {
                    self.reserved.strip_from(trailers);
                }
                let more = frame.data_ref().map_or(0, |data| data.len() as u64);
                let bytes = self.received.bytes.get() + more;
                self.received.bytes.set(bytes);
                if self.bounds.size.is_some_and(|size| bytes > size) {
                    return Poll::Ready(Some(Err(Fault::TooLarge)));
                }
                if self.is_slow(bytes) {
                    return Poll::Ready(Some(Err(Fault::TooSlow)));
                }
                if let Some(Metering { meter, clock }) = &mut self.metering
                    && let Err(limited) = meter.charge(more, Now::of(clock))
                {
                    return Poll::Ready(Some(Err(Fault::Limited(limited))));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Fault::Broken))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                self.waiting_since.get_or_insert_with(Instant::now);
                self.gap.poll_elapsed(cx).map(|()| Some(Err(Fault::TooSlow)))
            }
        }
    }

    /// A body that comes a byte at a time holds a connection as well as one that does not come.
    fn is_slow(&self, bytes: u64) -> bool {
        let (Some(rate), Some(since)) = (self.bounds.rate, self.waiting_since) else {
            return false;
        };
        let waited = since.elapsed();
        waited > SLOW_BODY_GRACE && (bytes as f64) < rate as f64 * waited.as_secs_f64()
    }
}

impl Drop for LimitedBody {
    fn drop(&mut self) {
        // Which gives back what it holds of limits.
        drop(self.received.answered.take());
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
        let polled = this.poll(cx);
        if let Poll::Ready(Some(Err(fault))) = &polled {
            this.received.fault.set(Some(*fault));
        }
        polled.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

const SLOW_BODY_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn a_body_that_says_it_is_too_large_is_not_read() {
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
    async fn a_body_that_turns_out_too_large_is_cut() {
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
    async fn a_body_that_stops_is_given_up() {
        let pieces = stream::iter([Ok(Frame::data(Bytes::from("1")))]).chain(stream::pending());

        assert_eq!(
            read(Body::streaming(StreamBody::new(pieces))).await,
            Err(Rejection::BodyTimeout)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
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

    async fn read(body: Body) -> Result<Bytes, Rejection> {
        let received = Rc::default();
        let body = limit_body(body, bounds(), &ReservedHeaders::default(), &received, None)?;
        body.collect(1000).await.map_err(|_| received.rejection())
    }

    fn bounds() -> BodyLimits {
        BodyLimits { size: Some(5), gap: Duration::from_secs(30), rate: Some(240) }
    }
}
