//! Charges costs from responses, such as the tokens that a language model has used.
//!
//! JSON content is read whole before the client receives any of it: a client that leaves before the last byte could not
//! be charged otherwise. More content than the limit reads is passed on as it comes.

use core::cell::Cell;
use core::convert::Infallible;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;
use std::collections::VecDeque;
use std::panic::resume_unwind;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::base::body::{self, Body};
use crate::base::clock::Clock;
use crate::base::in_flight::InFlightCall;
use crate::base::media_type::essence;
use crate::gateway::exchange::Exchange;
use crate::limit::{LimitState, Now};

/// Asks for whole content without a coding: a client could hide its cost in any other.
pub(crate) fn request_readable(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers.remove(RANGE);
    headers.remove(IF_RANGE);
}

/// Charges the costs from `response` to the limits that wait for them. A drain waits for that, as long as it is
/// `unfinished`. If the client leaves, its content is read for as long as the `timeout` of the response's head.
pub(crate) async fn settle(
    response: Response<Body>,
    exchange: &mut Exchange,
    unfinished: InFlightCall,
    timeout: Duration,
) -> Response<Body> {
    let moment = Now::of(exchange.clock());
    exchange.limit_state.settle_by_head(response.headers(), moment);
    let is_success = response.status().is_success();
    let response = match exchange.limit_state.max_content_of_costs() {
        Some(max_size) if is_json(response.headers()) => {
            read_content(response, max_size, exchange, unfinished, timeout).await
        }
        _ => response,
    };
    if is_success && exchange.limit_state.has_unsettled() {
        exchange.warn_of_untold_cost();
    }
    response
}

/// Reads up to `max_size` bytes of content, and charges the costs in it if that is all.
///
/// A task of its own does it: when the client leaves, the exchange is dropped, and the cost is charged all the same. Such a
/// request is not in flight any more; its content is read for `timeout` at most, and that of few: the client gets none of
/// it, and could otherwise hold the service with one packet.
async fn read_content(
    response: Response<Body>,
    max_size: usize,
    exchange: &mut Exchange,
    unfinished: InFlightCall,
    timeout: Duration,
) -> Response<Body> {
    let (head, body) = response.into_parts();
    let is_buffered = body.is_buffered();
    let settlement = Settlement {
        limit_state: core::mem::take(&mut exchange.limit_state),
        clock: exchange.clock().clone(),
        _unfinished: unfinished,
    };
    let settling = settlement.settle(body, max_size);
    let settled = if is_buffered {
        Ok(Some((settling.await, exchange.in_flight.take())))
    } else {
        let (_client, left) = oneshot::channel::<Infallible>();
        let in_flight = exchange.in_flight.take();
        let task = async move {
            let mut settling = pin!(settling);
            tokio::select! {
                biased;
                settled = &mut settling => return Some((settled, in_flight)),
                _ = left => {}
            }
            drop(in_flight);
            if let Some(_permit) = AbandonedContent::begin() {
                // If the content takes longer, the cost that was charged beforehand stays.
                _ = tokio::time::timeout(timeout, settling).await;
            }
            None
        };
        exchange.measured(spawn_local(task)).await
    };
    match settled {
        Ok(Some(((settlement, body), in_flight))) => {
            exchange.limit_state = settlement.limit_state;
            exchange.in_flight = in_flight;
            Response::from_parts(head, body)
        }
        Ok(None) => unreachable!("the client is still there"),
        // A panic of the task fails the request, as if there were no task.
        Err(failed) => resume_unwind(failed.into_panic()),
    }
}

thread_local! {
    /// The responses of this worker that are read although their clients have left.
    static ABANDONED: Cell<usize> = const { Cell::new(0) };
}

/// A permit for reading a response although its client has left.
struct AbandonedContent;

impl AbandonedContent {
    /// Returns a permit for one more, if there is one.
    fn begin() -> Option<Self> {
        let all = ABANDONED.get();
        (all < MAX_ABANDONED).then(|| {
            ABANDONED.set(all + 1);
            Self
        })
    }
}

impl Drop for AbandonedContent {
    fn drop(&mut self) {
        ABANDONED.set(ABANDONED.get() - 1);
    }
}

/// The most responses of a worker that are read although their clients have left.
const MAX_ABANDONED: usize = 32;

/// The charge of a cost from the content.
struct Settlement {
    limit_state: LimitState,
    clock: Clock,
    _unfinished: InFlightCall,
}

impl Settlement {
    /// Reads up to `max_size` bytes of `body`, charges the costs in it if that is all, and returns the body to pass on.
    async fn settle(mut self, body: Body, max_size: usize) -> (Self, Body) {
        let read = ReadContent::read(body, max_size).await;
        let whole = read.whole();
        if let Some(content) = &whole {
            self.limit_state.settle_by_content(content, Now::of(&self.clock));
        }
        (self, read.into_body(whole))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let text = |value: &HeaderValue| value.to_str().unwrap_or_default().to_ascii_lowercase();
    let kind = headers.get(CONTENT_TYPE).map(text).unwrap_or_default();
    let kind = essence(&kind);
    let coding = headers.get(CONTENT_ENCODING).map(text).unwrap_or_default();
    (kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json")))
        && matches!(&*coding, "" | "identity")
}

/// Content of which the beginning was read.
struct ReadContent {
    frames: VecDeque<Result<Frame<Bytes>, body::Error>>,
    /// Whether that is all of it.
    is_whole: bool,
    /// The announced length of the content that is still to be passed on, if its end is missing.
    broken: Option<SizeHint>,
    rest: Body,
}

impl ReadContent {
    async fn read(mut rest: Body, max_size: usize) -> Self {
        let (mut frames, mut size, mut is_whole) = (VecDeque::new(), 0, false);
        let (announced, mut broken) = (rest.size_hint(), None);
        if announced.lower() <= max_size as u64 {
            while size <= max_size {
                let Some(frame) = rest.frame().await else {
                    is_whole = true;
                    break;
                };
                size += frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                broken = frame.is_err().then_some(announced);
                frames.push_back(frame);
                if broken.is_some() {
                    break;
                }
            }
        }
        Self { frames, is_whole: is_whole && size <= max_size, broken, rest }
    }

    fn data(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().filter_map(|frame| frame.as_ref().ok()?.data_ref())
    }

    /// Returns the content, if all of it was read.
    fn whole(&self) -> Option<Bytes> {
        self.is_whole.then(|| self.data().flatten().copied().collect())
    }

    /// Returns the body to pass on, of which `whole` is the content if that is known.
    fn into_body(mut self, whole: Option<Bytes>) -> Body {
        let only_data = self.frames.iter().all(|frame| frame.as_ref().is_ok_and(Frame::is_data));
        match whole {
            Some(whole) if only_data => return whole.into(),
            _ if self.frames.is_empty() => return self.rest,
            _ => self.frames.shrink_to_fit(),
        }
        let cut = self.rest.cut();
        Body::streaming(self).with_cut(cut)
    }
}

impl http_body::Body for ReadContent {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        match this.frames.pop_front() {
            Some(frame) => {
                let passed = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
                if let Some(left) = this.broken.as_ref().and_then(SizeHint::exact) {
                    this.broken = Some(SizeHint::with_exact(left.saturating_sub(passed as u64)));
                }
                Poll::Ready(Some(frame))
            }
            None => Pin::new(&mut this.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What was read is not the length of content whose end is missing.
        if let Some(announced) = &self.broken {
            return *announced;
        }
        let read: u64 = self.data().map(|data| data.len() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + read);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + read);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn broken_content_has_its_announced_length_and_ends_in_the_error() {
        for announced in [Some(100), None] {
            let read = ReadContent::read(broken_off(announced), 1_000).await;

            assert_eq!(read.whole(), None);
            let mut body = read.into_body(None);
            assert_eq!(body.size_hint().exact(), announced);
            let first = body.frame().await.expect("a frame").expect("data");
            assert_eq!(first.into_data().expect("data"), "{\"n\":50,");
            assert_eq!(body.size_hint().exact(), announced.map(|length| length - 8));
            assert!(!body.is_end_stream());
            assert!(body.frame().await.expect("an end").is_err());
        }
    }

    #[tokio::test]
    async fn content_that_breaks_off_before_its_first_byte_is_not_empty() {
        let frames = stream::iter([Err(body::Error::from("reset"))]);
        let broken = Body::streaming(StreamBody::new(frames));

        let mut body = ReadContent::read(broken, 1_000).await.into_body(None);

        assert_eq!(body.size_hint().exact(), None);
        assert!(!body.is_end_stream());
        assert!(body.frame().await.expect("an end").is_err());
    }

    /// Returns content of eight bytes that ends in an error, and then claims to have no more, as that of an upstream does.
    fn broken_off(announced: Option<u64>) -> Body {
        let data = Ok(Frame::data(Bytes::from_static(b"{\"n\":50,")));
        let frames = VecDeque::from([data, Err(body::Error::from("reset"))]);
        Body::streaming(BrokenOff { frames, announced })
    }

    struct BrokenOff {
        frames: VecDeque<Result<Frame<Bytes>, body::Error>>,
        announced: Option<u64>,
    }

    impl http_body::Body for BrokenOff {
        type Data = Bytes;
        type Error = body::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
            Poll::Ready(self.get_mut().frames.pop_front())
        }

        fn is_end_stream(&self) -> bool {
            self.frames.is_empty()
        }

        fn size_hint(&self) -> SizeHint {
            match self.announced {
                _ if self.frames.is_empty() => SizeHint::with_exact(0),
                Some(announced) => SizeHint::with_exact(announced),
                None => SizeHint::default(),
            }
        }
    }
}
