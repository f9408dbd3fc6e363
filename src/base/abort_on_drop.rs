//! A background task that ends with its owner.

use tokio::task::AbortHandle;

/// Aborts the task when dropped.
#[derive(Debug)]
pub struct AbortOnDrop(pub AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
