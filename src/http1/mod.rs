//! The message syntax of HTTP/1.1 (RFC 9112), for clients and upstreams alike (floor 1).
//!
//! Bodies are decoded from a connection's bytes by a [`Decoder`] and written by
//! [`BodyWriter`]; neither opens, closes or keeps a connection. Heads are parsed
//! where their meaning is known: responses in `upstream`, requests in
//! `server`.

mod body_writer;
mod chunked;
mod decoder;
mod header_name_cache;
mod read_buffer_size;
mod upgrade;

pub use self::body_writer::{BodyWriter, Length, WriteError};
pub use self::chunked::{ChunkEvent, InvalidChunk, has_no_extensions};
pub use self::decoder::{Decoder, Framing};
pub use self::header_name_cache::HeaderNameCache;
pub use self::read_buffer_size::ReadBufferSize;
pub use self::upgrade::{OnUpgrade, Upgraded};
