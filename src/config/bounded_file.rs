//! Reads a regular file of bounded size into memory; devices and pipes, which may never end, are refused.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Reads a file of at most `mebibytes`.
///
/// # Errors
///
/// If it cannot be read, or is larger.
pub(super) fn read(path: &Path, mebibytes: u64) -> io::Result<Vec<u8>> {
    let (mut bytes, max) = (Vec::new(), mebibytes << 20);
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {mebibytes} MiB")));
    }
    Ok(bytes)
}
