//! A timer that is only set while somebody waits: most bodies never do.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, ready};
use core::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Rings after a wait of `limit`; never without one.
///
/// What waits mostly waits briefly and again and again, so the timer is not set anew for each wait: it
/// rings for the first one, finds that there is a later one, and is set to the end of that.
#[derive(Debug, Default)]
pub struct IdleTimeout {
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    /// When the wait that goes on has lasted too long.
    until: Option<Instant>,
}

impl IdleTimeout {
    /// An alarm that rings when a wait has lasted `limit`.
    pub const fn new(limit: Option<Duration>) -> Self {
        Self { limit, sleep: None, until: None }
    }

    /// Makes `limit` the bound of the waits to come, and of one that has begun at `since`.
    pub fn start(&mut self, limit: Duration, since: Instant) {
        self.limit = Some(limit);
        self.until = since.checked_add(limit);
    }

    /// Waits on. The first call after [`IdleTimeout::stopped`] begins the wait.
    pub fn poll_elapsed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.is_elapsed() || sleep.deadline() > until {
            sleep.as_mut().reset(until);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= until {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(until);
        }
    }

    /// What was waited for has come.
    pub const fn stopped(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use core::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rings_when_one_wait_lasted_too_long() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(5)));
        let began = Instant::now();

        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_time_begins_a_new_wait() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(5)));
        let began = Instant::now();

        for _ in 0..3 {
            let waited =
                tokio::time::timeout(Duration::from_secs(4), poll_fn(|cx| alarm.poll_elapsed(cx)))
                    .await;
            assert!(waited.is_err(), "it must not have rung");
            alarm.stopped();
        }
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 17);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_limit_rings_in_time_although_the_timer_was_set_for_a_longer_one() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(60)));
        let waited =
            tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| alarm.poll_elapsed(cx)))
                .await;
        assert!(waited.is_err(), "it must not have rung");
        let began = Instant::now();

        alarm.start(Duration::from_secs(5), began);
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn once_rung_it_can_be_waited_with_again() {
        let mut alarm = IdleTimeout::new(Some(Duration::from_secs(5)));
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;
        let began = Instant::now();

        alarm.stopped();
        poll_fn(|cx| alarm.poll_elapsed(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_never_rings() {
        let mut alarm = IdleTimeout::new(None);
        let rang = tokio::time::timeout(
            Duration::from_secs(1_000_000),
            poll_fn(|cx| alarm.poll_elapsed(cx)),
        )
        .await;

        assert!(rang.is_err());
    }
}
