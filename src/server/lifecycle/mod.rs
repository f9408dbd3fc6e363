//! The gateway's lifecycle: startup, reload, readiness, and saving state.

pub(crate) mod phase;
pub(crate) mod readiness;
pub(crate) mod reload;
pub(crate) mod restart_required;
pub(crate) mod startup;
pub(crate) mod state_persistence;
