//! A counter of calls that a stopping process must wait for.

use core::fmt;
use core::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// The number of calls in flight. Clones share it.
#[derive(Clone, Default)]
pub struct InFlightCalls(watch::Sender<usize>);

/// One call in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlightCall(InFlightCalls);

impl InFlightCalls {
    /// Counts a call as in flight.
    pub fn begin(&self) -> InFlightCall {
        self.0.send_modify(|count| *count += 1);
        InFlightCall(self.clone())
    }

    /// Waits until no call is in flight, `time_limit` at most. Returns the number of remaining calls.
    pub async fn all_ended(&self, time_limit: Duration) -> usize {
        let mut count = self.0.subscribe();
        // A timeout shows in the returned number.
        let _ = timeout(time_limit, count.wait_for(|count| *count == 0)).await;
        *self.0.borrow()
    }
}

impl Drop for InFlightCall {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

impl fmt::Debug for InFlightCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UnderWay").field(&*self.0.borrow()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_calls_in_flight_is_bounded() {
        let work = InFlightCalls::default();
        assert_eq!(work.all_ended(Duration::ZERO).await, 0);
        let (one, other) = (work.begin(), work.begin());
        drop(one);
        assert_eq!(work.all_ended(Duration::from_secs(1)).await, 1);
        tokio::task::LocalSet::new()
            .run_until(async {
                let waiting = tokio::task::spawn_local({
                    let work = work.clone();
                    async move { work.all_ended(Duration::MAX).await }
                });
                tokio::task::yield_now().await;
                drop(other);
                assert_eq!(waiting.await.expect("no panic"), 0);
            })
            .await;
    }
}
