//! Refreshing tokens: once per session, whatever number of requests and gateways need it.

pub(crate) mod decision;
pub(crate) mod events;
pub(crate) mod refresher;
