//! The state of the gateway on one thread.

use crate::base::in_flight::InFlightCalls;
use crate::upstream::IdlePool;

use super::proxy::stream_guard::StreamRegistry;

/// The idle upstream connections and the open streams of one thread. Cheap to clone; deliberately not `Send`.
#[derive(Clone, Debug, Default)]
pub(crate) struct ThreadState {
    pub(super) idle: IdlePool,
    pub(super) streams: StreamRegistry,
    /// Work of this thread's requests that goes on when their clients have left.
    pub(super) unfinished: InFlightCalls,
}
