//! Return targets that the gateway itself chooses: pages of the session's own hosts.
//!
//! The own hosts are that of `public_url` and, with `cookie.domain`, all of that domain: those that browsers send the
//! session's cookies to. A page that a browser has requested is returned to as it was requested, whatever the rules for
//! targets in `return_to`, which anyone can write into a link; as a whole URL, no path leads to another host.

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;
use url::Url;

use crate::base::domain::is_within;
use crate::base::raw_target;
use crate::session::cookies::origin::authority;
use crate::session::settings::{Flow, Settings};

/// The own hosts of one session.
#[derive(Debug)]
pub(crate) struct SessionHosts {
    public_url: Url,
    /// The origin of `public_url`, as browsers write it.
    public_origin: Box<str>,
    domain: Option<Arc<str>>,
    /// Whether a login ends at the host of `public_url`, wherever it has begun.
    ends_at_public_url: bool,
}

/// The host that a request names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum NamedHost<'a> {
    /// The host of `public_url`.
    Public,
    /// Another one of `cookie.domain`, with its port.
    Sibling(&'a str),
    /// Another host: one with cookies of its own, or that of a proxy in front of the gateway.
    Other,
}

impl SessionHosts {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            public_origin: settings.public_url.origin().ascii_serialization().into(),
            public_url: settings.public_url.clone(),
            domain: settings.cookie.domain.clone(),
            ends_at_public_url: settings.flow == Flow::Code,
        }
    }

    /// Returns the URL of the page at `path`, as [`as_written`], of the host that `request` names; `None` if that host
    /// is not one of the session's, and a login does not end at another.
    pub(crate) fn url(&self, request: &Parts, path: &str) -> Option<String> {
        match self.named_by(request) {
            NamedHost::Sibling(host) => {
                let scheme = self.public_url.scheme();
                Some(format!("{scheme}://{}{path}", host.to_ascii_lowercase()))
            }
            NamedHost::Other if !self.ends_at_public_url => None,
            NamedHost::Public | NamedHost::Other => Some(format!("{}{path}", self.public_origin)),
        }
    }

    /// Whether a login that `request` begins ends at the host that it names, or at that of `public_url` for want of a
    /// better one: only there a path without host leads to the page.
    pub(crate) fn needs_no_host(&self, request: &Parts) -> bool {
        !self.ends_at_public_url || !matches!(self.named_by(request), NamedHost::Sibling(_))
    }

    /// Whether `url` is one that [`SessionHosts::url`] returns.
    pub(crate) fn contains(&self, url: &str) -> bool {
        let Ok(parsed) = Url::parse(url) else { return false };
        let origin = parsed.origin().ascii_serialization();
        let is_plain = url.strip_prefix(&*origin).is_some_and(|path| path.starts_with('/'))
            && url.bytes().all(|byte| byte.is_ascii_graphic());
        let is_own = origin == *self.public_origin
            || parsed.scheme() == self.public_url.scheme() && self.is_in_domain(&parsed);
        is_plain && is_own
    }

    fn named_by<'a>(&self, request: &'a Parts) -> NamedHost<'a> {
        let Some(host) = authority(&request.uri, &request.headers) else { return NamedHost::Other };
        let Ok(url) = Url::parse(&format!("{}://{host}", self.public_url.scheme())) else {
            return NamedHost::Other;
        };
        if url.host() == self.public_url.host() {
            NamedHost::Public
        } else if self.is_in_domain(&url) && url.username().is_empty() && url.path() == "/" {
            NamedHost::Sibling(host)
        } else {
            NamedHost::Other
        }
    }

    fn is_in_domain(&self, url: &Url) -> bool {
        let (Some(domain), Some(host)) = (&self.domain, url.domain()) else { return false };
        is_within(host, domain)
    }
}

/// Returns the path and query of a request as browsers write them in a URL: what is not ASCII is escaped.
pub(crate) fn as_written(path: &str) -> Cow<'_, str> {
    let path = raw_target::escaped(path);
    if path.is_ascii() {
        return path;
    }
    let mut written = String::with_capacity(path.len() * 2);
    for character in path.chars() {
        if character.is_ascii() {
            written.push(character);
        } else {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                raw_target::escape(&mut written, byte);
            }
        }
    }
    Cow::Owned(written)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issuer::{Client, ClientAuth};
    use crate::session::settings::Cookie;

    fn pages(domain: Option<&str>, flow: Flow) -> SessionHosts {
        let client = Client { id: "web".into(), auth: ClientAuth::None };
        let url = Url::parse("https://www.example.com").unwrap();
        let cookie = Cookie { domain: domain.map(Into::into), ..Cookie::default() };
        SessionHosts::new(&Settings { cookie, ..Settings::new("web", "main", client, flow, url) })
    }

    fn request(host: &str) -> Parts {
        http::Request::get("/").header("host", host).body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_page_of_the_cookies_domain_is_led_back_to_at_its_own_host() {
        let url = |host: &str, domain, flow| pages(domain, flow).url(&request(host), "//x");
        let wide = Some("example.com");

        let public = Some("https://www.example.com//x".to_owned());
        assert_eq!(url("www.example.com", None, Flow::Code), public);
        assert_eq!(
            url("App2.example.com:8443", wide, Flow::Code).as_deref(),
            Some("https://app2.example.com:8443//x")
        );
        for other in ["app2.example.com", "evil.example", "nexample.com", "x@evil.example", ""] {
            assert_eq!(url(other, None, Flow::Code), public, "{other}");
            assert_eq!(url(other, None, Flow::Password), None, "{other}");
        }
        for other in ["evil.example", "nexample.com", "x@app2.example.com", "example.com.evil"] {
            assert_eq!(url(other, wide, Flow::Code), public, "{other}");
        }
    }

    #[test]
    fn only_pages_of_own_hosts_are_contained() {
        let (narrow, wide) = (pages(None, Flow::Code), pages(Some("example.com"), Flow::Code));

        assert!(narrow.contains("https://www.example.com//x"));
        assert!(!narrow.contains("https://app2.example.com/"));
        assert!(wide.contains("https://app2.example.com:8443/a?b=\\d"));
        for foreign in [
            "/path",
            "https://www.example.com",
            "https://evil.example/",
            "https://www.example.com@evil.example/",
            "https://www.example.com.evil.example/",
            "https:\\\\evil.example/",
            "http://app2.example.com/",
            "https://app2.example.com/a b",
        ] {
            assert!(!wide.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn a_path_is_written_in_ascii() {
        assert_eq!(as_written("/a?b=\\d"), "/a?b=\\d");
        assert_eq!(as_written("/caf\u{e9}"), "/caf%C3%A9");
    }
}
