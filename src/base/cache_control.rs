//! Age and freshness lifetime of a response (RFC 9111 §4.2, §5).

use http::HeaderMap;
use http::header::{AGE, CACHE_CONTROL};

/// Returns the seconds that a response had been stored elsewhere (RFC 9111 §5.1).
pub fn age(headers: &HeaderMap) -> u64 {
    headers.get(AGE).and_then(|age| age.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// Returns the seconds of the `Cache-Control` directive `name`, the fewest if it comes more than once; zero for a malformed
/// number, which allows nothing.
pub fn seconds(headers: &HeaderMap, name: &str) -> Option<u64> {
    let fields = headers.get_all(CACHE_CONTROL).iter().filter_map(|field| field.to_str().ok());
    let directives = fields.flat_map(|field| field.split(','));
    let seconds = directives.filter_map(|directive| {
        let (directive, value) = directive.split_once('=')?;
        let value = value.trim().trim_matches('"');
        directive.trim().eq_ignore_ascii_case(name).then(|| value.parse().unwrap_or(0))
    });
    seconds.min()
}
