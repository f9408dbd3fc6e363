//! An idle timeout whose timer is set lazily, since most bodies never wait.

use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, ready};
use core::time::Duration;

use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

/// A timeout that elapses after a wait of `limit`; never without one.
///
/// Most waits are short and repeated, so the timer is not reset for each wait: it
/// fires for the first one, finds a later one, and is set to the end of that.
#[derive(Debug, Default)]
pub struct IdleTimeout {
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// The deadline of the current wait.
    until: Option<Instant>,
}

impl IdleTimeout {
    /// Creates a timeout of `limit` per wait.
    pub const fn new(limit: Option<Duration>) -> Self {
        Self { limit, sleep: None, until: None }
    }

    /// Sets `limit` for future waits, and for a wait that began at `since`.
    pub fn start(&mut self, limit: Duration, since: Instant) {
        self.limit = Some(limit);
        self.until = since.checked_add(limit);
    }

    /// Polls the current wait. The first call after [`IdleTimeout::stopped`] begins a new one.
    ///
    /// The timer is polled whatever the task has used of its budget: a peer that always has more to read cannot hold
    /// the timeout up.
    pub fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.is_elapsed() || sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        loop {
            ready!(pin!(unconstrained(sleep.as_mut())).poll(cx));
            if sleep.deadline() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }

    /// Ends the current wait, because the awaited event has occurred.
    pub const fn stopped(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use core::future::poll_fn;

    use tokio::task::coop;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_above_the_limit_elapses() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(5)));
        let began = Instant::now();

        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_has_used_its_budget_finds_that_the_limit_has_passed() {
        let mut alarm = IdleTimeout::new(None);
        alarm.start(Duration::from_secs(5), Instant::now());
        tokio::time::advance(Duration::from_secs(6)).await;

        let polled = poll_fn(|cx| {
            while coop::has_budget_remaining() {
                let _ = pin!(coop::consume_budget()).poll(cx);
            }
            Poll::Ready(alarm.poll_elapsed(cx))
        });

        assert_eq!(polled.await, Poll::Ready(()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_in_time_begins_a_new_wait() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(5)));
        let began = Instant::now();

        for _ in 0..3 {
            let waited =
                tokio::time::timeout(Duration::from_secs(4), poll_fn(|cx| alarm.poll_elapsed(cx)))
                    .await;
            assert!(waited.is_err(), "the timeout must not elapse");
            alarm.stopped();
        }
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 17);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_limit_elapses_in_time_after_a_longer_one() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(60)));
        let waited =
            tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| alarm.poll_elapsed(cx)))
                .await;
        assert!(waited.is_err(), "the timeout must not elapse");
        let began = Instant::now();

        alarm.start(Duration::from_secs(5), began);
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn an_elapsed_timeout_can_be_used_again() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(5)));
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;
        let began = Instant::now();

        alarm.stopped();
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_without_a_limit_never_elapses() {
        let mut alarm = IdleTimeout::new(None);
        let rang = tokio::time::timeout(
            Duration::from_secs(1_000_000),
            poll_fn(|cx| alarm.poll_elapsed(cx)),
        )
        .await;

        assert!(rang.is_err());
    }
}
