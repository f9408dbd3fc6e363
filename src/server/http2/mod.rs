//! HTTP/2 besides what hyper does: protection from frame floods, stalled streams and fragments in targets, and WebSockets.

pub(crate) mod flood_guard;
pub(crate) mod hpack;
pub(super) mod request_target;
pub(crate) mod stall_timeout;
pub(super) mod websocket;
