//! A cache of parsed field names.

use http::HeaderName;
use http::header::InvalidHeaderName;

/// The field names of a connection's last head. A peer sends the same names in the same order again
/// and again, and comparing with them is cheaper than parsing.
#[derive(Debug, Default)]
pub struct HeaderNameCache(Vec<(Box<[u8]>, HeaderName)>);

impl HeaderNameCache {
    /// Returns the name in `bytes`, which is the field number `index` of its head.
    ///
    /// # Errors
    ///
    /// An error if `bytes` is not a field name.
    pub fn parse(&mut self, index: usize, bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
        if let Some((came, name)) = self.0.get(index)
            && **came == *bytes
        {
            return Ok(name.clone());
        }
        let name = HeaderName::from_bytes(bytes)?;
        self.0.truncate(index);
        // Bounded, so that a peer cannot fill memory with invented names.
        if self.0.len() == index && index < MAX_CACHED_NAMES && bytes.len() <= MAX_CACHED_NAME_BYTES
        {
            self.0.push((bytes.into(), name.clone()));
        }
        Ok(name)
    }
}

const MAX_CACHED_NAMES: usize = 32;
const MAX_CACHED_NAME_BYTES: usize = 64;
