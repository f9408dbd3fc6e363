//! Removal of untrusted and hop-by-hop fields, and encoding of field values: pure functions (RFC 9110 §7.6).

use core::fmt::Write as _;
use std::borrow::Cow;

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TE, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};

use crate::config::reserved_headers::{ReservedHeaders, is_hop_by_hop};
use crate::config::server::Server;
use crate::gateway::Rejection;
use crate::gateway::policy::dpop_fields::DPOP;

/// Returns the entry that the gateway adds to `Via` for a request that came by `version` (RFC 9110 §7.6.3).
pub(crate) fn via(version: Version) -> &'static HeaderValue {
    static HTTP_10: HeaderValue = HeaderValue::from_static("1.0 northgate");
    static HTTP_11: HeaderValue = HeaderValue::from_static("1.1 northgate");
    static HTTP_2: HeaderValue = HeaderValue::from_static("2.0 northgate");
    match version {
        Version::HTTP_10 => &HTTP_10,
        Version::HTTP_2 => &HTTP_2,
        _ => &HTTP_11,
    }
}

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Removes the fields that must not reach an upstream: those of the client's connection, those named by `Connection`,
/// and those reserved for the gateway. Runs before the gateway adds its own fields, so that a client cannot have them
/// removed, and before any decision by a field, so that the upstream sees every field that decided. `trusted` is true
/// if the peer is a trusted proxy.
///
/// Credentials named by `Connection` stay for authentication: see [`StrippedFields::credentials`].
/// Credentials that `Connection` names stay for the stages that ask for them: see [`StrippedFields::credentials`].
pub(crate) fn strip_untrusted(
    headers: &mut HeaderMap,
    reserved: &ReservedHeaders,
    trusted: bool,
) -> StrippedFields {
    // One pass over the names detects the usual case, in which nothing is to be removed.
    let clean = !headers.keys().any(|name| is_hop_by_hop(name) || reserved.contains(name, trusted));
    if clean { StrippedFields::default() } else { strip_fields(headers, reserved, trusted) }
}

/// The facts about a request head that stripping removed from it.
#[derive(Debug, Default)]
pub(crate) struct StrippedFields {
    /// The protocol of a valid upgrade request.
    pub upgrade: Option<HeaderValue>,
    /// Credential fields that `Connection` names: meant for the gateway alone.
    pub credentials: Vec<HeaderName>,
}

impl StrippedFields {
    /// Restores the upgrade request, for the stages that look for one.
    pub(crate) fn restore_upgrade(&self, headers: &mut HeaderMap) {
        if let Some(protocol) = &self.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, protocol.clone());
        }
    }

    /// Removes the fields that were left for the gateway, and returns the requested protocol.
    pub(crate) fn remove_remaining(&mut self, headers: &mut HeaderMap) -> Option<HeaderValue> {
        for name in self.credentials.drain(..) {
            headers.remove(name);
        }
        let upgrade = self.upgrade.take();
        if upgrade.is_some() {
            headers.remove(CONNECTION);
            headers.remove(UPGRADE);
        }
        upgrade
    }
}

fn strip_fields(
    headers: &mut HeaderMap,
    reserved: &ReservedHeaders,
    trusted: bool,
) -> StrippedFields {
    let upgrade = requested_protocol(headers);
    let trailers = headers.contains_key(TE) && accepts_trailers(headers);
    let credentials = remove_hop_by_hop(headers);
    reserved.take(headers, trusted);
    if trailers {
        headers.insert(TE, TRAILERS);
    }
    StrippedFields { upgrade, credentials }
}

/// Joins the cookie fields of an HTTP/2 request into one (RFC 9113 §8.2.3).
pub(crate) fn merge_cookie_fields(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let fields = headers.get_all(COOKIE).iter();
    let crumbs: Vec<&[u8]> = fields
        .map(|field| field.as_bytes().trim_ascii())
        .filter(|crumb| !crumb.is_empty())
        .collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        headers.insert(COOKIE, whole);
    }
}

/// Refuses an HTTP/2 head with more header fields than `server.max_headers`, or that takes more bytes in HTTP/1.1 than
/// `server.max_header_size`.
///
/// # Errors
///
/// [`Rejection::TargetTooLong`] if the target alone takes more, [`Rejection::HeadTooLarge`] otherwise.
pub(crate) fn check_size(head: &Parts, server: &Server) -> Result<(), Rejection> {
    let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    let target = head.uri.path_and_query().map_or(1, |target| target.as_str().len());
    let host = head.uri.authority().map_or(0, |host| host.as_str().len());
    let size = head.method.as_str().len() + target + host + fields.sum::<usize>();
    if target > server.max_header_size {
        Err(Rejection::TargetTooLong)
    } else if size > server.max_header_size || head.headers.len() > server.max_headers {
        let cookies = head.headers.get(COOKIE).map_or(0, HeaderValue::len);
        Err(Rejection::head_too_large(cookies, server.max_cookie_bytes(), &head.headers))
    } else {
        Ok(())
    }
}

/// Returns the protocol a client requests to switch to: exactly one, also named by `Connection` (RFC 9110 §7.8).
fn requested_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut protocols = headers.get_all(UPGRADE).iter();
    let protocol = protocols.next()?;
    let named = connection_options(headers).any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    (named && protocols.next().is_none()).then(|| protocol.clone())
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&b| b == b','))
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Removes hop-by-hop fields, and those that `Connection` names (RFC 9110 §7.6.1) except for credentials, the names
/// of which it returns.
fn remove_hop_by_hop(headers: &mut HeaderMap) -> Vec<HeaderName> {
    let named: Vec<HeaderName> = connection_options(headers)
        .filter(|option| {
            !option.eq_ignore_ascii_case(b"keep-alive") && !option.eq_ignore_ascii_case(b"close")
        })
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .collect();
    let mut credentials = Vec::new();
    for name in named {
        match name {
            // Message framing and the requested host are not the client's to remove.
            CONTENT_LENGTH | HOST => {}
            AUTHORIZATION | COOKIE => credentials.push(name),
            name if name == DPOP => credentials.push(name),
            name => {
                headers.remove(name);
            }
        }
    }
    let hop_by_hop: Vec<HeaderName> =
        headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in hop_by_hop {
        headers.remove(name);
    }
    credentials
}

fn connection_options(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|v| v.as_bytes().split(|&b| b == b','))
        .map(<[u8]>::trim_ascii)
}

/// Encodes `text` for a field value: unchanged if it is visible ASCII on one line, percent-encoded otherwise.
///
/// The encoding is injective: text that an upstream would trim (`alice `) or decode (`%C3%A9`) is encoded too, so
/// that no two users get the same value.
pub(crate) fn encode_field_value(text: &str) -> Cow<'_, str> {
    if is_plain(text.as_bytes()) { Cow::Borrowed(text) } else { Cow::Owned(encoded(text)) }
}

/// Joins `words` by spaces, encoding spaces within them: see [`encode_field_value`].
pub(crate) fn encode_list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut list = String::new();
    for word in words {
        if !list.is_empty() {
            list.push(' ');
        }
        match word {
            plain if is_plain(plain.as_bytes()) && !plain.contains(' ') => list.push_str(plain),
            word => list.push_str(&encoded(word)),
        }
    }
    list
}

fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        match byte {
            b'!'..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// Whether an upstream reads exactly these bytes from a field, even if it decodes percent-encoding.
fn is_plain(text: &[u8]) -> bool {
    let looks_encoded = |at: usize| {
        text.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    text.iter().all(|b| (b' '..0x7f).contains(b))
        && text.first() != Some(&b' ')
        && text.last() != Some(&b' ')
        && !memchr::memchr_iter(b'%', text).any(looks_encoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_named_by_connection_are_removed_except_for_framing() {
        let mut headers = map(&[
            ("connection", "x-secret, close, x-forwarded-for, content-length"),
            ("x-secret", "1"),
            ("content-length", "5"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("x-kept", "1"),
        ]);

        strip_untrusted(&mut headers, &ReservedHeaders::new([]), false);

        assert_eq!(names(&headers), ["content-length", "x-kept"]);
    }

    #[test]
    fn reserved_fields_are_removed_in_every_spelling() {
        let own = [HeaderName::from_static("x-auth-subject")];
        let mut headers = map(&[
            ("x-auth-subject", "root"),
            ("x_auth_subject", "root"),
            ("x-auth_subject", "root"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded-host", "evil"),
            ("forwarded", "for=1.2.3.4"),
            ("x_forwarded-anything", "evil"),
            ("x-forwarded", "evil"),
            ("content_length", "5"),
            ("transfer_encoding", "chunked"),
            ("x.auth.subject", "root"),
            ("x-auth~subject", "root"),
            ("x.forwarded.for", "1.2.3.4"),
            ("content.length", "5"),
            ("proxy", "http://evil"),
            ("x-auth-subjects", "stays"),
            ("x-authosubject", "stays"),
            ("content-length", "5"),
        ]);

        strip_untrusted(&mut headers, &ReservedHeaders::new(&own), false);

        assert_eq!(names(&headers), ["content-length", "x-auth-subjects", "x-authosubject"]);
    }

    #[test]
    fn certificate_fields_of_clients_are_removed() {
        let mut headers = map(&[
            ("client-cert", ":MII=:"),
            ("client_cert_chain", ":MII=:"),
            ("ssl-client-verify", "SUCCESS"),
            ("x-ssl-client-s-dn", "CN=root"),
            ("x-client-cert", "MII"),
            ("x-tls-client-cert", "MII"),
            ("x-amzn-mtls-clientcert-subject", "CN=root"),
            ("x-forwarded-client-cert", "Hash=1"),
            ("x-ssl", "stays"),
            ("client-id", "stays"),
        ]);

        strip_untrusted(&mut headers, &ReservedHeaders::new([]), false);

        assert_eq!(names(&headers), ["client-id", "x-ssl"]);
    }

    #[test]
    fn identity_fields_of_clients_are_removed_in_every_spelling() {
        let names_of = |trusted| {
            let mut headers = map(&[
                ("remote-user", "root"),
                ("remote_user", "root"),
                ("x.remote.user", "root"),
                ("x-webauth_user", "root"),
                ("x-auth-request-email", "root"),
                ("x_auth_request_anything", "root"),
                ("x-authentik-username", "root"),
                ("x_amzn_oidc_identity", "root"),
                ("x-consumer-username", "root"),
                ("x-credential-identifier", "root"),
                ("x-goog-iap-jwt-assertion", "root"),
                ("x-ms-client-principal-id", "root"),
                ("x-pomerium-claim-email", "root"),
                ("x-remote-group", "system:masters"),
                ("x-remote-extra-scopes", "root"),
                ("x-vouch-user", "root"),
                ("x-webauth-role", "root"),
                ("x-authenticated-scope", "root"),
                ("cf-access-authenticated-user-email", "root"),
                ("oidc_claim_sub", "root"),
                ("shib-session-id", "root"),
                ("sm_user", "root"),
                ("iv-user", "root"),
                ("tailscale-user-login", "root"),
                ("x-originating-ip", "127.0.0.1"),
                ("true-client-ip", "127.0.0.1"),
                ("x_client_ip", "127.0.0.1"),
                ("x-cluster-client-ip", "127.0.0.1"),
                ("cf-connecting-ip", "127.0.0.1"),
                ("fastly-client_ip", "127.0.0.1"),
                ("x-http-method-override", "DELETE"),
                ("x_method_override", "DELETE"),
                ("x-http-method", "DELETE"),
                ("x-original-method", "DELETE"),
                ("x-real-ip", "127.0.0.1"),
                ("x_rewrite_url", "/admin"),
                ("x-forwarded-user", "root"),
                ("x_forwarded_preferred_username", "root"),
                ("x-client-id", "stays"),
                ("x-auth-requests", "stays"),
                ("x-remote", "stays"),
                ("x-ms-version", "stays"),
                ("x-access-token", "stays"),
                ("user", "stays"),
            ]);
            strip_untrusted(&mut headers, &ReservedHeaders::new([]), trusted);
            names(&headers).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };

        assert_eq!(
            names_of(false),
            [
                "user",
                "x-access-token",
                "x-auth-requests",
                "x-client-id",
                "x-ms-version",
                "x-remote"
            ]
        );
        assert!(names_of(true).iter().any(|name| name == "remote-user"));
        assert!(
            !names_of(true).iter().any(|name| name == "x-real-ip" || name.starts_with("x_forw"))
        );
    }

    #[test]
    fn te_passes_for_trailers_alone() {
        let mut headers = map(&[("te", "gzip, Trailers;q=1"), ("te", "trailers")]);
        strip_untrusted(&mut headers, &ReservedHeaders::default(), false);
        assert_eq!(headers["te"], "trailers");

        let mut headers = map(&[("te", "gzip")]);
        strip_untrusted(&mut headers, &ReservedHeaders::default(), false);
        assert!(!headers.contains_key("te"));
    }

    #[test]
    fn an_upgrade_must_be_named_by_connection_too() {
        let asks = |fields: &[(&'static str, &'static str)]| {
            strip_untrusted(&mut map(fields), &ReservedHeaders::default(), false).upgrade
        };

        assert_eq!(
            asks(&[("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")])
                .expect("an upgrade"),
            "websocket"
        );
        assert_eq!(asks(&[("upgrade", "websocket")]), None);
        assert_eq!(
            asks(&[("upgrade", "websocket"), ("upgrade", "h2c"), ("connection", "upgrade")]),
            None
        );
    }

    #[test]
    fn a_claim_cannot_break_out_of_its_field() {
        assert_eq!(encode_field_value("alice"), "alice");
        assert_eq!(encode_field_value("a b"), "a b");
        assert_eq!(encode_field_value("a\r\nx-admin: 1"), "a%0D%0Ax-admin:%201");
        assert_eq!(encode_field_value("é%"), "%C3%A9%25");
    }

    #[test]
    fn distinct_subjects_are_encoded_distinctly() {
        assert_eq!(encode_field_value("alice "), "alice%20");
        assert_eq!(encode_field_value(" alice"), "%20alice");
        assert_eq!(encode_field_value("alice\t"), "alice%09");
        assert_eq!(encode_field_value("%C3%A9"), "%25C3%25A9");
        assert_eq!(encode_field_value("a%0d%0ab"), "a%250d%250ab");
        assert_eq!(encode_field_value("50% of it"), "50% of it");
        assert_eq!(encode_field_value("5%"), "5%");
    }

    #[test]
    fn an_encoded_list_has_as_many_words_as_its_input() {
        assert_eq!(
            encode_list(["read", "order manager", "a%20b"].into_iter()),
            "read order%20manager a%2520b"
        );
        assert_eq!(encode_list(["read", "write"].into_iter()), "read write");
    }

    proptest! {
        #[test]
        fn decoding_an_encoded_value_returns_the_claim(text in "[ %a0-9Fé\r\t]{0,8}") {
            let value = encode_field_value(&text);
            let value = &*value;

            prop_assert_eq!(value.trim(), value);
            prop_assert_eq!(percent_decoded(value), text.into_bytes());
        }
    }

    fn percent_decoded(text: &str) -> Vec<u8> {
        let mut decoded = Vec::new();
        let mut rest = text.as_bytes();
        while let Some((&byte, after)) = rest.split_first() {
            let digits = after.get(..2).and_then(|two| core::str::from_utf8(two).ok());
            match digits.and_then(|two| u8::from_str_radix(two, 16).ok()) {
                Some(escaped) if byte == b'%' => {
                    decoded.push(escaped);
                    rest = &after[2..];
                }
                _ => {
                    decoded.push(byte);
                    rest = after;
                }
            }
        }
        decoded
    }

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let field =
            |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let mut map = HeaderMap::new();
        fields.iter().map(field).for_each(|(name, value)| {
            map.append(name, value);
        });
        map
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }
}
