//! From start to end: startup, reload, readiness, state on disk.

pub(crate) mod readiness;
pub(crate) mod reload;
pub(crate) mod restart;
pub(crate) mod startup;
pub(crate) mod state_persistence;
