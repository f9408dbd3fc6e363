//! Freshness of a fetched JWK set.

use core::time::Duration;

use http::header::CACHE_CONTROL;
use http::{HeaderMap, HeaderValue};

use crate::base::cache_control;

/// Returns the freshness lifetime of a response with `headers`: by `Cache-Control`, between
/// a minute and a day, else `default` (RFC 9111 §4.2.1).
pub(in crate::issuer) fn lifetime(headers: &HeaderMap, default: Duration) -> Duration {
    let forbids = |value: &HeaderValue| {
        let mut directives = value.to_str().unwrap_or_default().split(',').map(str::trim);
        directives.any(|directive| {
            FORBIDDING.iter().any(|forbidding| directive.eq_ignore_ascii_case(forbidding))
        })
    };
    let seconds = if headers.get_all(CACHE_CONTROL).iter().any(forbids) {
        Some(0)
    } else {
        cache_control::seconds(headers, "max-age")
    };
    let lifetime = seconds.map_or(default, |seconds| {
        Duration::from_secs(seconds.saturating_sub(cache_control::age(headers)))
    });
    lifetime.clamp(MIN_LIFETIME, MAX_LIFETIME)
}

/// Returns when to fetch again what is fresh for `lifetime`: well before it ends.
pub(in crate::issuer) fn refresh_after(lifetime: Duration) -> Duration {
    lifetime * 4 / 5
}

/// Directives that forbid any use without asking again.
const FORBIDDING: [&str; 2] = ["no-store", "no-cache"];
const MIN_LIFETIME: Duration = Duration::from_secs(60);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: Duration = Duration::from_secs(600);

    #[test]
    fn cache_control_is_respected_within_bounds() {
        let lifetime = |headers: &[(&str, &str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            super::lifetime(&headers, DEFAULT).as_secs()
        };

        assert_eq!(lifetime(&[]), 600);
        assert_eq!(lifetime(&[("cache-control", "public")]), 600);
        assert_eq!(lifetime(&[("cache-control", "public, max-age=3600")]), 3_600);
        assert_eq!(lifetime(&[("cache-control", "Max-Age=\"3600\"")]), 3_600);
        assert_eq!(lifetime(&[("cache-control", "max-age=3600"), ("age", "600")]), 3_000);
        assert_eq!(lifetime(&[("cache-control", "max-age=1")]), 60);
        assert_eq!(lifetime(&[("cache-control", "max-age=99999999")]), 86_400);
        assert_eq!(lifetime(&[("cache-control", "max-age=x")]), 60);
        assert_eq!(lifetime(&[("cache-control", "no-store")]), 60);
        assert_eq!(lifetime(&[("cache-control", "no-cache, max-age=3600")]), 60);
    }

    #[test]
    fn a_refresh_is_due_at_four_fifths_of_the_lifetime() {
        assert_eq!(refresh_after(DEFAULT), Duration::from_secs(480));
    }
}
