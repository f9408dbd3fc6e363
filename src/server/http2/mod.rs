//! HTTP/2 protections that hyper lacks: frame floods, stalled streams, and fragments in targets.

pub(crate) mod flood_guard;
pub(crate) mod hpack;
pub(crate) mod stall_timeout;
