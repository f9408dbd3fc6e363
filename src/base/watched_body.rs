//! A body whose frames an observer sees as they pass.

use core::pin::Pin;
use core::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::body::{self, Body};

/// The outcome of one poll of a body.
pub type Polled = Poll<Option<Result<Frame<Bytes>, body::Error>>>;

/// An observer of a body.
pub trait Watch: Unpin {
    /// Observes the outcome of a poll of `body`.
    fn polled(&mut self, polled: &Polled, body: &Body);

    /// Observes that `body` is dropped, at its end or before.
    fn dropped(&mut self, body: &Body) {
        let _ = body;
    }
}

/// A body with its observer, which changes nothing about it.
pub struct Watched<W: Watch> {
    body: Body,
    watch: W,
}

impl<W: Watch> Watched<W> {
    /// Lets `watch` observe `body`.
    pub const fn new(body: Body, watch: W) -> Self {
        Self { body, watch }
    }
}

impl<W: Watch> http_body::Body for Watched<W> {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        this.watch.polled(&polled, &this.body);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<W: Watch> Drop for Watched<W> {
    fn drop(&mut self) {
        self.watch.dropped(&self.body);
    }
}

impl<W: Watch> core::fmt::Debug for Watched<W> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Watched").field("body", &self.body).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use http_body::Body as _;

    use super::*;

    struct Log(Rc<RefCell<Vec<String>>>);

    impl Watch for Log {
        fn polled(&mut self, polled: &Polled, body: &Body) {
            let Poll::Ready(frame) = polled else { return };
            let data = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            self.0.borrow_mut().push(format!("{data:?}, end: {}", body.is_end_stream()));
        }

        fn dropped(&mut self, body: &Body) {
            self.0.borrow_mut().push(format!("dropped, end: {}", body.is_end_stream()));
        }
    }

    #[tokio::test]
    async fn an_observer_sees_every_frame_and_the_end() {
        let seen = Rc::<RefCell<Vec<String>>>::default();
        let watched = Watched::new(Body::from("one"), Log(Rc::clone(&seen)));
        assert_eq!(watched.size_hint().exact(), Some(3));

        let all = Body::streaming(watched).collect(100).await.expect("whole");

        assert_eq!(&*all, b"one");
        let seen = seen.borrow();
        assert_eq!(seen[0], r#"Some(b"one"), end: true"#);
        assert_eq!(seen.last().map(String::as_str), Some("dropped, end: true"));
    }
}
