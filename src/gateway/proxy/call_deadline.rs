//! Deadlines of gRPC calls: `grpc-timeout` is honoured by the gateway, and the rest of it forwarded.

use core::cell::RefCell;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use crate::base::body::{self, Body, PollCut};
use crate::base::grpc::{self, GRPC_TIMEOUT};
use crate::gateway::Rejection;
use crate::upstream::ExtraHeaders;

/// The deadline of one gRPC call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallDeadline(Instant);

/// The error of content that its deadline ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the deadline of the call has passed")]
pub(crate) struct DeadlineExceeded;

impl CallDeadline {
    /// Reads the deadline of a gRPC request that `began` then; `None` if it has none.
    ///
    /// # Errors
    ///
    /// [`Rejection::BadRequest`] for a malformed `grpc-timeout`, or more than one.
    pub(crate) fn read(headers: &HeaderMap, began: Instant) -> Result<Option<Self>, Rejection> {
        let mut timeouts = headers.get_all(&GRPC_TIMEOUT).iter();
        let Some(timeout) = timeouts.next() else { return Ok(None) };
        if timeouts.next().is_some() {
            return Err(Rejection::BadRequest);
        }
        let timeout = grpc::parse_timeout(timeout).ok_or(Rejection::BadRequest)?;
        // A deadline beyond the clock's range never passes.
        Ok(began.checked_add(timeout).map(Self))
    }

    /// Returns the moment at which it passes.
    pub(crate) const fn instant(self) -> Instant {
        self.0
    }

    /// Sets the field for the upstream to the time that is left, and returns it.
    ///
    /// # Errors
    ///
    /// [`Rejection::DeadlineExceeded`] if none is left.
    pub(crate) fn forward(self, headers: &mut HeaderMap) -> Result<HeaderValue, Rejection> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Rejection::DeadlineExceeded);
        }
        let timeout = grpc::timeout_value(left);
        headers.insert(&GRPC_TIMEOUT, timeout.clone());
        Ok(timeout)
    }

    /// Has each attempt get the time that is left of `timeout`, which [`CallDeadline::forward`] has set, unless the edits of the
    /// route have changed the field since.
    pub(crate) fn count_down(
        self,
        timeout: &HeaderValue,
        headers: &mut HeaderMap,
        fields: &mut ExtraHeaders<'_>,
    ) {
        if headers.get(&GRPC_TIMEOUT) == Some(timeout) {
            headers.remove(&GRPC_TIMEOUT);
            fields.add_deadline(self.0);
        }
    }

    /// Awaits `sent`, at most until the deadline.
    ///
    /// # Errors
    ///
    /// [`Rejection::DeadlineExceeded`] if it passes first.
    pub(crate) async fn limit<F: Future>(self, sent: F) -> Result<F::Output, Rejection> {
        timeout_at(self.0, sent).await.map_err(|_| Rejection::DeadlineExceeded)
    }

    /// Wraps the content of the response, which ends at the deadline, even while its client reads nothing.
    pub(crate) fn body(self, body: Body) -> Body {
        let timer = Rc::new(Timer(RefCell::new(Box::pin(sleep_until(self.0)))));
        let cut = Rc::<Timer>::clone(&timer);
        body.wrapped(|body| BodyUntilDeadline { body: Some(body), timer }).also_cut_by(cut)
    }
}

/// The timer of one deadline.
#[derive(Debug)]
struct Timer(RefCell<Pin<Box<Sleep>>>);

impl PollCut for Timer {
    fn poll_cut(&self, cx: &Context<'_>) -> Poll<()> {
        self.0.borrow_mut().as_mut().poll(&mut Context::from_waker(cx.waker()))
    }
}

struct BodyUntilDeadline {
    /// `None` once the deadline has passed: the upstream's stream is reset by then.
    body: Option<Body>,
    timer: Rc<Timer>,
}

impl http_body::Body for BodyUntilDeadline {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        if this.timer.poll_cut(cx).is_ready() {
            this.body = None;
            return Poll::Ready(Some(Err(DeadlineExceeded.into())));
        }
        Pin::new(body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_time_that_is_left_is_forwarded() {
        let mut headers = headers("2S");
        let deadline = CallDeadline::read(&headers, Instant::now()).expect("valid").expect("one");
        tokio::time::advance(Duration::from_millis(500)).await;

        assert_eq!(deadline.forward(&mut headers), Ok(HeaderValue::from_static("1500000u")));
        assert_eq!(headers[&GRPC_TIMEOUT], "1500000u");

        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(deadline.forward(&mut headers), Err(Rejection::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn a_malformed_timeout_and_a_second_one_are_refused() {
        let read = |headers: &HeaderMap| CallDeadline::read(headers, Instant::now()).map(drop);
        assert_eq!(read(&headers("soon")), Err(Rejection::BadRequest));

        let mut two = headers("1S");
        two.append(&GRPC_TIMEOUT, HeaderValue::from_static("2S"));
        assert_eq!(read(&two), Err(Rejection::BadRequest));
        assert_eq!(read(&HeaderMap::new()), Ok(()));
    }

    fn headers(timeout: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(&GRPC_TIMEOUT, HeaderValue::from_static(timeout));
        headers
    }
}
