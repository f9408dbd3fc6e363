//! Names of fields that clients may not say to services, in any spelling.

use std::sync::Arc;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

use super::server::ForwardedHeaders;

/// Names that only the gateway may say to services, or only the gateway and trusted proxies. A client's field is
/// taken away if it has one of these names, whatever the case and whatever stands in place of a `-`: services that
/// translate fields to variables cannot tell `X-Auth`, `x_auth` and `X.Auth` apart. Clones share the names.
#[derive(Clone, Debug, Default)]
pub struct ReservedHeaders(Arc<HeaderNames>);

#[derive(Debug, Default)]
struct HeaderNames {
    /// Taken from all peers.
    always: Box<[Box<str>]>,
    /// Lengths and last characters that occur among those of strangers too, so that most fields cost one look.
    occurring: NameFilter,
}

/// A bit for each pair of length and last character that occurs.
#[derive(Debug, Default)]
struct NameFilter([u64; 4]);

impl NameFilter {
    fn add(&mut self, name: &str) {
        let (word, bit) = Self::place(name.as_bytes());
        self.0[word] |= bit;
    }

    fn has(&self, name: &[u8]) -> bool {
        let (word, bit) = Self::place(name);
        self.0[word] & bit != 0
    }

    fn place(name: &[u8]) -> (usize, u64) {
        let last = name.last().map_or(0, |&last| usize::from(last));
        let place = name.len() * 37 + last;
        (place >> 6 & 3, 1 << (place & 63))
    }
}

/// Taken from all peers besides the families of [`is_of_a_family`].
const ALWAYS_RESERVED: [&str; 8] = [
    "forwarded",
    "forwarded-for",
    "x-real-ip",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    "x-auth-identity",
    // Becomes `HTTP_PROXY`, which programs under CGI take for their own proxy (httpoxy, CVE-2016-5385).
    "proxy",
];

/// Taken from all peers but trusted proxies, besides the families of [`is_of_another_product`]: by these, services
/// behind other products learn who calls, from where, and what is meant. Listed in `docs/config.md`.
const UNTRUSTED_ONLY: [&str; 31] = [
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "cluster-client-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "iv-groups",
    "iv-user",
    "oam-remote-user",
    "remote-addr",
    "remote-email",
    "remote-groups",
    "remote-name",
    "remote-user",
    "sm-user",
    "true-client-ip",
    "x-anonymous-consumer",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-method",
    "x-original-remote-addr",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-userinfo",
];

impl ReservedHeaders {
    /// The forwarding fields, what others say about certificates and callers, and `own`: identity headers and the
    /// request id's.
    pub fn new<'a>(own: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        let mut always: Vec<Box<str>> = ALWAYS_RESERVED.into_iter().map(Box::from).collect();
        always.extend(own.into_iter().map(|name| name.as_str().into()));
        always.sort_unstable();
        always.dedup();
        let mut occurring = NameFilter::default();
        for name in always.iter().map(|name| &**name).chain(UNTRUSTED_ONLY) {
            occurring.add(name);
        }
        Self(Arc::new(HeaderNames { always: always.into(), occurring }))
    }

    /// Takes them out of a trailer section, whoever has sent it.
    pub fn strip_from(&self, headers: &mut HeaderMap) {
        self.take(headers, false);
    }

    /// Takes them out of a head of a peer that is `trusted` or not.
    pub fn take(&self, headers: &mut HeaderMap, trusted: bool) {
        let taken: Vec<HeaderName> =
            headers.keys().filter(|name| self.contains(name, trusted)).cloned().collect();
        for name in taken {
            headers.remove(name);
        }
    }

    /// Whether `name` is one of them, in any spelling, to a peer that is `trusted` or not.
    pub fn contains(&self, name: &HeaderName, trusted: bool) -> bool {
        let name = name.as_str().as_bytes();
        let is = |reserved: &str| reserved.len() == name.len() && begins(name, reserved.as_bytes());
        let listed = || {
            self.0.always.iter().any(|reserved| is(reserved))
                || !trusted && UNTRUSTED_ONLY.iter().any(|reserved| is(reserved))
        };
        is_in_reserved_family(name)
            || is_framing_alias(name)
            || !trusted && is_foreign_identity_header(name)
            || self.0.occurring.has(name) && listed()
    }
}

/// Whether the gateway itself says a field to services, with a value that is known before a route is.
pub fn is_said_by_gateway(name: &HeaderName, request_id: &HeaderName) -> bool {
    *name == FORWARDED
        || *name == UPGRADE
        || *name == CONNECTION
        || name == request_id
        || name.as_str().starts_with("x-forwarded-")
}

/// Whether the gateway, set so, says a field about where a request came from.
pub fn is_forwarded_as(name: &HeaderName, which: ForwardedHeaders) -> bool {
    use ForwardedHeaders as Which;
    match name.as_str() {
        "forwarded" => matches!(which, Which::Forwarded | Which::Both),
        "x-forwarded-for" | "x-forwarded-proto" | "x-forwarded-host" => {
            matches!(which, Which::XForwarded | Which::Both)
        }
        _ => false,
    }
}

/// Whether a field concerns one connection alone. `Expect` is among them: the gateway answers it.
pub fn is_hop_by_hop(name: &HeaderName) -> bool {
    match name.as_str().len() {
        2 => *name == TE,
        6 => *name == EXPECT,
        7 => *name == UPGRADE,
        10 => *name == CONNECTION || *name == KEEP_ALIVE,
        16 => *name == PROXY_CONNECTION,
        14 => *name == HTTP2_SETTINGS,
        17 => *name == TRANSFER_ENCODING,
        18 => *name == PROXY_AUTHENTICATE,
        19 => *name == PROXY_AUTHORIZATION,
        _ => false,
    }
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Whether it is one of those by which another product tells who calls, in fields whose names begin alike.
fn is_foreign_identity_header(name: &[u8]) -> bool {
    let families: &[&str] = match name {
        [b'x', _, b'a', b'u', ..] => &["x-auth-request-", "x-authenticated-", "x-authentik-"],
        [b'x', _, b'a', b'm', ..] => &["x-amzn-oidc-"],
        [b'x', _, b'a', b'p', ..] => &["x-appengine-user-"],
        [b'x', _, b'c', ..] => &["x-consumer-", "x-credential-"],
        [b'x', _, b'g', ..] => &["x-goog-authenticated-user-", "x-goog-iap-"],
        [b'x', _, b'm', ..] => &["x-ms-client-principal", "x-ms-token-"],
        [b'x', _, b'p', ..] => &["x-pomerium-"],
        [b'x', _, b'r', ..] => &["x-remote-"],
        [b'x', _, b'v', ..] => &["x-vouch-"],
        [b'x', _, b'w', ..] => &["x-webauth-"],
        [b'c', b'f', ..] => &["cf-access-"],
        [b'o', b'i', ..] => &["oidc-claim-"],
        [b's', b'h', ..] => &["shib-"],
        [b't', b'a', ..] => &["tailscale-user-"],
        _ => return false,
    };
    families.iter().any(|family| begins(name, family.as_bytes()))
}

/// Whether it is one of the many that proxies say in the same words: all of `X-Forwarded-*`, and about a client's
/// certificate (RFC 9440 among them), which counts only where the gateway has seen the handshake.
fn is_in_reserved_family(name: &[u8]) -> bool {
    let families: &[&str] = match name {
        [b'x', _, b'f', ..] => &["x-forwarded"],
        [b'x', _, b'c', ..] => &["x-client-cert"],
        [b'x', _, b's', ..] => &["x-ssl-client"],
        [b'x', _, b't', ..] => &["x-tls-client"],
        [b'x', _, b'a', b'm', ..] => &["x-amzn-mtls-clientcert"],
        [b'c', b'l', ..] => &["client-cert"],
        [b's', b's', ..] => &["ssl-client"],
        _ => return false,
    };
    families.iter().any(|family| begins(name, family.as_bytes()))
}

/// What a service could mistake for the message's framing.
fn is_framing_alias(name: &[u8]) -> bool {
    let is = |framing: &HeaderName| {
        let framing = framing.as_str().as_bytes();
        name.len() == framing.len() && name != framing && begins(name, framing)
    };
    match name.len() {
        14 => is(&CONTENT_LENGTH),
        17 => is(&TRANSFER_ENCODING),
        _ => false,
    }
}

/// Whether a name, in lower case, begins as `with` does to services that know letters and digits only.
fn begins(name: &[u8], with: &[u8]) -> bool {
    let same =
        |(&a, &b): (&u8, &u8)| a == b || !(a.is_ascii_alphanumeric() || b.is_ascii_alphanumeric());
    name.len() >= with.len() && name.iter().zip(with).all(same)
}
