//! Stall timeout of HTTP/2 streams whose client grants no window (RFC 9113 §5.2).
//!
//! Such a client holds a response, its memory and an upstream connection although nothing is blocked on the socket,
//! which is all that [`connection_timeouts`](crate::server::connection_timeouts) watches. Each stream therefore
//! records whether it waits for its client, and is reset if that takes too long. Other streams of the connection are
//! not affected.

use core::cell::{Cell, OnceCell};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::rc::Rc;

use crate::base::body::{Body, PollCut};
use crate::base::idle_timeout::IdleTimeout;

/// The progress of one stream.
#[derive(Debug, Default)]
pub(crate) struct StreamProgress {
    waits_for_client: Cell<bool>,
    /// Whether the response is a stream of messages.
    is_stream: Cell<bool>,
    /// Frames of the response that the client had window for.
    sent: Cell<u64>,
    /// The signal that may end the response while the client grants no window.
    cut: OnceCell<Rc<dyn PollCut>>,
}

impl StreamProgress {
    /// Records the response: the client must take it from now on. The client of a stream of messages (`is_stream`) may
    /// take as long as it likes.
    pub(crate) fn response_started(&self, response: &Body, is_stream: bool) {
        self.is_stream.set(is_stream);
        self.waits_for_client.set(!is_stream);
        if let Some(cut) = response.cut() {
            let _ = self.cut.set(cut);
        }
    }

    /// Records that the client granted window. If there is `more` to send at once, the stream waits for the client
    /// again.
    pub(crate) fn frame_polled(&self, more: bool) {
        self.waits_for_client.set(more && !self.is_stream.get());
        self.sent.set(self.sent.get() + 1);
    }
}

/// Runs a stream to its end, or drops it, which resets it.
pub(super) async fn until_stalled<F: Future>(
    stream: F,
    progress: Rc<StreamProgress>,
    timeout: Duration,
) {
    let mut stream = pin!(stream);
    let (mut stall, mut sent) = (IdleTimeout::new(Some(timeout)), 0);
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !progress.waits_for_client.get() || progress.sent.get() != sent {
            sent = progress.sent.get();
            stall.stopped();
        }
        if progress.cut.get().is_some_and(|cut| cut.poll_cut(cx).is_ready()) {
            return Poll::Ready(());
        }
        if progress.waits_for_client.get() { stall.poll_elapsed(cx) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_grants_no_window_is_reset() {
        let (progress, began) = (Rc::<StreamProgress>::default(), Instant::now());
        progress.response_started(&Body::empty(), false);

        until_stalled(core::future::pending::<()>(), progress, Duration::from_secs(5)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_upstream_and_a_slow_client_do_not_stall() {
        let (progress, began) = (Rc::<StreamProgress>::default(), Instant::now());
        let own = Rc::clone(&progress);
        let stream = async move {
            advance(Duration::from_secs(60)).await;
            own.response_started(&Body::empty(), false);
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                own.frame_polled(true);
            }
            own.frame_polled(false);
            tokio::time::sleep(Duration::from_secs(60)).await;
        };

        until_stalled(stream, progress, Duration::from_secs(5)).await;

        assert_eq!(began.elapsed().as_secs(), 132);
    }
}
