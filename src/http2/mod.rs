//! Frames and streams of HTTP/2 (RFC 9113), for clients and upstreams alike (floor 1).
//!
//! The `h2` crate speaks the protocol. Here is what both sides add to it: the headers of frames as a scanner sees them,
//! and the content of a stream in either direction, with its flow control, or the bytes of one that was upgraded. Connections, and what a failure means, are
//! in `server` and `upstream`.

pub mod frames;
mod received_content;
mod sent_content;
mod upgraded_stream;

pub use self::received_content::{
    ContentError, DATA_FRAME_BUDGET, ReceivedContent, ReceivedContents, TrailerLimits,
};
pub use self::sent_content::send_content;
pub use self::upgraded_stream::UpgradedStream;
