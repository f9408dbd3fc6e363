//! Work that must not be cut off: a process that ends waits for it.

use core::fmt;
use core::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Counts what is under way. Clones count together.
#[derive(Clone, Default)]
pub struct InFlightCalls(watch::Sender<usize>);

/// One thing that is under way, until it is dropped.
#[derive(Debug)]
pub struct InFlightCall(InFlightCalls);

impl InFlightCalls {
    /// Something begins.
    pub fn begin(&self) -> InFlightCall {
        self.0.send_modify(|count| *count += 1);
        InFlightCall(self.clone())
    }

    /// Waits until nothing is under way, but no longer than `patience`. How much is left.
    pub async fn all_ended(&self, patience: Duration) -> usize {
        let mut count = self.0.subscribe();
        // Too late is told by the count.
        let _ = timeout(patience, count.wait_for(|count| *count == 0)).await;
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
    async fn an_end_waits_for_what_is_under_way_and_not_for_ever() {
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
