//! Protection against cross-site request forgery (CSRF).
//!
//! `SameSite` stops most forged requests, but not those of a sibling host, and
//! not in every browser. So an unsafe request must prove that a page of this
//! origin sent it. This is checked before the session is loaded or refreshed:
//! a cross-site page cannot even cause a refresh.

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderName, Method};
use subtle::ConstantTimeEq;
use url::Url;

use super::cookie::Cookie;
use super::origin::{OwnOrigin, RequestOrigin, single_value};
use crate::session::settings::Csrf;

/// Checks whether a request with the gateway's cookies may come from a page of this origin, by its head.
///
/// # Errors
///
/// [`CrossSite`] if another site's page may have sent it.
pub(crate) fn check(
    csrf: Csrf,
    own_origin: &OwnOrigin,
    token: &Cookie,
    request: &Parts,
) -> Result<(), CrossSite> {
    if is_exempt(request) {
        return Ok(());
    }
    let handshake = opens_tunnel(request);
    match csrf {
        Csrf::Off => Ok(()),
        // A page cannot add header fields to a handshake, but browsers always send `Origin` with it.
        Csrf::Token if !handshake => {
            let header = single_value(&request.headers, &HEADER).ok().flatten();
            let header = header.ok_or(CrossSite)?;
            let cookies = token.find(&request.headers);
            let repeats = |cookie: &str| bool::from(cookie.as_bytes().ct_eq(header.as_bytes()));
            // Which of several cookies is the gateway's shows when the session is known: that of `header` has its mark.
            if cookies.plain_values().any(repeats) { Ok(()) } else { Err(CrossSite) }
        }
        Csrf::Strict | Csrf::Token => match own_origin.request_origin(request) {
            RequestOrigin::SameOrigin => Ok(()),
            RequestOrigin::Unknown if handshake => Ok(()),
            _ => Err(CrossSite),
        },
    }
}

/// Whether a cookie with a token that the gateway did not set may authenticate a request: one that is safe, or that
/// comes from a page of the host that it names.
pub(crate) fn token_cookie_may_be_used(request: &Parts) -> bool {
    // No origin is configured for such a cookie: only the host of the request itself counts.
    let Ok(nowhere) = Url::parse("https://unknown.invalid") else { return false };
    is_exempt(request)
        || OwnOrigin::new(&nowhere, false).request_origin(request) == RequestOrigin::SameOrigin
}

/// Whether the request is safe (RFC 9110 §9.2.1), and so may come from any site.
pub(crate) fn is_exempt(request: &Parts) -> bool {
    request.method.is_safe() && !opens_tunnel(request)
}

/// The request may come from another site's page.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the request may come from another site")]
pub(crate) struct CrossSite;

/// Whether the request opens a WebSocket or another tunnel, by HTTP/1.1 upgrade or HTTP/2 CONNECT.
fn opens_tunnel(request: &Parts) -> bool {
    request.method == Method::CONNECT
        || request.headers.contains_key(UPGRADE) && request.headers.contains_key(CONNECTION)
}

/// The request field that repeats the CSRF cookie when [`Csrf::Token`] is on.
pub const HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

#[cfg(test)]
mod tests {
    use http::request::Builder;
    use url::Url;

    use super::*;
    use crate::session::settings;

    fn check(csrf: Csrf, request: Builder) -> Result<(), CrossSite> {
        let own_origin = OwnOrigin::new(&Url::parse("https://www.example.com").unwrap(), true);
        let token = Cookie::readable(&settings::Cookie::default(), "web.csrf");
        super::check(csrf, &own_origin, &token, &request.body(()).unwrap().into_parts().0)
    }

    fn post() -> Builder {
        http::Request::post("/app").header("host", "www.example.com")
    }

    #[test]
    fn strict_requires_proof_of_the_same_origin() {
        let strict = |request| check(Csrf::Strict, request);

        assert!(strict(post().header("sec-fetch-site", "same-origin")).is_ok());
        assert!(strict(post().header("origin", "https://www.example.com")).is_ok());
        assert_eq!(strict(post()), Err(CrossSite));
        assert_eq!(strict(post().header("sec-fetch-site", "none")), Err(CrossSite));
        assert_eq!(strict(post().header("sec-fetch-site", "same-site")), Err(CrossSite));
        assert_eq!(strict(post().header("origin", "https://evil.example")), Err(CrossSite));
        assert_eq!(strict(post().method("PROPFIND")), Err(CrossSite));
    }

    #[test]
    fn safe_methods_need_no_proof() {
        for method in ["GET", "HEAD", "OPTIONS"] {
            let request = post().method(method).header("sec-fetch-site", "cross-site");
            assert!(check(Csrf::Strict, request).is_ok(), "{method}");
        }
    }

    #[test]
    fn cross_site_pages_open_no_web_socket() {
        let handshake =
            || post().method("GET").header("connection", "upgrade").header("upgrade", "websocket");
        for csrf in [Csrf::Strict, Csrf::Token] {
            assert!(check(csrf, handshake()).is_ok());
            assert!(check(csrf, handshake().header("origin", "https://www.example.com")).is_ok());
            assert_eq!(
                check(csrf, handshake().header("origin", "https://evil.example")),
                Err(CrossSite)
            );
        }
    }

    #[test]
    fn the_header_field_must_repeat_the_cookie() {
        let token = |request: Builder| check(Csrf::Token, request);
        let cookie = "__Host-web.csrf=abc";

        assert!(token(post().header("cookie", cookie).header("x-csrf-token", "abc")).is_ok());
        for (cookie, header) in [
            (cookie, "abd"),
            (cookie, ""),
            ("__Host-web.csrf=", ""),
            ("", "abc"),
            ("__Host-web.csrf=abd; __Host-web.csrf=abe", "abc"),
        ] {
            let request = post().header("cookie", cookie).header("x-csrf-token", header);
            assert_eq!(token(request), Err(CrossSite), "{cookie} {header}");
        }
        assert_eq!(token(post().header("cookie", cookie)), Err(CrossSite));
    }

    #[test]
    fn csrf_off_accepts_a_cross_site_request() {
        assert!(check(Csrf::Off, post().header("sec-fetch-site", "cross-site")).is_ok());
    }
}
