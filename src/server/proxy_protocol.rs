//! The PROXY protocol, versions 1 and 2: a load balancer's header before the first byte of the client, with the
//! client's address (HAProxy, `doc/proxy-protocol.txt`).

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A complete header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ProxyHeader {
    /// The bytes of the header, with the extensions (TLVs) that are skipped.
    pub(super) length: usize,
    /// The address of the client; `None` if the header names none: the balancer speaks for itself (`LOCAL`), or the
    /// client has no IP address (`UNKNOWN`, a Unix socket).
    pub(super) client: Option<IpAddr>,
}

/// The bytes are not a header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct InvalidHeader;

/// Parses the header at the beginning of `bytes`; `None` if more bytes are needed. Extensions need not be there yet:
/// [`ENOUGH_BYTES`] bytes suffice in any case.
///
/// # Errors
///
/// [`InvalidHeader`] as soon as no continuation of `bytes` is a header.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, InvalidHeader> {
    if begins(bytes, SIGNATURE) {
        return version2(bytes);
    }
    if begins(bytes, WORD) {
        return version1(bytes);
    }
    Err(InvalidHeader)
}

/// Whether `bytes` and `beginning` agree as far as both go.
fn begins(bytes: &[u8], beginning: &[u8]) -> bool {
    bytes.iter().zip(beginning).all(|(a, b)| a == b)
}

/// `PROXY TCP4 192.0.2.1 192.0.2.2 40000 443`
fn version1(bytes: &[u8]) -> Result<Option<ProxyHeader>, InvalidHeader> {
    let window = &bytes[..bytes.len().min(MAX_LINE_BYTES)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        // A line feed of its own ends no header.
        let lost = window.len() == MAX_LINE_BYTES || window.contains(&b'\n');
        return if lost { Err(InvalidHeader) } else { Ok(None) };
    };
    let line = core::str::from_utf8(&window[..end]).map_err(|_| InvalidHeader)?;
    let length = end + 2;
    let mut words = line.split(' ').skip(1);
    let family = words.next().ok_or(InvalidHeader)?;
    if family == "UNKNOWN" {
        return Ok(Some(ProxyHeader { length, client: None }));
    }
    let mut next = || words.next().ok_or(InvalidHeader);
    let (source, destination) = (next()?, next()?);
    let client = match family {
        "TCP4" => {
            let _: Ipv4Addr = destination.parse().map_err(|_| InvalidHeader)?;
            source.parse::<Ipv4Addr>().map(IpAddr::V4)
        }
        "TCP6" => {
            let _: Ipv6Addr = destination.parse().map_err(|_| InvalidHeader)?;
            source.parse::<Ipv6Addr>().map(IpAddr::V6)
        }
        _ => return Err(InvalidHeader),
    };
    let client = client.map_err(|_| InvalidHeader)?;
    let ports = [next()?, next()?];
    if words.next().is_some() || !ports.into_iter().all(is_port) {
        return Err(InvalidHeader);
    }
    Ok(Some(ProxyHeader { length, client: Some(client) }))
}

fn is_port(text: &str) -> bool {
    let canonical = text == "0" || !text.starts_with('0');
    canonical && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn version2(bytes: &[u8]) -> Result<Option<ProxyHeader>, InvalidHeader> {
    let command = match bytes.get(SIGNATURE.len()) {
        None => return Ok(None),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(_) => return Err(InvalidHeader),
    };
    let Some(&[_, protocol, high, low]) = bytes.get(SIGNATURE.len()..HEAD_BYTES) else {
        return Ok(None);
    };
    if protocol >> 4 > 3 || protocol & 0xf > 2 {
        return Err(InvalidHeader);
    }
    let rest = usize::from(u16::from_be_bytes([high, low]));
    let length = HEAD_BYTES + rest;
    let local = ProxyHeader { length, client: None };
    let addresses = match (command, protocol) {
        (Command::Proxy, TCP_IPV4) => 12,
        (Command::Proxy, TCP_IPV6) => 36,
        // Addresses of other families are ignored.
        _ => return Ok(Some(local)),
    };
    if rest < addresses {
        return Err(InvalidHeader);
    }
    let Some(addresses) = bytes.get(HEAD_BYTES..HEAD_BYTES + addresses) else { return Ok(None) };
    let client = if let (TCP_IPV4, Some(address)) = (protocol, addresses.first_chunk::<4>()) {
        IpAddr::from(*address)
    } else if let Some(address) = addresses.first_chunk::<16>() {
        IpAddr::from(*address)
    } else {
        return Err(InvalidHeader);
    };
    Ok(Some(ProxyHeader { length, client: Some(client) }))
}

/// The command of version 2.
#[derive(Clone, Copy)]
enum Command {
    Local,
    Proxy,
}

/// The bytes after which [`parse`] has decided.
pub(super) const ENOUGH_BYTES: usize = MAX_LINE_BYTES;
/// The longest line of version 1, with its end.
const MAX_LINE_BYTES: usize = 107;
const WORD: &[u8] = b"PROXY ";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part of version 2.
const HEAD_BYTES: usize = 16;
const TCP_IPV4: u8 = 0x11;
const TCP_IPV6: u8 = 0x21;

/// Checks the properties that hold for any bytes.
#[cfg(any(fuzzing, test))]
pub fn header(bytes: &[u8]) {
    let whole = parse(bytes);
    for end in 0..bytes.len() {
        match (parse(&bytes[..end]), whole) {
            // An early decision is not reversed later.
            (Ok(None), _) => {}
            (decided, whole) => assert_eq!(decided, whole, "{end} bytes"),
        }
    }
    if bytes.len() >= ENOUGH_BYTES {
        assert_ne!(whole, Ok(None));
    }
    if let Ok(Some(header)) = whole {
        assert!(header.length >= MIN_HEADER_BYTES);
        // Bytes after a header do not change it.
        let mut more = bytes.to_vec();
        more.extend_from_slice(b"\r\nGET / HTTP/1.1\r\n\r\n");
        assert_eq!(parse(&more), whole);
    }
}

/// `PROXY UNKNOWN` with its end.
#[cfg(any(fuzzing, test))]
const MIN_HEADER_BYTES: usize = 15;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_of_version_1_names_the_client() {
        for (line, client) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 40000 443\r\n", Some("192.0.2.1")),
            ("PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", Some("255.255.255.255")),
            ("PROXY TCP6 2001:db8::1 ::1 0 443\r\n", Some("2001:db8::1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
        ] {
            let client = client.map(|client| client.parse().expect("an address"));
            let wanted = Ok(Some(ProxyHeader { length: line.len(), client }));
            assert_eq!(parse(line.as_bytes()), wanted, "{line}");
            assert_eq!(parse(format!("{line}GET / HTTP/1.1\r\n").as_bytes()), wanted, "{line}");
            header(line.as_bytes());
        }
    }

    #[test]
    fn a_line_in_any_other_form_is_refused() {
        for line in [
            "GET / HTTP/1.1\r\n",
            "proxy TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY \r\n",
            "PROXY UNKNOWNS\r\n",
        ] {
            assert_eq!(parse(line.as_bytes()), Err(InvalidHeader), "{line:?}");
        }
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(parse(long.as_bytes()), Err(InvalidHeader));
    }

    #[test]
    fn a_header_of_version_2_names_the_client_and_its_extensions_are_skipped() {
        let ipv4 = [192, 0, 2, 1, 192, 0, 2, 2, 0x9c, 0x40, 1, 0xbb];
        let mut ipv6 = [0; 36];
        ipv6[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().expect("one").octets());
        for (command, protocol, rest, client) in [
            (0x21, 0x11, &ipv4[..], Some("192.0.2.1")),
            (0x21, 0x21, &ipv6, Some("2001:db8::1")),
            (0x21, 0x12, &ipv4, None),
            (0x21, 0x31, &[b'x'; 216], None),
            (0x21, 0x00, &[], None),
            (0x20, 0x00, &[], None),
            (0x20, 0x11, &ipv4, None),
            (0x20, 0x11, &[1, 2, 3], None),
        ] {
            for extension in [&[][..], &[3, 0, 4, 1, 2, 3, 4], &[0xee; 4000]] {
                let bytes = version2_header(command, protocol, &[rest, extension].concat());
                let client = client.map(|client| client.parse().expect("an address"));
                assert_eq!(parse(&bytes), Ok(Some(ProxyHeader { length: bytes.len(), client })));
                header(&bytes);
            }
        }
    }

    #[test]
    fn a_malformed_header_of_version_2_is_refused() {
        for (command, protocol, rest) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x21, 0x41, 12),
            (0x21, 0x13, 12),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
        ] {
            let bytes = version2_header(command, protocol, &vec![1; rest]);
            assert_eq!(parse(&bytes), Err(InvalidHeader), "{command} {protocol} {rest}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decided_once(
            start in prop_oneof![Just(&b""[..]), Just(WORD), Just(&b"PROXY TCP4 1.2.3.4 "[..]), Just(SIGNATURE)],
            rest in proptest::collection::vec(any::<u8>(), 0..150),
        ) {
            header(&[start, &rest].concat());
        }
    }

    fn version2_header(command: u8, protocol: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, protocol]);
        bytes.extend((rest.len() as u16).to_be_bytes());
        bytes.extend(rest);
        bytes
    }
}
