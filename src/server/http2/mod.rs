//! HTTP/2 server connections (RFC 9113). Start with [`connection::Connection`].
//!
//! `h2` speaks the protocol. Around it: a task for each stream (`stream`), its content (`request_content`), interim
//! responses (`responder`), protection from frame floods and stalled streams, request targets that no `Uri` holds, and
//! WebSockets.

pub(super) mod connection;
pub(crate) mod flood_guard;
pub(crate) mod hpack;
mod huffman;
pub(super) mod raw_targets;
mod request_content;
mod request_target;
mod responder;
mod stall_timeout;
pub(super) mod stream;
mod websocket;

/// Bytes of the client connection preface (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// Flags of DATA and HEADERS (RFC 9113 §6.1, §6.2).
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
