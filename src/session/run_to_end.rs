//! Work that goes on when its client leaves.
//!
//! A request ends with its connection, wherever it waits. A logout that has marked a session as ended, or a logout
//! token as used, must still revoke, and notify other instances: so it runs on the control runtime, as refreshes do.

use std::panic::resume_unwind;
use std::sync::Arc;

use super::Sessions;
use super::store::state::Id;

impl Sessions {
    /// Runs `work` to its end, even if the caller is dropped before. A shutdown waits for it.
    ///
    /// # Panics
    ///
    /// As `work` does: the request fails as if there were no task.
    pub(super) async fn run_to_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let under_way = self.revoker.under_way.begin();
        let task = self.control.spawn(async move {
            let _under_way = under_way;
            work.await
        });
        match task.await {
            Ok(done) => done,
            Err(failed) => resume_unwind(failed.into_panic()),
        }
    }

    /// Removes the session `id` from the store, even if the caller is dropped before.
    pub(super) async fn forget(&self, id: Id) {
        let storage = Arc::clone(&self.storage);
        self.run_to_end(async move { storage.forget(id).await }).await;
    }
}
