//! HTTP/2 besides what hyper does: protection from frame floods and stalled streams, request targets that no `Uri`
//! holds, and WebSockets.

pub(crate) mod flood_guard;
pub(crate) mod hpack;
mod huffman;
pub(super) mod raw_targets;
pub(super) mod request_target;
pub(crate) mod stall_timeout;
pub(super) mod websocket;

/// Bytes of the client connection preface (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// Flags of DATA and HEADERS (RFC 9113 §6.1, §6.2).
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
