//! HTTP/2 streams whose client takes nothing (RFC 9113 §5.2).
//!
//! A client that grants no window holds an answer, its memory and a service's
//! connection without anything being stuck on the socket, which is what
//! [`connection_timeouts`](crate::server::pulse) watches. So each stream notes whose turn it is, and
//! is reset when the client has let its turn pass for too long. Its other
//! streams are none the worse for it.

use core::cell::{Cell, OnceCell, RefCell};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;
use std::rc::Rc;

use crate::base::body::{Body, PollCut};
use crate::base::idle_timeout::IdleTimeout;

/// Whom one stream waits for.
#[derive(Debug, Default)]
pub(crate) struct StreamProgress {
    clients: Cell<bool>,
    /// Pieces of the answer that the client had room for.
    taken: Cell<u64>,
    /// What may end the answer while the client has no room for more of it.
    cut: OnceCell<Rc<dyn PollCut>>,
}

impl StreamProgress {
    /// The answer is there: the client must take it.
    pub(crate) fn is_client_fault(&self, answer: &Body) {
        self.clients.set(true);
        if let Some(cut) = answer.cut() {
            let _ = self.cut.set(cut);
        }
    }

    /// The client has room. If there is `more` at once it is its turn again, else ours.
    pub(crate) fn window_was_requested(&self, more: bool) {
        self.clients.set(more);
        self.taken.set(self.taken.get() + 1);
    }
}

/// Runs the streams of one connection on the worker's own thread, each as long as its client takes its turns.
#[derive(Clone, Debug)]
pub(crate) struct StallTimeoutExecutor {
    /// The stream that was begun and is not run yet: hyper does the one right after the other.
    next: Rc<RefCell<Option<Rc<StreamProgress>>>>,
    patience: Duration,
}

impl StallTimeoutExecutor {
    /// Streams whose clients may do nothing for `patience`.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { next: Rc::default(), patience }
    }

    /// A new stream: it is our turn.
    pub(crate) fn begin(&self) -> Rc<StreamProgress> {
        let turn = Rc::<StreamProgress>::default();
        *self.next.borrow_mut() = Some(Rc::clone(&turn));
        turn
    }
}

impl<F: Future + 'static> hyper::rt::Executor<F> for StallTimeoutExecutor {
    fn execute(&self, stream: F) {
        let turn = self.next.borrow_mut().take().unwrap_or_default();
        tokio::task::spawn_local(until_stalled(stream, turn, self.patience));
    }
}

/// Runs a stream to its end, or drops it, which resets it.
async fn until_stalled<F: Future>(stream: F, turn: Rc<StreamProgress>, patience: Duration) {
    let mut stream = pin!(stream);
    let (mut alarm, mut taken) = (IdleTimeout::new(Some(patience)), 0);
    poll_fn(|cx| {
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !turn.clients.get() || turn.taken.get() != taken {
            taken = turn.taken.get();
            alarm.stopped();
        }
        if turn.cut.get().is_some_and(|cut| cut.poll_cut(cx).is_ready()) {
            return Poll::Ready(());
        }
        if turn.clients.get() { alarm.poll_elapsed(cx) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go_of() {
        let (turn, began) = (Rc::<StreamProgress>::default(), Instant::now());
        turn.is_client_fault(&Body::empty());

        until_stalled(core::future::pending::<()>(), turn, Duration::from_secs(5)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_may_take_its_time_and_a_client_that_takes_a_little_too() {
        let (turn, began) = (Rc::<StreamProgress>::default(), Instant::now());
        let own = Rc::clone(&turn);
        let stream = async move {
            advance(Duration::from_secs(60)).await;
            own.is_client_fault(&Body::empty());
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(4)).await;
                own.window_was_requested(true);
            }
            own.window_was_requested(false);
            tokio::time::sleep(Duration::from_secs(60)).await;
        };

        until_stalled(stream, turn, Duration::from_secs(5)).await;

        assert_eq!(began.elapsed().as_secs(), 132);
    }
}
