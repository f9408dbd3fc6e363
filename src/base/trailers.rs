//! Trailer fields (RFC 9110 §6.5).

use core::mem::take;

use http::{HeaderMap, HeaderName};

/// Fields of a trailer section that is received.
pub const MAX_TRAILER_FIELDS: usize = 64;
/// Bytes of a trailer section that is received.
pub const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// Whether a field is allowed in a trailer section: it must not affect framing, routing,
/// authentication or state (RFC 9110 §6.5.1), nor replace what the gateway says in the header section of a response.
pub fn is_allowed_trailer(name: &HeaderName) -> bool {
    use http::header as h;
    let forbidden = [
        h::CONTENT_LENGTH,
        h::TRANSFER_ENCODING,
        h::HOST,
        h::CONNECTION,
        h::TE,
        h::TRAILER,
        h::UPGRADE,
        h::AUTHORIZATION,
        h::PROXY_AUTHORIZATION,
        h::PROXY_AUTHENTICATE,
        h::WWW_AUTHENTICATE,
        h::COOKIE,
        h::SET_COOKIE,
        h::CONTENT_ENCODING,
        h::CONTENT_TYPE,
        h::CONTENT_RANGE,
        h::CACHE_CONTROL,
        h::EXPECT,
        h::MAX_FORWARDS,
        h::RANGE,
        h::LOCATION,
        h::RETRY_AFTER,
        h::VARY,
        h::AGE,
        h::DATE,
        h::EXPIRES,
        h::FORWARDED,
        h::VIA,
        h::SERVER,
        h::STRICT_TRANSPORT_SECURITY,
        h::CONTENT_SECURITY_POLICY,
        h::X_CONTENT_TYPE_OPTIONS,
        h::X_FRAME_OPTIONS,
        h::REFERRER_POLICY,
    ];
    let name_is = |names: &[&str]| names.contains(&name.as_str());
    let begins = |with: &str| name.as_str().replace('_', "-").starts_with(with);
    !forbidden.contains(name)
        && !name_is(&["keep-alive", "proxy-connection", "http2-settings"])
        && !name_is(&["content_length", "transfer_encoding"])
        && !name_is(&["ratelimit", "ratelimit-policy", "dpop-nonce"])
        && !begins("x-forwarded-")
        && !begins("x-auth-")
}

/// Removes the fields that are not allowed in a trailer section.
pub fn remove_forbidden(trailers: &mut HeaderMap) {
    if trailers.keys().all(is_allowed_trailer) {
        return;
    }
    let mut last = None;
    for (name, value) in take(trailers) {
        last = name.or(last);
        if let Some(name) = last.as_ref().filter(|name| is_allowed_trailer(name)) {
            trailers.append(name, value);
        }
    }
}
