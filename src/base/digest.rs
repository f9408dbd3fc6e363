//! SHA-256 of several parts.

use aws_lc_rs::digest;

/// Returns the SHA-256 digest of `parts`, one after the other. Their boundaries are not part of it.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}
