//! The properties of what an upstream sends in HTTP/2 that the fuzz target checks for any bytes.

use super::frame_monitor;
use super::health;

/// Scans frames whole and in pieces of `piece` bytes, and compares the results. Decodes the bytes as the answer to a
/// health check as well.
pub fn frames(bytes: &[u8], piece: usize) {
    let whole = frame_monitor::outcome(bytes, bytes.len().max(1));
    let cut = frame_monitor::outcome(bytes, piece.max(1));
    assert_eq!(whole, cut);
    let _ = health::decode_status(bytes);
}
