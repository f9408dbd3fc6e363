//! The heads of requests: read in the one way that everybody reads alike, or refused (RFC 9112 §2, §3, §6).

use core::mem::MaybeUninit;

use bytes::{Buf, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};
use httparse::Status;
use memchr::{memchr, memmem};

use crate::gateway::FramingError;
use crate::http1::{Framing, HeaderNameCache, has_no_extensions};

/// A request's head, out of the buffer it came in.
#[derive(Debug)]
pub(super) struct Head {
    /// What was asked; among its extensions [`Unclear`], if what follows cannot be told.
    pub(super) parts: Parts,
    /// Where the body ends; a body of no length if there is none.
    pub(super) framing: Framing,
    /// Whether the client would send another request on the same connection.
    pub(super) persists: bool,
    /// Whether it waits for `100 Continue` before it sends the body.
    pub(super) expects: bool,
    /// Whether it would speak another protocol.
    pub(super) upgrades: bool,
    /// Whether it reads trailers.
    pub(super) trailers: bool,
}

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadLimits {
    /// In bytes.
    pub(super) size: usize,
    /// In fields.
    pub(super) fields: usize,
}

/// What came is no request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ParseError {
    /// It is not HTTP/1.
    Malformed,
    /// It is larger than its bounds.
    TooLarge,
    /// Its target alone is (RFC 9112 §3).
    TargetTooLong,
}

/// Takes heads off a connection's bytes.
#[derive(Debug, Default)]
pub(super) struct HeadParser {
    names: HeaderNameCache,
    /// How much of an unfinished head has been looked at.
    seen: usize,
}

impl HeadParser {
    /// Takes one head off the front of `read`; `None` if it is not all there.
    ///
    /// # Errors
    ///
    /// Why none can be.
    pub(super) fn take(
        &mut self,
        read: &mut BytesMut,
        bounds: HeadLimits,
    ) -> Result<Option<Head>, ParseError> {
        // Empty lines before a request mean nothing (RFC 9112 §2.2).
        while read.starts_with(b"\r\n") {
            read.advance(2);
        }
        if self.is_unfinished(read) {
            return if read.len() > bounds.size { Err(too_large(read)) } else { Ok(None) };
        }
        let mut few = [const { MaybeUninit::uninit() }; TYPICAL_FIELDS];
        let mut places = [[0; 4]; TYPICAL_FIELDS];
        let located = match FieldSpan::find(read, &mut few, &mut places) {
            Err(httparse::Error::TooManyHeaders) if bounds.fields > TYPICAL_FIELDS => {
                let mut many = vec![MaybeUninit::uninit(); bounds.fields];
                let mut places = vec![[0; 4]; bounds.fields];
                match FieldSpan::find(read, &mut many, &mut places) {
                    Ok(Some(located)) => return self.read(&located, read, &places, bounds),
                    other => other,
                }
            }
            located => located,
        };
        match located {
            Ok(Some(located)) => self.read(&located, read, &places, bounds),
            Ok(None) if read.len() > bounds.size => Err(too_large(read)),
            Ok(None) => {
                self.seen = read.len();
                Ok(None)
            }
            Err(httparse::Error::TooManyHeaders) => Err(ParseError::TooLarge),
            Err(_) => Err(ParseError::Malformed),
        }
    }

    /// Whether a head that was not whole before still is not: one that comes byte by byte is not parsed
    /// for each of them.
    fn is_unfinished(&mut self, read: &[u8]) -> bool {
        if self.seen == 0 {
            return false;
        }
        let new = &read[self.seen.saturating_sub(3).min(read.len())..];
        let ends = |end: &[u8]| memmem::find(new, end).is_some();
        let unfinished = !ends(b"\n\r\n") && !ends(b"\n\n");
        self.seen = if unfinished { read.len() } else { 0 };
        unfinished
    }

    fn read(
        &mut self,
        located: &FieldSpan,
        read: &mut BytesMut,
        places: &[Span],
        bounds: HeadLimits,
    ) -> Result<Option<Head>, ParseError> {
        self.seen = 0;
        if located.target[1] as usize > MAX_TARGET_BYTES.min(bounds.size) {
            return Err(ParseError::TargetTooLong);
        }
        if located.length > bounds.size || located.fields > bounds.fields {
            return Err(ParseError::TooLarge);
        }
        let bytes = read.split_to(located.length).freeze();
        let part = |start: u32, length: u32| start as usize..(start + length) as usize;
        let target = bytes.slice(part(located.target[0], located.target[1]));
        // A line that ends in LF alone, or a fragment, is read by some and not by others (RFC 9112 §2.2, §3.2).
        let ambiguous = has_no_extensions(&bytes) || memchr(b'#', &target).is_some();
        let mut said = FramingFields { ambiguous, ..FramingFields::default() };
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.version = located.version;
        parts.method = located.method.clone();
        parts.uri = Uri::from_maybe_shared(target).map_err(|_| ParseError::Malformed)?;
        let mut headers = HeaderMap::with_capacity(located.fields);
        for (place, &[name, name_length, value, value_length]) in
            places[..located.fields].iter().enumerate()
        {
            let name = self
                .names
                .parse(place, &bytes[part(name, name_length)])
                .map_err(|_| ParseError::Malformed)?;
            // Values share the buffer they came in.
            let value = HeaderValue::from_maybe_shared(bytes.slice(part(value, value_length)))
                .map_err(|_| ParseError::Malformed)?;
            if said.takes(&name, &value) {
                headers.try_append(name, value).map_err(|_| ParseError::TooLarge)?;
            }
        }
        Ok(Some(said.head(parts, headers)))
    }
}

/// What makes a head too large whose end has not come: its target, if not even that has ended.
fn too_large(read: &[u8]) -> ParseError {
    let ended = memchr(b'\n', read).is_some();
    if ended { ParseError::TooLarge } else { ParseError::TargetTooLong }
}

/// Start and length of a field's name and value.
type Span = [u32; 4];

/// Where the parts of a head are in the buffer.
#[derive(Debug)]
struct FieldSpan {
    length: usize,
    method: Method,
    target: [u32; 2],
    version: Version,
    fields: usize,
}

impl FieldSpan {
    fn find<'b>(
        read: &'b [u8],
        fields: &mut [MaybeUninit<httparse::Header<'b>>],
        places: &mut [Span],
    ) -> Result<Option<Self>, httparse::Error> {
        let mut request = httparse::Request::new(&mut []);
        let Status::Complete(length) = request.parse_with_uninit_headers(read, fields)? else {
            return Ok(None);
        };
        let start = read.as_ptr().addr();
        let place = |part: &[u8]| [(part.as_ptr().addr() - start) as u32, part.len() as u32];
        for (field, at) in request.headers.iter().zip(&mut *places) {
            let ([name, name_length], [value, value_length]) =
                (place(field.name.as_bytes()), place(field.value));
            *at = [name, name_length, value, value_length];
        }
        let method = request.method.unwrap_or_default().as_bytes();
        Ok(Some(Self {
            length,
            method: Method::from_bytes(method).map_err(|_| httparse::Error::Token)?,
            target: place(request.path.unwrap_or_default().as_bytes()),
            version: if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 },
            fields: request.headers.len(),
        }))
    }
}

/// What a head's fields say about the connection and the body (RFC 9110 §7.6.1, §10.1.1, RFC 9112 §6).
#[derive(Debug, Default)]
struct FramingFields {
    length: Option<u64>,
    codings: Vec<HeaderValue>,
    ambiguous: bool,
    closes: bool,
    keeps: bool,
    expects: bool,
    upgrades: bool,
    trailers: bool,
}

impl FramingFields {
    /// Takes note of a field; whether it is for others as well.
    fn takes(&mut self, name: &HeaderName, value: &HeaderValue) -> bool {
        match *name {
            CONTENT_LENGTH => {
                let length = digits(value.as_bytes());
                let repeated = self.length.is_some();
                self.ambiguous |= length.is_none() || (repeated && self.length != length);
                self.length = length.or(Some(0));
                // What is said twice alike is said once (RFC 9112 §6.3).
                return !repeated;
            }
            TRANSFER_ENCODING => {
                self.codings.push(value.clone());
                return false;
            }
            CONNECTION => {
                for option in list(value) {
                    self.closes |= option.eq_ignore_ascii_case(b"close");
                    self.keeps |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            EXPECT => self.expects = value.as_bytes().eq_ignore_ascii_case(b"100-continue"),
            UPGRADE => self.upgrades = true,
            TE => {
                self.trailers |= list(value).any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
            }
            _ => {}
        }
        true
    }

    fn head(mut self, mut parts: Parts, headers: HeaderMap) -> Head {
        parts.headers = headers;
        let http11 = parts.version == Version::HTTP_11;
        let framing = self.framing(http11);
        if let Err(unclear) = framing {
            parts.extensions.insert(unclear);
        }
        let persists = framing.is_ok() && !self.closes && (http11 || self.keeps);
        let framing = framing.unwrap_or(Framing::Length(0));
        let has_body = framing != Framing::Length(0);
        Head {
            parts,
            framing,
            persists,
            expects: self.expects && http11 && has_body,
            upgrades: self.upgrades && http11 && !has_body,
            trailers: self.trailers,
        }
    }

    /// Where the body ends (RFC 9112 §6.3). What leaves a doubt is refused, however it might be resolved.
    fn framing(&mut self, http11: bool) -> Result<Framing, FramingError> {
        if self.ambiguous {
            return Err(FramingError::Ambiguous);
        }
        if self.codings.is_empty() {
            return Ok(Framing::Length(self.length.unwrap_or(0)));
        }
        // HTTP/1.0 knows no codings (CVE-2026-2835).
        if self.length.is_some() || !http11 {
            return Err(FramingError::Ambiguous);
        }
        let mut codings: Vec<&[u8]> = self.codings.iter().flat_map(list).collect();
        let is_chunked = |coding: &&[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let last = codings.pop();
        if !last.as_ref().is_some_and(is_chunked)
            || codings.iter().any(|coding| coding.is_empty() || is_chunked(coding))
        {
            return Err(FramingError::Ambiguous);
        }
        if codings.is_empty() { Ok(Framing::Chunked) } else { Err(FramingError::UnknownCoding) }
    }
}

/// The members of a field that is a list.
fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// A `Content-Length`: digits and nothing else.
fn digits(value: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(value).ok()?;
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

const TYPICAL_FIELDS: usize = 32;
/// What the type of a URI takes.
const MAX_TARGET_BYTES: usize = u16::MAX as usize - 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_head_and_leaves_what_follows() {
        let mut read =
            BytesMut::from("\r\nPOST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");

        let head = HeadParser::default().take(&mut read, BOUNDS).expect("readable").expect("whole");

        assert_eq!(
            (head.parts.method, head.parts.uri.to_string()),
            (Method::POST, "/a?b".to_owned())
        );
        assert_eq!(
            (head.framing, head.persists, &read[..]),
            (Framing::Length(2), true, &b"hi"[..])
        );
        assert_eq!(head.parts.headers["host"], "h");
    }

    #[test]
    fn the_end_of_a_body_is_told_in_one_way() {
        for (fields, framing) in [
            ("", Framing::Length(0)),
            ("Content-Length: 7\r\n", Framing::Length(7)),
            ("Content-Length: 7\r\nContent-Length: 7\r\n", Framing::Length(7)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
        ] {
            let head = head("POST", "1.1", fields);
            assert_eq!((head.framing, unclear(&head)), (framing, None), "{fields}");
        }
        for (fields, why) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", FramingError::Ambiguous),
            ("Transfer-Encoding: chunked\r\nContent-Length: x\r\n", FramingError::Ambiguous),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", FramingError::Ambiguous),
            ("Content-Length: 5, 5\r\n", FramingError::Ambiguous),
            ("Content-Length: +5\r\n", FramingError::Ambiguous),
            ("Content-Length:\r\n", FramingError::Ambiguous),
            ("Content-Length: 18446744073709551616\r\n", FramingError::Ambiguous),
            ("Transfer-Encoding: identity\r\n", FramingError::Ambiguous),
            ("Transfer-Encoding: chunked, chunked\r\n", FramingError::Ambiguous),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                FramingError::Ambiguous,
            ),
            ("Transfer-Encoding: ,chunked\r\n", FramingError::Ambiguous),
            ("Transfer-Encoding: gzip, chunked\r\n", FramingError::UnknownCoding),
            (
                "Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
                FramingError::UnknownCoding,
            ),
        ] {
            let head = head("POST", "1.1", fields);
            assert_eq!((head.framing, head.persists), (Framing::Length(0), false), "{fields}");
            assert_eq!(unclear(&head), Some(why), "{fields}");
        }
        let old = head("POST", "1.0", "Transfer-Encoding: chunked\r\n");
        assert_eq!(unclear(&old), Some(FramingError::Ambiguous));
    }

    #[test]
    fn lines_and_targets_with_two_readings_are_unclear() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(
                unclear(&whole(text).expect("readable")),
                Some(FramingError::Ambiguous),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in [
            "GET / HTTP/1.2\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
            "GET / HTTP/1.1\r\nA: \0\r\n\r\n",
            "\n\nGARBAGE\r\n\r\n",
        ] {
            assert_eq!(whole(text).err(), Some(ParseError::Malformed), "{text:?}");
        }
    }

    #[test]
    fn a_connection_goes_on_if_both_sides_would() {
        for (version, fields, persists) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, CLOSE\r\n", false),
            ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: close, keep-alive\r\n", false),
        ] {
            assert_eq!(head("GET", version, fields).persists, persists, "{version} {fields}");
        }
    }

    #[test]
    fn a_client_waits_for_100_only_with_a_body_and_never_in_http_1_0() {
        let body = "Expect: 100-Continue\r\nContent-Length: 1\r\n";
        assert!(head("PUT", "1.1", body).expects);
        assert!(!head("PUT", "1.0", body).expects);
        assert!(!head("PUT", "1.1", "Expect: 100-continue\r\n").expects);
    }

    #[test]
    fn a_head_has_bounds() {
        let fields = "A: b\r\n".repeat(40);
        assert!(whole(&format!("GET / HTTP/1.1\r\n{fields}\r\n")).is_ok());
        for text in [
            format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(BOUNDS.fields + 1)),
            format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(BOUNDS.size)),
            // Without an end, too.
            format!("GET / HTTP/1.1\r\nA: {}", "b".repeat(BOUNDS.size)),
        ] {
            assert_eq!(whole(&text).err(), Some(ParseError::TooLarge), "{}", text.len());
        }
        for text in [
            format!("GET /{}", "b".repeat(BOUNDS.size)),
            format!("GET /{} HTTP/1.1\r\n\r\n", "b".repeat(BOUNDS.size)),
            format!("GET http://h/{} HTTP/1.1\r\nHost: h\r\n\r\n", "{".repeat(BOUNDS.size)),
        ] {
            assert_eq!(whole(&text).err(), Some(ParseError::TargetTooLong), "{}", text.len());
        }
    }

    #[test]
    fn a_head_that_comes_byte_by_byte_is_read_when_it_is_whole() {
        let text = "GET /a HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n";
        let (mut heads, mut read) = (HeadParser::default(), BytesMut::new());
        for (at, byte) in text.bytes().enumerate() {
            read.extend_from_slice(&[byte]);
            let head = heads.take(&mut read, BOUNDS).expect("readable");
            assert_eq!(head.is_some(), at + 1 == text.len(), "{at}");
        }
    }

    fn head(method: &str, version: &str, fields: &str) -> Head {
        whole(&format!("{method} / HTTP/{version}\r\n{fields}\r\n")).expect("readable")
    }

    fn whole(text: &str) -> Result<Head, ParseError> {
        let head = HeadParser::default().take(&mut BytesMut::from(text), BOUNDS)?;
        Ok(head.expect("it is all there"))
    }

    fn unclear(head: &Head) -> Option<FramingError> {
        head.parts.extensions.get().copied()
    }

    const BOUNDS: HeadLimits = HeadLimits { size: 2000, fields: 50 };
}
