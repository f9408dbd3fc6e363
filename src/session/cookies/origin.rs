//! Origins: which page made a browser send a request.
//!
//! Browsers say it themselves, in `Sec-Fetch-Site` (Fetch Metadata) and in
//! `RefreshOrigin` (RFC 6454 §7), and no page can make them lie. Other programs send
//! neither, and carry no cookies that they were not given on purpose.

use core::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Uri};
use url::{Origin, Url};

/// The origin that browsers know this gateway by.
#[derive(Clone, Debug)]
pub(crate) struct OwnOrigin {
    origin: Origin,
    /// Whether cookies travel over TLS only, and so every page that has them came over TLS.
    secure: bool,
}

impl OwnOrigin {
    pub(crate) fn new(public_url: &Url, secure: bool) -> Self {
        Self { origin: public_url.origin(), secure }
    }

    /// What a request says about the page that sent it.
    pub(crate) fn whence(&self, request: &Parts) -> RequestOrigin {
        let site = match only(&request.headers, &SEC_FETCH_SITE) {
            Ok(None) => None,
            Ok(Some("same-origin")) => Some(RequestOrigin::Here),
            Ok(Some("none")) => Some(RequestOrigin::Person),
            _ => Some(RequestOrigin::Elsewhere),
        };
        let origin = match only(&request.headers, &ORIGIN) {
            Ok(None) => None,
            Ok(Some(origin)) if self.is_here(origin, request) => Some(RequestOrigin::Here),
            _ => Some(RequestOrigin::Elsewhere),
        };
        // Whichever are sent must agree; the worse one counts.
        match (site, origin) {
            (None, None) => RequestOrigin::Unsaid,
            (Some(one), None) | (None, Some(one)) => one,
            (Some(site), Some(origin)) => site.max(origin),
        }
    }

    /// Whether `origin` is this gateway's own: the public one, or that of the host the request names.
    fn is_here(&self, origin: &str, request: &Parts) -> bool {
        let Ok(url) = Url::parse(origin) else { return false };
        let found = url.origin();
        // Only what browsers write: `https://host:port` and nothing after it.
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

/// Who made a browser send a request; from best to worst.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum RequestOrigin {
    /// A page of this origin.
    Here,
    /// The person, by the address bar or a bookmark.
    Person,
    /// It is not said: no browser, or one from before 2020.
    Unsaid,
    /// A page of another origin, or something contradictory.
    Elsewhere,
}

/// The one value of a field, `None` if there is none.
///
/// # Errors
///
/// `()` if there are several, or if it is not visible ASCII.
pub(crate) fn only<'a>(
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

/// A field came twice, or in a foreign alphabet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct AmbiguousOrigin;

fn authority<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    uri.authority().map(http::uri::Authority::as_str).or_else(|| only(headers, &HOST).ok()?)
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

    fn whence(fields: &[(&str, &str)]) -> RequestOrigin {
        let mut request = http::Request::post("/app").header("host", "www.example.com:8443");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let home = OwnOrigin::new(&Url::parse("https://shop.example.com").unwrap(), true);
        home.whence(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn knows_its_own_pages() {
        for origin in ["https://shop.example.com", "https://www.example.com:8443"] {
            assert_eq!(whence(&[("origin", origin)]), RequestOrigin::Here, "{origin}");
        }
        assert_eq!(whence(&[("sec-fetch-site", "same-origin")]), RequestOrigin::Here);
    }

    #[test]
    fn knows_others_pages() {
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
            assert_eq!(whence(&[("origin", origin)]), RequestOrigin::Elsewhere, "{origin}");
        }
        for site in ["cross-site", "same-site", "", "Same-Origin", "same-origin, none"] {
            assert_eq!(whence(&[("sec-fetch-site", site)]), RequestOrigin::Elsewhere, "{site}");
        }
    }

    #[test]
    fn both_must_say_so_when_both_are_sent() {
        let here = ("origin", "https://shop.example.com");
        assert_eq!(whence(&[here, ("sec-fetch-site", "same-origin")]), RequestOrigin::Here);
        assert_eq!(whence(&[here, ("sec-fetch-site", "cross-site")]), RequestOrigin::Elsewhere);
        assert_eq!(
            whence(&[("origin", "https://a.example"), ("sec-fetch-site", "same-origin")]),
            RequestOrigin::Elsewhere
        );
        assert_eq!(whence(&[here, here]), RequestOrigin::Elsewhere);
    }

    #[test]
    fn silence_and_the_address_bar_are_told_apart() {
        assert_eq!(whence(&[]), RequestOrigin::Unsaid);
        assert_eq!(whence(&[("sec-fetch-site", "none")]), RequestOrigin::Person);
    }

    #[test]
    fn plain_http_is_good_enough_on_this_machine() {
        let request = http::Request::post("/app")
            .header("host", "localhost:8080")
            .header("origin", "http://localhost:8080");
        let home = OwnOrigin::new(&Url::parse("https://shop.example.com").unwrap(), true);
        assert_eq!(home.whence(&request.body(()).unwrap().into_parts().0), RequestOrigin::Here);
    }
}
