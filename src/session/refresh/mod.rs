//! Token refresh: once per session, for any number of requests and instances.

pub(crate) mod decision;
pub(crate) mod events;
pub(crate) mod refresher;
pub(crate) mod results;
