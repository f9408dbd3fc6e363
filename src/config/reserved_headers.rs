//! Header fields that only the gateway or trusted proxies may send to upstreams, in any spelling.

use std::sync::Arc;

use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, FORWARDED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

use super::server::ForwardedHeaders;
use crate::base::header_fields::begins_alike;

/// The field names that only the gateway, or only the gateway and trusted proxies, may send to upstreams. A client's
/// field is removed if it has one of these names, in any case and with any character in place of a `-`: upstreams that
/// translate fields to variables cannot distinguish `X-Auth`, `x_auth` and `X.Auth`. Clones share the names.
#[derive(Clone, Debug, Default)]
pub struct ReservedHeaders(Arc<HeaderNames>);

#[derive(Debug, Default)]
struct HeaderNames {
    /// Removed from the requests of all peers.
    always: Box<[Box<str>]>,
    /// Lengths and last characters of the reserved names, so that most fields need one comparison.
    occurring: NameFilter,
    /// Fields that carry tokens on some route: they stay until these are verified, which no proxy has to vouch for.
    tokens: Box<[HeaderName]>,
}

/// A bit for each pair of length and last character that occurs.
#[derive(Debug, Default)]
struct NameFilter([u64; 4]);

impl NameFilter {
    fn add(&mut self, name: &str) {
        let (word, bit) = Self::bit_of(name.as_bytes());
        self.0[word] |= bit;
    }

    fn has(&self, name: &[u8]) -> bool {
        let (word, bit) = Self::bit_of(name);
        self.0[word] & bit != 0
    }

    fn bit_of(name: &[u8]) -> (usize, u64) {
        // Other characters than letters and digits count as one, as in `begins_alike`.
        let last = name.last().filter(|last| last.is_ascii_alphanumeric());
        let last = last.map_or(0, |&last| usize::from(last));
        let hash = name.len() * 37 + last;
        (hash >> 6 & 3, 1 << (hash & 63))
    }
}

/// The field of the gateway's identity token.
pub const IDENTITY_TOKEN: HeaderName = HeaderName::from_static(IDENTITY_TOKEN_NAME);
const IDENTITY_TOKEN_NAME: &str = "x-auth-identity";

/// Removed from requests of all peers, besides those of [`is_in_reserved_family`].
const ALWAYS_RESERVED: [&str; 8] = [
    "forwarded",
    "forwarded-for",
    "x-real-ip",
    "x-original-url",
    "x-original-uri",
    "x-rewrite-url",
    IDENTITY_TOKEN_NAME,
    // Becomes `HTTP_PROXY`, which programs under CGI take for their own proxy (httpoxy, CVE-2016-5385).
    "proxy",
];

/// Removed from requests of all peers but trusted proxies, besides those of [`is_foreign_identity_header`]: upstreams
/// of other products read the caller and its address from these. Listed in `docs/config.md`.
const UNTRUSTED_ONLY: [&str; 27] = [
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-ip",
    "x-anonymous-consumer",
    "x-apigateway-api-userinfo",
    "x-arr-clientcert",
    "x-auth-email",
    "x-auth-groups",
    "x-auth-roles",
    "x-auth-userid",
    "x-auth-username",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-cn",
    "x-client-dn",
    "x-client-verify",
    "x-endpoint-api-userinfo",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-jwt-assertion",
    "x-method-override",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-userinfo",
    "x-waf-client-cert",
];

impl ReservedHeaders {
    /// Reserves the forwarding fields, other products' fields about certificates and callers, and `own`: identity
    /// headers and the request id.
    pub fn new<'a>(own: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        Self::except(own, [])
    }

    /// The same, but leaves the fields `tokens` of a request's head, which the gateway removes before an upstream gets it.
    pub fn except<'a>(
        own: impl IntoIterator<Item = &'a HeaderName>,
        tokens: impl IntoIterator<Item = &'a HeaderName>,
    ) -> Self {
        let always = ALWAYS_RESERVED.into_iter().map(Box::from);
        let always = always.chain(own.into_iter().map(|name| name.as_str().into()));
        Self::always(always.collect(), tokens.into_iter().cloned().collect())
    }

    /// Returns these, and `names`, for the trailers of requests.
    #[must_use]
    pub fn with<'a>(&self, names: impl IntoIterator<Item = &'a HeaderName>) -> Self {
        let mut names = names.into_iter().map(|name| name.as_str().into()).peekable();
        if names.peek().is_none() {
            return self.clone();
        }
        Self::always(self.0.always.iter().cloned().chain(names).collect(), self.0.tokens.clone())
    }

    fn always(mut always: Vec<Box<str>>, tokens: Box<[HeaderName]>) -> Self {
        always.sort_unstable();
        always.dedup();
        let mut occurring = NameFilter::default();
        for name in always.iter().map(|name| &**name).chain(UNTRUSTED_ONLY) {
            occurring.add(name);
        }
        Self(Arc::new(HeaderNames { always: always.into(), occurring, tokens }))
    }

    /// Removes all of them from a trailer section, whether the peer is trusted or not.
    pub fn strip_from(&self, headers: &mut HeaderMap) {
        remove_if(headers, |name| self.contains(name, false));
    }

    /// Removes them from the head of a request of a peer that is `trusted` or not.
    pub fn take(&self, headers: &mut HeaderMap, trusted: bool) {
        remove_if(headers, |name| self.contains(name, trusted) && !self.0.tokens.contains(name));
    }

    /// Whether every peer's field of this name is removed, because the gateway writes it.
    pub fn is_own(&self, name: &HeaderName) -> bool {
        let name = name.as_str().as_bytes();
        self.0
            .always
            .iter()
            .any(|own| own.len() == name.len() && begins_alike(name, own.as_bytes()))
    }

    /// Whether `name` is reserved, in any spelling, for a peer that is `trusted` or not.
    pub fn contains(&self, name: &HeaderName, trusted: bool) -> bool {
        let name = name.as_str().as_bytes();
        let is = |reserved: &str| {
            reserved.len() == name.len() && begins_alike(name, reserved.as_bytes())
        };
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

/// Removes the fields whose names satisfy `removes`.
pub(crate) fn remove_if(headers: &mut HeaderMap, removes: impl Fn(&HeaderName) -> bool) {
    let taken: Vec<HeaderName> = headers.keys().filter(|name| removes(name)).cloned().collect();
    for name in taken {
        headers.remove(name);
    }
}

/// Whether the gateway itself sends the field to upstreams, with a value that is known before routing.
pub fn is_said_by_gateway(name: &HeaderName, request_id: &HeaderName) -> bool {
    *name == FORWARDED
        || *name == UPGRADE
        || *name == CONNECTION
        || name == request_id
        || name.as_str().starts_with("x-forwarded-")
}

/// Whether the gateway, with this setting, sends a field about the origin of a request.
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

/// Whether a field is hop-by-hop (RFC 9110 §7.6.1). `Expect` is among them: the gateway handles it.
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

/// Whether another product reads the caller, its address or the request's meaning from the field, by the beginning or
/// the end of its name.
fn is_foreign_identity_header(name: &[u8]) -> bool {
    let families: &[&str] = match name {
        [b'x', _, b'a', b'u', ..] => &["x-auth-request-", "x-authenticated-", "x-authentik-"],
        [b'x', _, b'a', b'm', ..] => &["x-amzn-oidc-"],
        [b'x', _, b'a', b'p', ..] => &["x-appengine-user-"],
        [b'x', _, b'c', ..] => &["x-consumer-", "x-credential-"],
        [b'x', _, b'e', ..] => &["x-envoy-"],
        [b'x', _, b'g', ..] => &["x-goog-authenticated-user-", "x-goog-iap-"],
        [b'x', _, b'm', ..] => &["x-ms-client-principal", "x-ms-token-"],
        [b'x', _, b'o', ..] => &["x-original-"],
        [b'x', _, b'p', ..] => &["x-pomerium-"],
        [b'x', _, b'r', ..] => &["x-remote-"],
        [b'x', _, b'v', ..] => &["x-vouch-"],
        [b'x', _, b'w', ..] => &["x-webauth-"],
        [b'c', ..] => &["cas-", "cf-access-"],
        // Variables of CGI, which some servers do not distinguish from fields: `HTTP_CLIENT_IP`, `HTTP_REMOTE_USER`.
        [b'h', ..] => &["http-"],
        [b'i', ..] => &["iv-"],
        [b'o', ..] => &["oam-", "oidc-", "osso-"],
        [b'r', ..] => &["remote-"],
        [b's', ..] => &["shib-", "sm-"],
        [b't', ..] => &["tailscale-user-", "teleport-"],
        [b'w', ..] => &["wl-proxy-"],
        // The plug-in of WebSphere: `$WSRU`.
        [b'$' | b'_' | b'-' | b'.', ..] => &["$ws"],
        _ => &[],
    };
    families.iter().any(|family| begins_alike(name, family.as_bytes())) || ends_as_origin(name)
}

/// Whether the name ends like those of every product's field for the client's address: `True-Client-IP`.
fn ends_as_origin(name: &[u8]) -> bool {
    let ends: &[&str] = match name.last() {
        Some(b'p') => &["-client-ip", "-connecting-ip", "-connection-ip", "-real-ip", "-src-ip"],
        Some(b'r') => &["-forwarded-for", "-remote-addr", "-remote-user"],
        _ => return false,
    };
    ends.iter().any(|end| {
        let start = name.len().checked_sub(end.len());
        start.is_some_and(|start| begins_alike(&name[start..], end.as_bytes()))
    })
}

/// Whether the field belongs to a family that proxies use: all of `X-Forwarded-*`, and client certificates
/// (RFC 9440 among them), which are only reliable from the TLS connection itself.
fn is_in_reserved_family(name: &[u8]) -> bool {
    let families: &[&str] = match name {
        [b'x', _, b'f', ..] => &["x-forwarded"],
        [b'x', _, b'c', ..] => &["x-client-cert"],
        [b'x', _, b's', ..] => &["x-ssl-client", "x-ssl-cert"],
        [b'x', _, b't', ..] => &["x-tls-client"],
        [b'x', _, b'a', b'm', ..] => &["x-amzn-mtls-clientcert"],
        [b'c', b'f', ..] => &["cf-client-cert-"],
        [b'c', b'l', ..] => &["client-cert"],
        [b's', b's', ..] => &["ssl-client"],
        [b'w', b'l', ..] => &["wl-proxy-client-cert"],
        [_, b'w', b's', ..] => &["$wscc"],
        _ => return false,
    };
    families.iter().any(|family| begins_alike(name, family.as_bytes()))
}

/// Whether an upstream could mistake the field for the message's framing.
fn is_framing_alias(name: &[u8]) -> bool {
    let is = |framing: &HeaderName| {
        let framing = framing.as_str().as_bytes();
        name.len() == framing.len() && name != framing && begins_alike(name, framing)
    };
    match name.len() {
        14 => is(&CONTENT_LENGTH),
        17 => is(&TRANSFER_ENCODING),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_name_is_reserved_in_every_spelling() {
        let own = HeaderName::from_static("x-user-");
        let reserved = ReservedHeaders::new([&own]);

        for name in ["x-user-", "x_user_", "x.user.", "x-user~"] {
            assert!(reserved.contains(&HeaderName::from_static(name), true), "{name}");
        }
        assert!(!reserved.contains(&HeaderName::from_static("x-user0"), true));
    }

    #[test]
    fn fields_of_other_products_are_taken_from_clients() {
        let reserved = ReservedHeaders::new([]);
        let is_taken =
            |name: &str, trusted| reserved.contains(&HeaderName::try_from(name).unwrap(), trusted);
        for name in [
            "Remote-User",
            "Remote_Groups",
            "Remote-Addr",
            "REDIRECT_REMOTE_USER",
            "HTTP_REMOTE_USER",
            "HTTP_CLIENT_IP",
            "HTTP_X_FORWARDED_FOR",
            "SM_USER",
            "SM_USERDN",
            "SM_SERVERSESSIONID",
            "iv-user-l",
            "iv_server_name",
            "OAM_IDENTITY_DOMAIN",
            "Osso-User-DN",
            "OIDC_access_token",
            "CAS-User",
            "Teleport-Jwt-Assertion",
            "WL-Proxy-Client-IP",
            "WL-Proxy-SSL",
            "Proxy-Client-IP",
            "$WSRU",
            "$WSRA",
            "True-Client-IP",
            "Client-IP",
            "DO-Connecting-IP",
            "CF-Connecting-IP",
            "X-NF-Client-Connection-IP",
            "X-Vercel-Forwarded-For",
            "Ali-CDN-Real-IP",
            "Cdn-Src-Ip",
            "Incap-Client-IP",
            "Akamai-Client-IP",
            "X-Auth-Userid",
            "X-Auth-Roles",
            "X-Client-CN",
            "X-HTTP-Host-Override",
            "X-Host",
            "X-Original-Path",
            "X-Envoy-Original-Path",
            "X-Envoy-Internal",
            "X-Original-Forwarded-For",
            "X-HTTP-Method-Override",
        ] {
            assert!(is_taken(name, false), "{name}");
            assert!(!is_taken(name, true), "{name} of a trusted proxy");
        }
        for certificate in [
            "WL-Proxy-Client-Cert",
            "$WSCC",
            "Cf-Client-Cert-Sha256",
            "X-SSL-Cert",
            "Client-Cert-Chain",
        ] {
            assert!(is_taken(certificate, true), "{certificate}");
        }
        for own in [
            "host",
            "accept",
            "x-client-id",
            "x-auth-token",
            "x-auth-key",
            "range",
            "referer",
            "httpd",
            "smile",
            "origin",
            "owner",
            "server",
            "ip",
            "x-clip",
            "x-forwarder",
            "ivory",
            "case",
            "_ga",
            "x-host-name",
            "user-agent",
            "x-real-ipv",
            "if-range",
        ] {
            assert!(!is_taken(own, false), "{own}");
        }
    }
}
