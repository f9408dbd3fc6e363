//! The origin of a request: which page made a browser send it.
//!
//! Browsers report it in `Sec-Fetch-Site` (Fetch Metadata) and in `Origin`
//! (RFC 6454 §7), which pages cannot forge. Other user agents send neither, and
//! have only cookies that they were given on purpose.

use core::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Uri};
use url::{Origin, Url};

/// The origin under which browsers know this gateway.
#[derive(Clone, Debug)]
pub(crate) struct OwnOrigin {
    origin: Origin,
    /// Whether cookies are `Secure`: then every page that has them came over TLS.
    secure: bool,
}

impl OwnOrigin {
    pub(crate) fn new(public_url: &Url, secure: bool) -> Self {
        Self { origin: public_url.origin(), secure }
    }

    /// Returns the origin of a request.
    pub(crate) fn request_origin(&self, request: &Parts) -> RequestOrigin {
        let site = match single_value(&request.headers, &SEC_FETCH_SITE) {
            Ok(None) => None,
            Ok(Some("same-origin")) => Some(RequestOrigin::SameOrigin),
            Ok(Some("none")) => Some(RequestOrigin::User),
            _ => Some(RequestOrigin::CrossOrigin),
        };
        let origin = match single_value(&request.headers, &ORIGIN) {
            Ok(None) => None,
            Ok(Some(origin)) if self.is_own(origin, request) => Some(RequestOrigin::SameOrigin),
            // Browsers hide the origin where a page's `Referrer-Policy` is `no-referrer`; no page of an opaque origin is
            // called `same-origin` by them (Fetch §3.2, Fetch Metadata §2.3).
            Ok(Some("null")) if site == Some(RequestOrigin::SameOrigin) => None,
            _ => Some(RequestOrigin::CrossOrigin),
        };
        // If both fields are present the worse one counts.
        match (site, origin) {
            (None, None) => RequestOrigin::Unknown,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(site), Some(origin)) => site.max(origin),
        }
    }

    /// Whether `origin` is this gateway's own: the public one, or that of the host the request names.
    fn is_own(&self, origin: &str, request: &Parts) -> bool {
        let Ok(url) = Url::parse(origin) else { return false };
        let found = url.origin();
        // Only the serialization of browsers: `https://host:port` without a path.
        if !found.is_tuple() || found.ascii_serialization() != origin {
            return false;
        }
        if found == self.origin {
            return true;
        }
        let safe = url.scheme() == "https" || !self.secure || is_loopback(&url);
        safe && authority(&request.uri, &request.headers).is_some_and(|authority| {
            Url::parse(&format!("{}://{authority}", url.scheme()))
                .is_ok_and(|here| here.origin() == found && here.username().is_empty())
        })
    }
}

/// The initiator of a request, from best to worst.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum RequestOrigin {
    /// A page of this origin.
    SameOrigin,
    /// The user, by the address bar or a bookmark.
    User,
    /// Not reported: no browser, or one from before 2020.
    Unknown,
    /// A page of another origin, or contradictory fields.
    CrossOrigin,
}

/// Returns the single value of a field, `None` if the field is absent.
///
/// # Errors
///
/// [`AmbiguousOrigin`] if there are several values, or one that is not visible ASCII.
pub(crate) fn single_value<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a str>, AmbiguousOrigin> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| AmbiguousOrigin),
        _ => Err(AmbiguousOrigin),
    }
}

/// A field occurs twice, or is not visible ASCII.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct AmbiguousOrigin;

/// Returns the host that a request names, with its port.
pub(crate) fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    uri.authority()
        .map(http::uri::Authority::as_str)
        .or_else(|| single_value(headers, &HOST).ok()?)
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => IpAddr::from(address).is_loopback(),
        Some(url::Host::Ipv6(address)) => IpAddr::from(address).is_loopback(),
        None => false,
    }
}

pub(crate) const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

#[cfg(test)]
mod tests {
    use super::*;

    fn request_origin(fields: &[(&str, &str)]) -> RequestOrigin {
        let mut request = http::Request::post("/app").header("host", "www.example.com:8443");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let own_origin = OwnOrigin::new(&Url::parse("https://shop.example.com").unwrap(), true);
        own_origin.request_origin(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn own_pages_are_recognized() {
        for origin in ["https://shop.example.com", "https://www.example.com:8443"] {
            assert_eq!(
                request_origin(&[("origin", origin)]),
                RequestOrigin::SameOrigin,
                "{origin}"
            );
        }
        assert_eq!(request_origin(&[("sec-fetch-site", "same-origin")]), RequestOrigin::SameOrigin);
    }

    #[test]
    fn pages_of_other_origins_are_recognized() {
        for origin in [
            "https://evil.example",
            "https://www.example.com",
            "http://www.example.com:8443",
            "http://shop.example.com",
            "https://shop.example.com.evil.example",
            "https://shop.example.com@evil.example",
            "https://shop.example.com/",
            "https://shop.example.com:443",
            "HTTPS://shop.example.com",
            "https://shop.example.com https://evil.example",
            "null",
            "",
            "file://",
            "https:",
        ] {
            assert_eq!(
                request_origin(&[("origin", origin)]),
                RequestOrigin::CrossOrigin,
                "{origin}"
            );
        }
        for site in ["cross-site", "same-site", "", "Same-Origin", "same-origin, none"] {
            assert_eq!(
                request_origin(&[("sec-fetch-site", site)]),
                RequestOrigin::CrossOrigin,
                "{site}"
            );
        }
    }

    #[test]
    fn both_fields_must_agree() {
        let here = ("origin", "https://shop.example.com");
        assert_eq!(
            request_origin(&[here, ("sec-fetch-site", "same-origin")]),
            RequestOrigin::SameOrigin
        );
        assert_eq!(
            request_origin(&[here, ("sec-fetch-site", "cross-site")]),
            RequestOrigin::CrossOrigin
        );
        assert_eq!(
            request_origin(&[("origin", "https://a.example"), ("sec-fetch-site", "same-origin")]),
            RequestOrigin::CrossOrigin
        );
        assert_eq!(request_origin(&[here, here]), RequestOrigin::CrossOrigin);
    }

    #[test]
    fn absent_fields_differ_from_the_address_bar() {
        assert_eq!(request_origin(&[]), RequestOrigin::Unknown);
        assert_eq!(request_origin(&[("sec-fetch-site", "none")]), RequestOrigin::User);
    }

    #[test]
    fn plain_http_is_accepted_at_loopback() {
        let request = http::Request::post("/app")
            .header("host", "localhost:8080")
            .header("origin", "http://localhost:8080");
        let own_origin = OwnOrigin::new(&Url::parse("https://shop.example.com").unwrap(), true);
        assert_eq!(
            own_origin.request_origin(&request.body(()).unwrap().into_parts().0),
            RequestOrigin::SameOrigin
        );
    }
}
