//! Decodes a body from a connection's read buffer, by its framing.

use bytes::BytesMut;

use super::chunked::{ChunkEvent, Chunked, InvalidChunk};

/// The framing of a received body (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// `Content-Length`, in bytes.
    Length(u64),
    /// The chunked coding.
    Chunked,
    /// Until the connection closes; for responses only.
    UntilClose,
}

/// The state of decoding one body.
#[derive(Debug)]
pub enum Decoder {
    /// The number of remaining bytes.
    Length(u64),
    /// The remaining chunks.
    Chunked(Chunked),
    /// Everything until the connection closes.
    UntilClose,
}

impl Decoder {
    /// Creates a decoder for the whole body of a request.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::default()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Creates a decoder for the whole body of a response, whose chunk sizes may be padded.
    pub fn of_response(framing: Framing) -> Self {
        match framing {
            Framing::Chunked => Self::Chunked(Chunked::of_response()),
            framing => Self::new(framing),
        }
    }

    /// Whether the body has ended.
    pub const fn is_over(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.is_over(),
            Self::UntilClose => false,
        }
    }

    /// Decodes the next part at the front of `read`.
    ///
    /// # Errors
    ///
    /// [`InvalidChunk`] if the body is not in its coding.
    pub fn take(&mut self, read: &mut BytesMut) -> Result<ChunkEvent, InvalidChunk> {
        match self {
            Self::Chunked(chunked) => chunked.decode(read),
            Self::Length(0) => Ok(ChunkEvent::End(http::HeaderMap::new())),
            _ if read.is_empty() => Ok(ChunkEvent::Partial),
            Self::Length(left) => {
                let taken = (*left).min(read.len() as u64);
                *left -= taken;
                Ok(ChunkEvent::Data(read.split_to(taken as usize).freeze()))
            }
            Self::UntilClose => Ok(ChunkEvent::Data(read.split().freeze())),
        }
    }
}
