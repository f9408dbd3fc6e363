//! The state of the process that exchanges keep until their responses have ended.

use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::retained_state::RetainedState;
use crate::observe::log::AccessLog;

/// The retained state, the access log, and the count of requests in flight.
#[derive(Debug)]
pub struct ProcessState {
    /// The state that outlives every reload.
    pub(super) retained: RetainedState,
    pub(super) log: AccessLog,
    in_flight: AtomicUsize,
}

impl ProcessState {
    pub(super) const fn new(retained: RetainedState, log: AccessLog) -> Self {
        Self { retained, log, in_flight: AtomicUsize::new(0) }
    }
}

/// A permit for one request in flight, released when dropped.
#[derive(Debug)]
pub(super) struct RequestPermit(Arc<ProcessState>);

impl RequestPermit {
    /// Takes a permit unless `max` requests are in flight.
    pub(super) fn acquire(process: &Arc<ProcessState>, max: Option<usize>) -> Option<Self> {
        let permit = Self(Arc::clone(process));
        let before = process.in_flight.fetch_add(1, Relaxed);
        max.is_none_or(|max| before < max).then_some(permit)
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}
