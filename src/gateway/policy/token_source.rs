//! Access tokens in other places than `Authorization`, where the configuration says so.

use http::header::COOKIE;
use http::request::Parts;
use http::{HeaderMap, HeaderName};

use crate::base::header_fields::are_alike;
use crate::config::Config;
use crate::config::auth::TokenSource;
use crate::config::reserved_headers::remove_if;
use crate::gateway::Rejection;
use crate::session::{strip_cookies, token_cookie_may_be_used};

/// Returns the token of a request in the place of `source`; `None` if there is none.
///
/// # Errors
///
/// [`Rejection::MalformedCredentials`] if there are several, [`Rejection::CsrfRejected`] if a page of another site may
/// have made a browser send it in a cookie.
pub(super) fn find<'a>(
    source: &TokenSource,
    head: &'a Parts,
) -> Result<Option<&'a [u8]>, Rejection> {
    match source {
        TokenSource::Authorization => Ok(None),
        TokenSource::Header(name) => {
            // An empty field, as an empty cookie, is none.
            let mut fields = head.headers.get_all(name).iter().filter(|field| !field.is_empty());
            match (fields.next(), fields.next()) {
                (None, _) => Ok(None),
                (Some(field), None) => Ok(Some(without_scheme(field.as_bytes()))),
                _ => Err(Rejection::MalformedCredentials),
            }
        }
        TokenSource::Cookie(name) => {
            // An empty cookie is what a logout may leave; one for the host and one for its domain may have the same value.
            let named =
                |(found, value): &(&[u8], &[u8])| *found == name.as_bytes() && !value.is_empty();
            let mut values = cookies(&head.headers).filter(named).map(|(_, value)| value);
            let Some(value) = values.next() else { return Ok(None) };
            if values.any(|other| other != value) {
                return Err(Rejection::MalformedCredentials);
            }
            if token_cookie_may_be_used(head) {
                Ok(Some(value))
            } else {
                Err(Rejection::CsrfRejected)
            }
        }
    }
}

/// Some proxies write the scheme into fields of their own as well.
fn without_scheme(value: &[u8]) -> &[u8] {
    match value.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => {
            token.trim_ascii_start()
        }
        _ => value,
    }
}

/// The cookies of a request (RFC 6265 §4.2.1), without the quotes around a value.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let pairs =
        headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|b| *b == b';'));
    pairs.filter_map(|pair| {
        let at = pair.iter().position(|b| *b == b'=')?;
        let value = pair[at + 1..].trim_ascii();
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        Some((pair[..at].trim_ascii(), bare.unwrap_or(value)))
    })
}

/// The fields and cookies that carry tokens on some route: upstreams receive none of them, on no route.
#[derive(Debug, Default)]
pub(crate) struct TokenPlaces {
    headers: Vec<HeaderName>,
    cookies: Vec<Box<str>>,
}

impl TokenPlaces {
    /// Returns the places of all routes.
    pub(crate) fn of(config: &Config) -> Self {
        let mut places = Self::default();
        for auth_method in config.routes.iter().flat_map(|route| route.auth.methods()) {
            match auth_method.token_from.clone() {
                TokenSource::Authorization => {}
                TokenSource::Header(name) => places.headers.push(name),
                TokenSource::Cookie(name) => places.cookies.push(name),
            }
        }
        places
    }

    /// Returns the names of the fields.
    pub(crate) fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    /// Removes the tokens from what an upstream receives.
    pub(crate) fn strip(&self, headers: &mut HeaderMap) {
        if !self.headers.is_empty() {
            // Upstreams that translate fields to variables cannot distinguish `X-Access-Token` from `X_Access_Token`.
            remove_if(headers, |name| self.headers.iter().any(|own| are_alike(own, name)));
        }
        if !self.cookies.is_empty() {
            strip_cookies(headers, |name| self.cookies.iter().any(|ours| ours.as_bytes() == name));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn a_token_is_found_where_it_is_configured_and_nowhere_else() {
        let header = TokenSource::Header(HeaderName::from_static("x-access-token"));
        let cookie = TokenSource::Cookie("at".into());
        for (source, fields, expected) in [
            (&header, &[("x-access-token", "abc")][..], Ok(Some("abc"))),
            (&header, &[("x-access-token", "Bearer abc")][..], Ok(Some("abc"))),
            (&header, &[("authorization", "Bearer abc")][..], Ok(None)),
            (&header, &[("x-access-token", "")][..], Ok(None)),
            (&header, &[("x-access-token", ""), ("x-access-token", "a")][..], Ok(Some("a"))),
            (&header, &[("x-access-token", "a"), ("x-access-token", "b")][..], Err(())),
            (&cookie, &[("cookie", "a=b; at=abc; c=d")][..], Ok(Some("abc"))),
            (&cookie, &[("cookie", "at=\"abc\"")][..], Ok(Some("abc"))),
            (&cookie, &[("cookie", "AT=abc; xat=abc; at2=abc")][..], Ok(None)),
            (&cookie, &[("cookie", "at=a; at=b")][..], Err(())),
            (&cookie, &[("cookie", "at=abc; at=; at=abc")][..], Ok(Some("abc"))),
            (&cookie, &[("cookie", "at=")][..], Ok(None)),
            (&cookie, &[("cookie", "at=a"), ("cookie", "at=b")][..], Err(())),
        ] {
            let head = head("GET", fields);
            let found = find(source, &head).map_err(|_| ());
            assert_eq!(found, expected.map(|token| token.map(str::as_bytes)), "{fields:?}");
        }
    }

    #[test]
    fn a_cookie_is_no_credential_of_a_page_of_another_site() {
        let cookie = TokenSource::Cookie("at".into());
        for (method, site, good) in [
            ("GET", "cross-site", true),
            ("POST", "same-origin", true),
            ("POST", "cross-site", false),
            ("POST", "same-site", false),
            ("DELETE", "none", false),
            ("POST", "", false),
        ] {
            let mut fields = vec![("cookie", "at=abc")];
            if !site.is_empty() {
                fields.push(("sec-fetch-site", site));
            }
            assert_eq!(find(&cookie, &head(method, &fields)).is_ok(), good, "{method} {site}");
        }
        let handshake = [
            ("cookie", "at=abc"),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("origin", "https://evil.example"),
            ("host", "api.example.com"),
        ];
        assert!(find(&cookie, &head("GET", &handshake)).is_err());
    }

    #[test]
    fn upstreams_receive_no_token_from_another_place() {
        let places = TokenPlaces {
            headers: vec![HeaderName::from_static("x-access-token")],
            cookies: vec!["at".into()],
        };
        let fields =
            [("x-access-token", "abc"), ("x_access.token", "abc"), ("cookie", "a=b; at=abc")];
        let mut head = head("GET", &fields);

        places.strip(&mut head.headers);

        assert!(head.headers.keys().eq(["cookie"]), "{:?}", head.headers);
        assert_eq!(head.headers["cookie"], "a=b");
    }

    fn head(method: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }
}
