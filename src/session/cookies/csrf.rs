//! CSRF: requests that another site's page makes a browser send, cookies and all.
//!
//! `SameSite` keeps most of them away, but not those of a sibling host, and
//! not in every browser. So a request that may change something must say that
//! a page of this origin sent it. This is decided before the session is read
//! or refreshed: a foreign page cannot even make a token rotate.

use http::header::{CONNECTION, UPGRADE};
use http::request::Parts;
use http::{HeaderName, Method};
use subtle::ConstantTimeEq;

use super::cookie::Cookie;
use super::origin::{OwnOrigin, RequestOrigin, only};
use crate::session::settings::Csrf;

/// Whether a request with our cookies may be ours, as far as its head tells.
///
/// # Errors
///
/// [`Foreign`] if another site's page may have sent it.
pub(crate) fn check(
    csrf: Csrf,
    home: &OwnOrigin,
    token: &Cookie,
    request: &Parts,
) -> Result<(), Foreign> {
    if is_free(request) {
        return Ok(());
    }
    let handshake = opens_a_stream(request);
    match csrf {
        Csrf::Off => Ok(()),
        // A handshake cannot carry a header of the page's, but browsers always send `RefreshOrigin` with it.
        Csrf::Token if !handshake => {
            let cookie = token.find(&request.headers).plain();
            let header = only(&request.headers, &HEADER).ok().flatten();
            match (cookie, header) {
                (Some(cookie), Some(header))
                    if bool::from(cookie.as_bytes().ct_eq(header.as_bytes())) =>
                {
                    Ok(())
                }
                _ => Err(Foreign),
            }
        }
        Csrf::Strict | Csrf::Token => match home.whence(request) {
            RequestOrigin::Here => Ok(()),
            RequestOrigin::Unsaid if handshake => Ok(()),
            _ => Err(Foreign),
        },
    }
}

/// Whether the request changes nothing, and so may come from anywhere.
pub(crate) fn is_free(request: &Parts) -> bool {
    request.method.is_safe() && !opens_a_stream(request)
}

/// A request that another site's page may have sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the request may come from another site")]
pub(crate) struct Foreign;

/// Whether the request asks for a WebSocket or the like, by HTTP/1.1 upgrade or HTTP/2 CONNECT.
fn opens_a_stream(request: &Parts) -> bool {
    request.method == Method::CONNECT
        || request.headers.contains_key(UPGRADE) && request.headers.contains_key(CONNECTION)
}

/// The field that repeats the cookie when [`Csrf::Token`] is on.
pub const HEADER: HeaderName = HeaderName::from_static("x-csrf-token");

#[cfg(test)]
mod tests {
    use http::request::Builder;
    use url::Url;

    use super::*;
    use crate::session::settings;

    fn check(csrf: Csrf, request: Builder) -> Result<(), Foreign> {
        let home = OwnOrigin::new(&Url::parse("https://www.example.com").unwrap(), true);
        let token = Cookie::readable(&settings::Cookie::default(), "web.csrf");
        super::check(csrf, &home, &token, &request.body(()).unwrap().into_parts().0)
    }

    fn post() -> Builder {
        http::Request::post("/app").header("host", "www.example.com")
    }

    #[test]
    fn strict_wants_to_hear_that_it_is_our_own_page() {
        let strict = |request| check(Csrf::Strict, request);

        assert!(strict(post().header("sec-fetch-site", "same-origin")).is_ok());
        assert!(strict(post().header("origin", "https://www.example.com")).is_ok());
        assert_eq!(strict(post()), Err(Foreign));
        assert_eq!(strict(post().header("sec-fetch-site", "none")), Err(Foreign));
        assert_eq!(strict(post().header("sec-fetch-site", "same-site")), Err(Foreign));
        assert_eq!(strict(post().header("origin", "https://evil.example")), Err(Foreign));
        assert_eq!(strict(post().method("PROPFIND")), Err(Foreign));
    }

    #[test]
    fn reading_is_free() {
        for method in ["GET", "HEAD", "OPTIONS"] {
            let request = post().method(method).header("sec-fetch-site", "cross-site");
            assert!(check(Csrf::Strict, request).is_ok(), "{method}");
        }
    }

    #[test]
    fn another_sites_page_opens_no_web_socket() {
        let handshake =
            || post().method("GET").header("connection", "upgrade").header("upgrade", "websocket");
        for csrf in [Csrf::Strict, Csrf::Token] {
            assert!(check(csrf, handshake()).is_ok());
            assert!(check(csrf, handshake().header("origin", "https://www.example.com")).is_ok());
            assert_eq!(
                check(csrf, handshake().header("origin", "https://evil.example")),
                Err(Foreign)
            );
        }
    }

    #[test]
    fn the_token_must_be_repeated() {
        let token = |request: Builder| check(Csrf::Token, request);
        let cookie = "__Host-web.csrf=abc";

        assert!(token(post().header("cookie", cookie).header("x-csrf-token", "abc")).is_ok());
        for (cookie, header) in [
            (cookie, "abd"),
            (cookie, ""),
            ("__Host-web.csrf=", ""),
            ("", "abc"),
            ("__Host-web.csrf=abc; __Host-web.csrf=abc", "abc"),
        ] {
            let request = post().header("cookie", cookie).header("x-csrf-token", header);
            assert_eq!(token(request), Err(Foreign), "{cookie} {header}");
        }
        assert_eq!(token(post().header("cookie", cookie)), Err(Foreign));
    }

    #[test]
    fn off_is_off() {
        assert!(check(Csrf::Off, post().header("sec-fetch-site", "cross-site")).is_ok());
    }
}
