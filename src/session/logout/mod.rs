//! The end of sessions: logout at the gateway, at the issuer, and by back channel.

pub(crate) mod backchannel;
pub(crate) mod deferred_logout;
pub(crate) mod ended_sessions;
pub(crate) mod pending_revocations;
pub(crate) mod rp_initiated;
pub(crate) mod session_watch;
pub(crate) mod token_revocation;
pub(crate) mod unseen_logouts;
