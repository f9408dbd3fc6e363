//! Entry points of the fuzz targets of this module.

pub use super::http1::fuzz::requests;
use super::http2::{flood_guard, raw_targets};
pub use super::proxy_protocol::header as proxy_header;

/// Checks that neither the counts of frames nor the bytes that h2 reads depend on how reads split the frames of a
/// client.
pub fn client_frames(bytes: &[u8], piece: usize) {
    flood_guard::frames(bytes, piece);
    raw_targets::in_pieces(bytes, piece);
}
