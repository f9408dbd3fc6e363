//! Field names that come again and again.

use http::HeaderName;
use http::header::InvalidHeaderName;

/// The names of a connection's last head, as they came. A peer says the same ones in the same order again
/// and again, and to find a name here is cheaper than to parse it.
#[derive(Debug, Default)]
pub struct HeaderNameCache(Vec<(Box<[u8]>, HeaderName)>);

impl HeaderNameCache {
    /// The name in `bytes`, which stands at this `place` of its head.
    ///
    /// # Errors
    ///
    /// It is no field name.
    pub fn parse(&mut self, place: usize, bytes: &[u8]) -> Result<HeaderName, InvalidHeaderName> {
        if let Some((came, name)) = self.0.get(place)
            && **came == *bytes
        {
            return Ok(name.clone());
        }
        let name = HeaderName::from_bytes(bytes)?;
        self.0.truncate(place);
        // A peer that makes names up fills no memory with them.
        if self.0.len() == place && place < MAX_CACHED_NAMES && bytes.len() <= MAX_CACHED_NAME_BYTES
        {
            self.0.push((bytes.into(), name.clone()));
        }
        Ok(name)
    }
}

const MAX_CACHED_NAMES: usize = 32;
const MAX_CACHED_NAME_BYTES: usize = 64;
