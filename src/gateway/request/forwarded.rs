//! Forwarding information: reads `Forwarded` and `X-Forwarded-*` of trusted proxies, and writes those sent upstream
//! (RFC 7239).
//!
//! `X-Forwarded-*` takes precedence over `Forwarded`: a proxy that writes the former passes the latter on as the
//! client sent it. The host is never taken from either: many proxies pass `X-Forwarded-Host` on, and the requested
//! host is in `Host`.

use core::fmt::Write as _;
use core::net::{IpAddr, Ipv6Addr};
use std::borrow::Cow;

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

use crate::config::server::ForwardedHeaders;
use crate::upstream::ExtraHeaders;

/// `X-Forwarded-For`: the addresses a request came through, the client's first.
static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Proto`: the scheme the client used.
static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// `X-Forwarded-Host`: the host the client requested.
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static HTTPS: HeaderValue = HeaderValue::from_static("https");
static HTTP: HeaderValue = HeaderValue::from_static("http");

/// The client and scheme of a request according to the trusted proxies in front of the gateway.
#[derive(Debug)]
pub(crate) struct ClientInfo {
    /// The client: the last hop that is not itself a trusted proxy. The client could have written all entries before
    /// it.
    pub client: IpAddr,
    /// Whether the client used TLS.
    pub secure: bool,
    /// The addresses before the peer, as the peer listed them.
    chain: Option<HeaderValue>,
}

impl ClientInfo {
    /// Reads the forwarding fields of `headers`, which `peer`, one of the `trusted` proxies, sent.
    pub(crate) fn read(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> Self {
        let x_forwarded = [&X_FORWARDED_FOR, &X_FORWARDED_PROTO];
        if x_forwarded.into_iter().any(|name| headers.contains_key(name)) {
            Self::of_x_forwarded(headers, peer, trusted)
        } else {
            Self::of_forwarded(headers, peer, trusted)
        }
    }

    fn of_x_forwarded(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> Self {
        let chain = joined(headers, &X_FORWARDED_FOR);
        // A hop that is not UTF-8 cannot be read; those after it can.
        let text = chain.as_ref().map(text).unwrap_or_default();
        let hops = text.rsplit(',').map(|hop| (address(hop.trim()), ()));
        let (client, _) = client(peer, hops, trusted);
        let mut schemes = headers.get_all(&X_FORWARDED_PROTO).iter();
        let scheme = schemes.next().filter(|_| schemes.next().is_none());
        let secure = scheme.is_some_and(|scheme| is_secure(scheme.as_bytes()));
        Self { client, secure, chain }
    }

    fn of_forwarded(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> Self {
        let mut hops: Vec<Hop> = Vec::new();
        for field in headers.get_all(FORWARDED) {
            match elements(&text(field)) {
                Some(more) => hops.extend(more),
                // A field that cannot be parsed is one unknown hop, and hides the hops before it.
                None => hops = vec![Hop::default()],
            }
        }
        let chain: Vec<String> = hops
            .iter()
            .map(|hop| hop.node.map_or_else(|| "unknown".to_owned(), |node| node.to_string()))
            .collect();
        let (client, described_by) =
            client(peer, hops.iter().rev().map(|hop| (hop.node, hop)), trusted);
        Self {
            client,
            secure: described_by.is_some_and(|hop| hop.secure),
            chain: HeaderValue::from_str(&chain.join(", ")).ok().filter(|chain| !chain.is_empty()),
        }
    }
}

/// Returns the last of `hops`, nearest first, that is not a trusted proxy, and its description.
fn client<T>(
    peer: IpAddr,
    hops: impl Iterator<Item = (Option<IpAddr>, T)>,
    trusted: &[IpNet],
) -> (IpAddr, Option<T>) {
    let mut client = (peer, None);
    for (hop, description) in hops {
        let Some(hop) = hop else { break };
        client = (hop, Some(description));
        if !trusted.iter().any(|net| net.contains(&hop)) {
            break;
        }
    }
    client
}

/// One element of `Forwarded` (RFC 7239 §4).
#[derive(Debug, Default)]
struct Hop {
    /// `for`, if it is an address.
    node: Option<IpAddr>,
    secure: bool,
}

/// Parses the elements of `Forwarded`; `None` if they are malformed, or one has `for` or `proto` twice.
fn elements(text: &str) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    for element in outside_quotes(text, b',')? {
        let mut hop = Hop::default();
        let (mut has_for, mut has_proto) = (false, false);
        for pair in outside_quotes(element, b';')? {
            let (name, value) = pair.trim().split_once('=')?;
            let value = match value.strip_prefix('"') {
                Some(quoted) => quoted.strip_suffix('"')?,
                None => value,
            };
            let seen = if name.eq_ignore_ascii_case("for") {
                hop.node = address(value);
                &mut has_for
            } else if name.eq_ignore_ascii_case("proto") {
                hop.secure = is_secure(value.as_bytes());
                &mut has_proto
            } else {
                continue;
            };
            if core::mem::replace(seen, true) {
                return None;
            }
        }
        hops.push(hop);
    }
    Some(hops)
}

/// Splits `text` at separators outside quotes; `None` if a quote is not closed or contains an escape.
fn outside_quotes(text: &str, separator: u8) -> Option<Vec<&str>> {
    let (mut parts, mut begin, mut quoted) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\\' if quoted => return None,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    (!quoted).then_some(parts)
}

/// Parses an address as proxies write it: with or without a port, IPv6 in brackets if with one.
fn address(node: &str) -> Option<IpAddr> {
    let address = match node.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0.parse::<Ipv6Addr>().ok()?.into(),
        None => node.parse::<IpAddr>().ok().or_else(|| {
            let (address, port) = node.split_once(':')?;
            port.parse::<u16>().ok()?;
            address.parse().ok()
        })?,
    };
    Some(address.to_canonical())
}

/// Whether a scheme uses TLS: `https`, or `wss` for a WebSocket connection. No other counts.
const fn is_secure(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"wss")
}

/// Returns a value as text; bytes that are not UTF-8 cannot be part of an address.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// Joins all values of a field into one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next()?, values.next());
    let Some(second) = second else { return Some(first.clone()) };
    let all: Vec<&[u8]> =
        [first, second].into_iter().chain(values).map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b", "[..])).ok()
}

/// The forwarding information of one request, as sent to the upstream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarded<'a> {
    /// The forwarding fields of the peer, if it is a trusted proxy.
    pub client_info: Option<&'a ClientInfo>,
    /// The address of the peer.
    pub peer: IpAddr,
    /// The address of the peer as a field value.
    pub peer_value: &'a HeaderValue,
    /// The host of the request, with its port.
    pub host: Option<&'a HeaderValue>,
    /// Whether the client used TLS.
    pub secure: bool,
}

impl<'a> Forwarded<'a> {
    /// Adds the fields selected by `which`.
    pub(crate) fn write(&self, fields: &mut ExtraHeaders<'a>, which: ForwardedHeaders) {
        let before = self.client_info.and_then(|info| info.chain.as_ref());
        if matches!(which, ForwardedHeaders::XForwarded | ForwardedHeaders::Both) {
            match before.and_then(|before| self.chain(before)) {
                Some(chain) => fields.add_owned(&X_FORWARDED_FOR, chain),
                None => fields.add(&X_FORWARDED_FOR, self.peer_value),
            }
            fields.add(&X_FORWARDED_PROTO, if self.secure { &HTTPS } else { &HTTP });
            if let Some(host) = self.host {
                fields.add(&X_FORWARDED_HOST, host);
            }
        }
        if matches!(which, ForwardedHeaders::Forwarded | ForwardedHeaders::Both)
            && let Ok(value) = HeaderValue::from_str(&self.elements(before))
        {
            fields.add_owned(&FORWARDED, value);
        }
    }

    /// Appends the address of the peer to `before`.
    fn chain(&self, before: &HeaderValue) -> Option<HeaderValue> {
        let mut chain = before.as_bytes().to_vec();
        chain.extend_from_slice(b", ");
        chain.extend_from_slice(self.peer_value.as_bytes());
        HeaderValue::from_maybe_shared(bytes::Bytes::from(chain)).ok()
    }

    /// Formats the elements of `Forwarded`: the first describes the client, the last is the peer.
    fn elements(&self, before: Option<&HeaderValue>) -> String {
        let before = before.map(text).unwrap_or_default();
        let hops = before.split(',').map(str::trim).filter(|hop| !hop.is_empty()).map(address);
        let mut elements = String::new();
        for (index, hop) in hops.chain([Some(self.peer)]).enumerate() {
            elements.push_str(if index == 0 { "" } else { ", " });
            let _ = match hop {
                None => write!(elements, "for=unknown"),
                Some(IpAddr::V4(ip)) => write!(elements, "for={ip}"),
                Some(IpAddr::V6(ip)) => write!(elements, "for=\"[{ip}]\""),
            };
            if index == 0 {
                if let Some(host) = self.host.and_then(|host| host.to_str().ok()) {
                    let _ = write!(elements, ";host=\"{host}\"");
                }
                elements.push_str(if self.secure { ";proto=https" } else { ";proto=http" });
            }
        }
        elements
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::base::clock::Clock;

    #[test]
    fn only_a_trusted_hop_may_name_the_hop_before_it() {
        for (chain, client) in [
            ("6.6.6.6, 1.1.1.1, 10.0.0.2", "1.1.1.1"),
            ("6.6.6.6, nonsense, 10.0.0.2", "10.0.0.2"),
            ("::ffff:1.1.1.1", "1.1.1.1"),
            ("1.1.1.1:4711", "1.1.1.1"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("nonsense", "10.0.0.1"),
            ("1.1.1.1,", "10.0.0.1"),
            ("1.1.1.1:99999", "10.0.0.1"),
        ] {
            assert_eq!(info(&[("x-forwarded-for", chain)]).client.to_string(), client, "{chain}");
        }
        // Bytes that are not UTF-8 hide the hops before them, and none after them.
        let mut odd = HeaderMap::new();
        for (chain, client) in [
            (&b"\xe9, 1.1.1.1, 10.0.0.2"[..], "1.1.1.1"),
            (b"6.6.6.6\xff, 1.1.1.1", "1.1.1.1"),
            (b"6.6.6.6, \xe9, 10.0.0.2", "10.0.0.2"),
        ] {
            odd.insert(&X_FORWARDED_FOR, HeaderValue::from_bytes(chain).expect("a value"));
            let info = ClientInfo::read(&odd, PEER, &["10.0.0.0/8".parse().expect("a network")]);
            assert_eq!(info.client.to_string(), client);
        }
        // An entry of the client is before the proxy's, in one field or in two.
        let two = info(&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")]);
        assert_eq!(two.client.to_string(), "1.1.1.1");
    }

    #[test]
    fn forwarded_is_read_where_x_forwarded_is_absent() {
        for (field, client, secure) in [
            ("for=1.1.1.1;proto=https", "1.1.1.1", true),
            ("For=\"[2001:db8::1]:47\" ; Proto=HTTPS;by=x", "2001:db8::1", true),
            (
                "for=6.6.6.6;proto=https, for=1.1.1.1;proto=http, for=10.0.0.2;proto=https",
                "1.1.1.1",
                false,
            ),
            ("for=6.6.6.6, for=unknown, for=10.0.0.2", "10.0.0.2", false),
            ("for=_hidden;proto=https", "10.0.0.1", false),
            ("for=\"1.1.1.1", "10.0.0.1", false),
            ("for=\"1.1.1.1\\\"\"", "10.0.0.1", false),
            ("for=1.1.1.1;for=6.6.6.6", "10.0.0.1", false),
            ("x=\"a, for=6.6.6.6\";for=1.1.1.1", "1.1.1.1", false),
            ("nonsense", "10.0.0.1", false),
        ] {
            let info = info(&[("forwarded", field)]);
            assert_eq!((&*info.client.to_string(), info.secure), (client, secure), "{field}");
        }
        // A field after one that is malformed is read.
        let behind = info(&[("forwarded", "for=\"1"), ("forwarded", "for=1.1.1.1;proto=https")]);
        assert_eq!((behind.client.to_string(), behind.secure), ("1.1.1.1".to_owned(), true));
        // A proxy that writes `X-Forwarded-For` passes on the client's `Forwarded`.
        let both =
            info(&[("forwarded", "for=6.6.6.6;proto=https"), ("x-forwarded-for", "1.1.1.1")]);
        assert_eq!((both.client.to_string(), both.secure), ("1.1.1.1".to_owned(), false));
    }

    /// A proxy passes the field on as the client sent it.
    #[test]
    fn forwarded_with_many_parameters_is_parsed_in_linear_time() {
        let many: Vec<String> = (0..100_000).map(|number| format!("x{number}=;")).collect();
        let clock = Clock::system();

        let info = info(&[("forwarded", &format!("{}for=1.1.1.1", many.concat()))]);

        assert_eq!(info.client.to_string(), "1.1.1.1");
        assert!(clock.uptime() < Duration::from_secs(2), "{:?}", clock.uptime());
    }

    #[test]
    fn the_upstream_receives_the_whole_chain() {
        let info = info(&[
            ("x-forwarded-for", "2001:db8::1, odd, 10.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example.com"),
        ]);
        let (peer_value, host) =
            (HeaderValue::from_static("10.0.0.1"), HeaderValue::from_static("inner"));
        let forwarded = Forwarded {
            client_info: Some(&info),
            peer: PEER,
            peer_value: &peer_value,
            host: Some(&host),
            secure: info.secure,
        };
        let mut fields = ExtraHeaders::new();
        forwarded.write(&mut fields, ForwardedHeaders::Both);

        let mut headers = HeaderMap::new();
        fields.merge_into(&mut headers);
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1, odd, 10.0.0.2, 10.0.0.1");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "inner");
        assert_eq!(
            headers["forwarded"],
            "for=\"[2001:db8::1]\";host=\"inner\";proto=https, for=unknown, for=10.0.0.2, for=10.0.0.1"
        );
    }

    #[test]
    fn only_https_and_wss_are_secure() {
        for (scheme, secure) in [
            ("https", true),
            ("HTTPS", true),
            ("wss", true),
            ("ws", false),
            ("http", false),
            ("httpss", false),
            ("tls", false),
            ("https,http", false),
            ("", false),
        ] {
            let x = info(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", scheme)]);
            assert_eq!(x.secure, secure, "{scheme}");
            let element = format!("for=1.1.1.1;proto=\"{scheme}\"");
            assert_eq!(info(&[("forwarded", &element)]).secure, secure, "{scheme}");
        }
        let two = [("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")];
        assert!(!info(&two).secure);
    }

    proptest! {
        #[test]
        fn reading_arbitrary_fields_never_panics(field in r#"[fort=;,"\[\]:.0-9a\\ ]{0,40}"#) {
            let _ = info(&[("forwarded", &field)]);
            let _ = info(&[("x-forwarded-for", &field)]);
        }
    }

    fn info(fields: &[(&'static str, &str)]) -> ClientInfo {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        ClientInfo::read(&headers, PEER, &["10.0.0.0/8".parse().expect("a network")])
    }

    const PEER: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1));
}
