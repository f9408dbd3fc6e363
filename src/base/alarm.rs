//! A timer that is only set while somebody waits: most bodies never do.

use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Rings after a wait of `limit`; never without one.
#[derive(Debug, Default)]
pub struct Alarm {
    limit: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Alarm {
    /// An alarm that rings when a wait has lasted `limit`.
    pub const fn after(limit: Option<Duration>) -> Self {
        Self { limit, sleep: None, waiting: false }
    }

    /// Waits on. The first call after [`Alarm::still`] begins the wait.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(limit)));
        if !self.waiting {
            self.waiting = true;
            sleep.as_mut().reset(Instant::now() + limit);
        }
        sleep.as_mut().poll(cx)
    }

    /// What was waited for has come.
    pub const fn still(&mut self) {
        self.waiting = false;
    }
}

#[cfg(test)]
mod tests {
    use core::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn rings_when_one_wait_lasted_too_long() {
        let mut alarm = Alarm::after(Some(Duration::from_secs(5)));
        let began = Instant::now();

        poll_fn(|cx| alarm.poll(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_in_time_begins_a_new_wait() {
        let mut alarm = Alarm::after(Some(Duration::from_secs(5)));
        let began = Instant::now();

        for _ in 0..3 {
            let waited =
                tokio::time::timeout(Duration::from_secs(4), poll_fn(|cx| alarm.poll(cx))).await;
            assert!(waited.is_err(), "it must not have rung");
            alarm.still();
        }
        poll_fn(|cx| alarm.poll(cx)).await;

        assert_eq!(began.elapsed().as_secs(), 17);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_it_never_rings() {
        let mut alarm = Alarm::after(None);
        let rang =
            tokio::time::timeout(Duration::from_secs(1_000_000), poll_fn(|cx| alarm.poll(cx)))
                .await;

        assert!(rang.is_err());
    }
}
