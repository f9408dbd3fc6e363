//! Token refresh: once per session, for any number of requests and instances.

pub(crate) mod decision;
pub(crate) mod refresh_events;
pub(crate) mod refresh_results;
pub(crate) mod refresher;
pub(super) mod renewal;
pub(crate) mod token_freshness;
