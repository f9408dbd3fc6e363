//! The state that all threads share.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::process_state::ProcessState;
use super::retained_state::RetainedState;
use super::snapshot::Snapshot;
use crate::observe::log::AccessLog;
use crate::upstream;

/// The state that all threads share.
#[derive(Debug)]
pub struct Shared {
    /// The snapshot that new requests use.
    pub snapshot: ArcSwap<Snapshot>,
    pub(super) process: Arc<ProcessState>,
}

impl Shared {
    /// Serves from `snapshot` until it is replaced.
    pub fn new(snapshot: Snapshot, retained: RetainedState, log: AccessLog) -> Self {
        upstream::maintain(&retained.upstreams, snapshot.upstreams.iter(), &retained.control);
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            process: Arc::new(ProcessState::new(retained, log)),
        }
    }

    /// Returns the state that outlives every reload.
    pub fn retained(&self) -> &RetainedState {
        &self.process.retained
    }

    /// Serves new requests from `snapshot`; requests under way keep theirs to their end.
    pub fn replace(&self, snapshot: Snapshot) {
        let retained = self.retained();
        upstream::maintain(&retained.upstreams, snapshot.upstreams.iter(), &retained.control);
        self.snapshot.store(Arc::new(snapshot));
    }
}
