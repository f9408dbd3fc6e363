//! A body as it comes: where it ends, and its pieces.

use bytes::BytesMut;

use super::chunked::{ChunkEvent, Chunked, InvalidChunk};

/// How the end of a body is told (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection; an answer's alone.
    UntilClose,
}

/// Takes a body off its connection's buffer.
#[derive(Debug)]
pub enum Decoder {
    /// So many more bytes.
    Length(u64),
    /// What is left of the chunks.
    Chunked(Chunked),
    /// Everything that comes.
    UntilClose,
}

impl Decoder {
    /// For a whole body.
    pub fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Chunked::default()),
            Framing::UntilClose => Self::UntilClose,
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

    /// Takes the next part off the front of `read`.
    ///
    /// # Errors
    ///
    /// [`InvalidChunk`] if it is not in its coding.
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
