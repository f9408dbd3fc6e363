//! Trailer fields (RFC 9110 §6.5).

use http::HeaderName;

/// Whether a field is allowed in a trailer section: it must not affect framing, routing,
/// authentication or state (RFC 9110 §6.5.1).
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
    ];
    let name_is = |names: &[&str]| names.contains(&name.as_str());
    let begins = |with: &str| name.as_str().replace('_', "-").starts_with(with);
    !forbidden.contains(name)
        && !name_is(&["keep-alive", "proxy-connection", "http2-settings"])
        && !name_is(&["content_length", "transfer_encoding"])
        && !begins("x-forwarded-")
        && !begins("x-auth-")
}
