//! The wait for other instances: whether a revocation outlives this process without a state directory.

use core::fmt;
use core::time::Duration;
use std::sync::Mutex;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::base::lock::IgnorePoison;
use crate::disk::WriteFailed;

/// The reason why the end of this process would undo a revocation that it has applied.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotLasting {
    /// It is not in the state directory.
    #[error(transparent)]
    NotWritten(#[from] WriteFailed),
    /// There is no state directory, and Redis does not have it yet.
    #[error("`redis`: the revocation could not be published, and there is no `server.state_dir`")]
    NotPublished,
}

/// Requests for the answer whether all revocations so far are published.
pub(crate) type PublicationRequests = mpsc::UnboundedReceiver<oneshot::Sender<bool>>;

/// The task that publishes revocations to other instances, if there is one.
#[derive(Default)]
pub(super) struct Publisher(Mutex<Option<mpsc::UnboundedSender<oneshot::Sender<bool>>>>);

impl Publisher {
    /// Asks a new publisher from now on, through the returned receiver, until that is dropped.
    pub(super) fn replace(&self) -> PublicationRequests {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.0.lock().ignore_poison() = Some(sender);
        receiver
    }

    /// Waits up to [`PUBLICATION_TIMEOUT`] until all revocations so far are published; returns whether they are. Without a
    /// publisher there is nothing to wait for.
    pub(super) async fn has_published(&self) -> bool {
        let (done, published) = oneshot::channel();
        let publisher = self.0.lock().ignore_poison().clone();
        let is_asked = publisher.is_some_and(|publisher| publisher.send(done).is_ok());
        !is_asked || matches!(timeout(PUBLICATION_TIMEOUT, published).await, Ok(Ok(true)))
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

/// Long enough for a command that Redis answers late.
const PUBLICATION_TIMEOUT: Duration = Duration::from_secs(1);
