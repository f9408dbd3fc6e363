//! Work of a thread's requests that goes on when their clients have left, and that a drain waits for.

use tokio::sync::watch;

/// The number of pieces of such work on one thread. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct DrainHolds(watch::Sender<usize>);

/// One piece of work, done when dropped.
#[derive(Debug)]
pub(super) struct DrainHold(DrainHolds);

impl DrainHolds {
    /// Begins a piece of work.
    pub(super) fn hold(&self) -> DrainHold {
        self.0.send_modify(|count| *count += 1);
        DrainHold(self.clone())
    }

    /// Waits until all work is done.
    pub(super) async fn released(&self) {
        // The sender is held here, so the wait cannot fail.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for DrainHold {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
