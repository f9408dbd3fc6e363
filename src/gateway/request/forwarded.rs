//! Where a request came from: what a trusted proxy says of it, and what a service is told (RFC 7239).
//!
//! `X-Forwarded-*` goes before `Forwarded`: a proxy that writes the one lets the other through as the client sent it.
//! The host is nobody's to say: many proxies let `X-Forwarded-Host` through, and what was asked for stands in `Host`.

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
/// `X-Forwarded-Host`: the host the client asked for.
static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
static HTTPS: HeaderValue = HeaderValue::from_static("https");
static HTTP: HeaderValue = HeaderValue::from_static("http");

/// What a trusted peer says of a request's way to it.
#[derive(Debug)]
pub(crate) struct ClientInfo {
    /// The client: the last hop that is not itself a trusted proxy. Whatever stands before it could have been
    /// written by the client.
    pub client: IpAddr,
    /// Whether the client used TLS.
    pub secure: bool,
    /// The addresses before the peer, as they were said.
    chain: Option<HeaderValue>,
}

impl ClientInfo {
    /// What `peer` says in `headers`, which is one of the `trusted`.
    pub(crate) fn read(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> Self {
        let speaks_x = [&X_FORWARDED_FOR, &X_FORWARDED_PROTO];
        if speaks_x.into_iter().any(|name| headers.contains_key(name)) {
            Self::of_x_forwarded(headers, peer, trusted)
        } else {
            Self::of_forwarded(headers, peer, trusted)
        }
    }

    fn of_x_forwarded(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> Self {
        let chain = joined(headers, &X_FORWARDED_FOR);
        // A hop that is no text is none that can be read; those behind it can.
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
                // One that cannot be read says nothing, and hides what stands before it.
                None => hops = vec![Hop::default()],
            }
        }
        let chain: Vec<String> = hops
            .iter()
            .map(|hop| hop.node.map_or_else(|| "unknown".to_owned(), |node| node.to_string()))
            .collect();
        let (client, said) = client(peer, hops.iter().rev().map(|hop| (hop.node, hop)), trusted);
        Self {
            client,
            secure: said.is_some_and(|hop| hop.secure),
            chain: HeaderValue::from_str(&chain.join(", ")).ok().filter(|chain| !chain.is_empty()),
        }
    }
}

/// The last of `loop_detection`, nearest first, that is not a trusted proxy, and what was said with it.
fn client<T>(
    peer: IpAddr,
    hops: impl Iterator<Item = (Option<IpAddr>, T)>,
    trusted: &[IpNet],
) -> (IpAddr, Option<T>) {
    let mut client = (peer, None);
    for (hop, said) in hops {
        let Some(hop) = hop else { break };
        client = (hop, Some(said));
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

/// The elements of `Forwarded`; `None` if they cannot be told apart, or one says twice who or how.
fn elements(text: &str) -> Option<Vec<Hop>> {
    let mut hops = Vec::new();
    for element in outside_quotes(text, b',')? {
        let mut hop = Hop::default();
        let (mut says_node, mut says_scheme) = (false, false);
        for pair in outside_quotes(element, b';')? {
            let (name, value) = pair.trim().split_once('=')?;
            let value = match value.strip_prefix('"') {
                Some(quoted) => quoted.strip_suffix('"')?,
                None => value,
            };
            let said = if name.eq_ignore_ascii_case("for") {
                hop.node = address(value);
                &mut says_node
            } else if name.eq_ignore_ascii_case("proto") {
                hop.secure = is_secure(value.as_bytes());
                &mut says_scheme
            } else {
                continue;
            };
            if core::mem::replace(said, true) {
                return None;
            }
        }
        hops.push(hop);
    }
    Some(hops)
}

/// The parts between separators that do not stand in quotes; `None` if a quote does not end or hides a character.
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

/// An address as proxies write it: some with a port, IPv6 in brackets then.
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

/// Whether a scheme is one over TLS: `https`, or `wss` for the connection of a WebSocket. No other counts.
const fn is_secure(scheme: &[u8]) -> bool {
    scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"wss")
}

/// A value as text; what is none in it can be no part of an address.
fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

/// All fields of a name in one.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next()?, values.next());
    let Some(second) = second else { return Some(first.clone()) };
    let all: Vec<&[u8]> =
        [first, second].into_iter().chain(values).map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&all.join(&b", "[..])).ok()
}

/// What a service is told about the client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarded<'a> {
    /// What the peer's own fields said, if it is trusted.
    pub said: Option<&'a ClientInfo>,
    /// Who is connected.
    pub peer: IpAddr,
    /// The same, as a field value.
    pub peer_value: &'a HeaderValue,
    /// The host that was asked for here, with its port.
    pub host: Option<&'a HeaderValue>,
    /// Whether the client used TLS.
    pub secure: bool,
}

impl<'a> Forwarded<'a> {
    /// Writes the fields that `which` asks for.
    pub(crate) fn write(&self, fields: &mut ExtraHeaders<'a>, which: ForwardedHeaders) {
        let before = self.said.and_then(|said| said.chain.as_ref());
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

    /// The addresses before the peer, and the peer.
    fn chain(&self, before: &HeaderValue) -> Option<HeaderValue> {
        let mut chain = before.as_bytes().to_vec();
        chain.extend_from_slice(b", ");
        chain.extend_from_slice(self.peer_value.as_bytes());
        HeaderValue::from_maybe_shared(bytes::Bytes::from(chain)).ok()
    }

    /// The elements of `Forwarded`: the first says what the client did, the last who is connected.
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
    fn only_a_trusted_hop_may_say_who_was_before_it() {
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
            assert_eq!(said(&[("x-forwarded-for", chain)]).client.to_string(), client, "{chain}");
        }
        // Bytes that are no text hide what stands before them, and nothing behind.
        let mut odd = HeaderMap::new();
        for (chain, client) in [
            (&b"\xe9, 1.1.1.1, 10.0.0.2"[..], "1.1.1.1"),
            (b"6.6.6.6\xff, 1.1.1.1", "1.1.1.1"),
            (b"6.6.6.6, \xe9, 10.0.0.2", "10.0.0.2"),
        ] {
            odd.insert(&X_FORWARDED_FOR, HeaderValue::from_bytes(chain).expect("a value"));
            let said = ClientInfo::read(&odd, PEER, &["10.0.0.0/8".parse().expect("a network")]);
            assert_eq!(said.client.to_string(), client);
        }
        // What a client wrote stands before what the proxy wrote, in one field or in two.
        let two = said(&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.1.1.1")]);
        assert_eq!(two.client.to_string(), "1.1.1.1");
    }

    #[test]
    fn the_standard_field_is_read_where_the_other_is_not_written() {
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
            let said = said(&[("forwarded", field)]);
            assert_eq!((&*said.client.to_string(), said.secure), (client, secure), "{field}");
        }
        // A field of its own, behind one that cannot be read, can.
        let behind = said(&[("forwarded", "for=\"1"), ("forwarded", "for=1.1.1.1;proto=https")]);
        assert_eq!((behind.client.to_string(), behind.secure), ("1.1.1.1".to_owned(), true));
        // A proxy that writes the one lets the client's other through.
        let both =
            said(&[("forwarded", "for=6.6.6.6;proto=https"), ("x-forwarded-for", "1.1.1.1")]);
        assert_eq!((both.client.to_string(), both.secure), ("1.1.1.1".to_owned(), false));
    }

    /// A proxy lets it through as the client has sent it.
    #[test]
    fn a_field_of_very_many_parameters_takes_no_time() {
        let many: Vec<String> = (0..100_000).map(|number| format!("x{number}=;")).collect();
        let clock = Clock::system();

        let said = said(&[("forwarded", &format!("{}for=1.1.1.1", many.concat()))]);

        assert_eq!(said.client.to_string(), "1.1.1.1");
        assert!(clock.uptime() < Duration::from_secs(2), "{:?}", clock.uptime());
    }

    #[test]
    fn a_service_learns_the_whole_way() {
        let said = said(&[
            ("x-forwarded-for", "2001:db8::1, odd, 10.0.0.2"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example.com"),
        ]);
        let (peer_value, host) =
            (HeaderValue::from_static("10.0.0.1"), HeaderValue::from_static("inner"));
        let forwarded = Forwarded {
            said: Some(&said),
            peer: PEER,
            peer_value: &peer_value,
            host: Some(&host),
            secure: said.secure,
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
            let x = said(&[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", scheme)]);
            assert_eq!(x.secure, secure, "{scheme}");
            let element = format!("for=1.1.1.1;proto=\"{scheme}\"");
            assert_eq!(said(&[("forwarded", &element)]).secure, secure, "{scheme}");
        }
        let two = [("x-forwarded-proto", "https"), ("x-forwarded-proto", "http")];
        assert!(!said(&two).secure);
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(field in r#"[fort=;,"\[\]:.0-9a\\ ]{0,40}"#) {
            let _ = said(&[("forwarded", &field)]);
            let _ = said(&[("x-forwarded-for", &field)]);
        }
    }

    fn said(fields: &[(&'static str, &str)]) -> ClientInfo {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        ClientInfo::read(&headers, PEER, &["10.0.0.0/8".parse().expect("a network")])
    }

    const PEER: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1));
}
