//! Request heads: parsed only if all servers parse them alike, and refused otherwise (RFC 9112 §2, §3, §6).

use core::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Version};
use httparse::Status;
use memchr::{memchr, memmem};

use super::head_limits::HeadLimits;
use crate::base::content_length;
use crate::base::raw_target::{self, BadTarget};
use crate::gateway::FramingError;
use crate::http1::{Framing, HeaderNameCache, has_no_extensions};

/// A parsed request head.
#[derive(Debug)]
pub(super) struct Head {
    /// The head; its extensions hold a [`FramingError`] if the end of the request is undetermined.
    pub(super) parts: Parts,
    /// The framing of the content; a length of zero if there is none.
    pub(super) framing: Framing,
    /// Whether the client keeps the connection open for another request.
    pub(super) persists: bool,
    /// Whether the client waits for `100 Continue` before it sends the content.
    pub(super) expects_continue: bool,
    /// Whether the request has an upgrade.
    pub(super) upgrades: bool,
    /// Whether the client accepts trailers.
    pub(super) trailers: bool,
}

/// A parse error of a request head.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ParseError {
    /// The bytes are not an HTTP/1 request.
    Malformed,
    /// The head exceeds the limits.
    TooLarge,
    /// The request target exceeds the limit (RFC 9112 §3).
    TargetTooLong,
}

/// A request head that was not accepted.
#[derive(Debug)]
pub(super) struct RefusedHead {
    pub(super) error: ParseError,
    /// The fields that can be read all the same, as far as the head has arrived: they decide the format in which the
    /// client reads the response.
    pub(super) fields: HeaderMap,
    /// The bytes of its cookies, as far as the head has arrived.
    pub(super) cookie_bytes: usize,
}

/// Parses heads from the buffer of a connection.
#[derive(Debug, Default)]
pub(super) struct HeadParser {
    names: HeaderNameCache,
    /// The bytes of an incomplete head that were scanned for its end.
    scanned: usize,
}

impl HeadParser {
    /// Parses one head at the front of `read` and removes it; `None` if it is incomplete.
    ///
    /// # Errors
    ///
    /// [`RefusedHead`], whose bytes remain.
    pub(super) fn parse(
        &mut self,
        read: &mut BytesMut,
        bounds: HeadLimits,
    ) -> Result<Option<Head>, RefusedHead> {
        self.parse_strictly(read, bounds).map_err(|error| RefusedHead {
            error,
            fields: readable_fields(read, bounds.fields),
            cookie_bytes: cookie_bytes(read),
        })
    }

    fn parse_strictly(
        &mut self,
        read: &mut BytesMut,
        bounds: HeadLimits,
    ) -> Result<Option<Head>, ParseError> {
        // Empty lines before a request are ignored (RFC 9112 §2.2).
        while read.starts_with(b"\r\n") {
            read.advance(2);
        }
        if self.is_unfinished(read) {
            return if read.len() > bounds.size { Err(too_large(read, bounds)) } else { Ok(None) };
        }
        let mut typical = [const { MaybeUninit::uninit() }; TYPICAL_FIELDS];
        let mut spans = [[0; 4]; TYPICAL_FIELDS];
        let located = match FieldSpan::find(read, &mut typical, &mut spans) {
            Err(httparse::Error::TooManyHeaders) if bounds.fields > TYPICAL_FIELDS => {
                let mut many = vec![MaybeUninit::uninit(); bounds.fields];
                let mut spans = vec![[0; 4]; bounds.fields];
                match FieldSpan::find(read, &mut many, &mut spans) {
                    Ok(Some(located)) => return self.read(&located, read, &spans, bounds),
                    other => other,
                }
            }
            Err(httparse::Error::Token) => {
                let Some(masked) = without_raw_bytes(read) else {
                    return Err(ParseError::Malformed);
                };
                let mut many = vec![MaybeUninit::uninit(); bounds.fields];
                let mut spans = vec![[0; 4]; bounds.fields];
                match FieldSpan::find(&masked, &mut many, &mut spans) {
                    Ok(Some(located)) => return self.read(&located, read, &spans, bounds),
                    Ok(None) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            located => located,
        };
        match located {
            Ok(Some(located)) => self.read(&located, read, &spans, bounds),
            Ok(None) if read.len() > bounds.size => Err(too_large(read, bounds)),
            Ok(None) => {
                self.scanned = read.len();
                Ok(None)
            }
            Err(httparse::Error::TooManyHeaders) => Err(ParseError::TooLarge),
            Err(_) => Err(ParseError::Malformed),
        }
    }

    /// Whether a head that was incomplete before still is: a head that arrives byte by byte is not parsed again for
    /// each of them.
    fn is_unfinished(&mut self, read: &[u8]) -> bool {
        if self.scanned == 0 {
            return false;
        }
        let new = &read[self.scanned.saturating_sub(3).min(read.len())..];
        let ends = |end: &[u8]| memmem::find(new, end).is_some();
        let unfinished = !ends(b"\n\r\n") && !ends(b"\n\n");
        self.scanned = if unfinished { read.len() } else { 0 };
        unfinished
    }

    fn read(
        &mut self,
        located: &FieldSpan,
        read: &mut BytesMut,
        spans: &[Span],
        bounds: HeadLimits,
    ) -> Result<Option<Head>, ParseError> {
        self.scanned = 0;
        if located.target[1] as usize > bounds.target() {
            return Err(ParseError::TargetTooLong);
        }
        if located.length > bounds.size || located.fields > bounds.fields {
            return Err(ParseError::TooLarge);
        }
        let bytes = read.split_to(located.length).freeze();
        let head = self.read_fields(located, &bytes, spans);
        if head.is_err() {
            *read = BytesMut::from(&*bytes);
        }
        head.map(Some)
    }

    /// Reads the head in `bytes`, whose parts are `located`.
    fn read_fields(
        &mut self,
        located: &FieldSpan,
        bytes: &Bytes,
        spans: &[Span],
    ) -> Result<Head, ParseError> {
        let part = |start: u32, length: u32| start as usize..(start + length) as usize;
        let target = bytes.slice(part(located.target[0], located.target[1]));
        // A line that ends in LF alone, or a fragment, is parsed differently by different servers (RFC 9112 §2.2,
        // §3.2).
        let ambiguous = has_no_extensions(bytes) || memchr(b'#', &target).is_some();
        let mut framing_fields = FramingFields { ambiguous, ..FramingFields::default() };
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.version = located.version;
        parts.method = located.method.clone();
        parts.uri = raw_target::parse(target).map_err(|error| match error {
            BadTarget::Malformed => ParseError::Malformed,
            BadTarget::TooLong => ParseError::TargetTooLong,
        })?;
        let mut headers = HeaderMap::with_capacity(located.fields);
        for (index, &[name, name_length, value, value_length]) in
            spans[..located.fields].iter().enumerate()
        {
            let name = self
                .names
                .parse(index, &bytes[part(name, name_length)])
                .map_err(|_| ParseError::Malformed)?;
            // Values share the buffer of the head.
            let value = HeaderValue::from_maybe_shared(bytes.slice(part(value, value_length)))
                .map_err(|_| ParseError::Malformed)?;
            if framing_fields.record(&name, &value) {
                headers.try_append(name, value).map_err(|_| ParseError::TooLarge)?;
            }
        }
        Ok(framing_fields.head(parts, headers))
    }
}

/// Returns the error for an incomplete head beyond the limits: its target may be too long, or even that incomplete.
fn too_large(read: &[u8], bounds: HeadLimits) -> ParseError {
    let line = memchr(b'\n', read).map(|end| &read[..end]);
    let target = line.and_then(|line| line.split(|byte| *byte == b' ').nth(1));
    match target {
        Some(target) if target.len() <= bounds.target() => ParseError::TooLarge,
        _ => ParseError::TargetTooLong,
    }
}

/// Returns the bytes of the cookies in a head that may be malformed, too large or incomplete.
fn cookie_bytes(read: &[u8]) -> usize {
    let lines = read.split(|byte| *byte == b'\n').skip(1).map(<[u8]>::trim_ascii_end);
    let fields = lines.take_while(|line| !line.is_empty());
    let values = fields.filter_map(|line| line.split_at_checked(COOKIE.as_str().len() + 1));
    let is_cookie = |name: &[u8]| name.eq_ignore_ascii_case(b"cookie:");
    values.filter(|(name, _)| is_cookie(name)).map(|(_, value)| value.trim_ascii().len()).sum()
}

/// Returns up to `limit` fields of a head that may be malformed, too large or incomplete, without its cookies.
fn readable_fields(read: &[u8], limit: usize) -> HeaderMap {
    let mut fields = HeaderMap::new();
    // The last line may be incomplete.
    let lines = read.split_inclusive(|byte| *byte == b'\n').skip(1).take(limit);
    let lines = lines.map_while(|line| line.strip_suffix(b"\n")).map(<[u8]>::trim_ascii_end);
    for line in lines.take_while(|line| !line.is_empty()) {
        let Some(colon) = memchr(b':', line) else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value))
            && name != COOKIE
            && fields.try_append(name, value).is_err()
        {
            break;
        }
    }
    fields
}

/// Start and length of a field's name and value.
type Span = [u32; 4];

/// The positions of the parts of a head in the buffer.
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
        spans: &mut [Span],
    ) -> Result<Option<Self>, httparse::Error> {
        let mut request = httparse::Request::new(&mut []);
        let Status::Complete(length) = request.parse_with_uninit_headers(read, fields)? else {
            return Ok(None);
        };
        let start = read.as_ptr().addr();
        let span = |part: &[u8]| [(part.as_ptr().addr() - start) as u32, part.len() as u32];
        for (field, slot) in request.headers.iter().zip(&mut *spans) {
            let ([name, name_length], [value, value_length]) =
                (span(field.name.as_bytes()), span(field.value));
            *slot = [name, name_length, value, value_length];
        }
        let method = request.method.unwrap_or_default().as_bytes();
        Ok(Some(Self {
            length,
            method: Method::from_bytes(method).map_err(|_| httparse::Error::Token)?,
            target: span(request.path.unwrap_or_default().as_bytes()),
            version: if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 },
            fields: request.headers.len(),
        }))
    }
}

/// Returns a copy with a letter in place of every byte of the target that is not ASCII; `None` if there is none.
/// httparse refuses targets that are not UTF-8: their positions are found in the copy.
fn without_raw_bytes(read: &[u8]) -> Option<Vec<u8>> {
    let line = memchr(b'\n', read).unwrap_or(read.len());
    let target = memchr(b' ', &read[..line])?;
    if read[target..line].is_ascii() {
        return None;
    }
    let mut masked = read.to_vec();
    masked[target..line].iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'x');
    Some(masked)
}

/// The fields that determine connection handling and framing (RFC 9110 §7.6.1, §10.1.1, RFC 9112 §6).
#[derive(Debug, Default)]
struct FramingFields {
    length: Option<u64>,
    codings: Vec<HeaderValue>,
    ambiguous: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    upgrades: bool,
    trailers: bool,
}

impl FramingFields {
    /// Records a field; returns whether it is also kept in the header map.
    fn record(&mut self, name: &HeaderName, value: &HeaderValue) -> bool {
        match *name {
            CONTENT_LENGTH => {
                let length = content_length::parse(value.as_bytes());
                let repeated = self.length.is_some();
                self.ambiguous |= length.is_none() || (repeated && self.length != length);
                self.length = length.or(Some(0));
                // Equal repeated lengths count as one (RFC 9112 §6.3).
                return !repeated;
            }
            TRANSFER_ENCODING => {
                self.codings.push(value.clone());
                return false;
            }
            CONNECTION => {
                for option in list(value) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            EXPECT => {
                self.expects_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
            }
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
        if let Err(error) = framing {
            parts.extensions.insert(error);
        }
        let persists = framing.is_ok() && !self.close && (http11 || self.keep_alive);
        let framing = framing.unwrap_or(Framing::Length(0));
        let has_body = framing != Framing::Length(0);
        Head {
            parts,
            framing,
            persists,
            expects_continue: self.expects_continue && http11 && has_body,
            upgrades: self.upgrades && http11 && !has_body,
            trailers: self.trailers,
        }
    }

    /// Determines the framing of the content (RFC 9112 §6.3). Every ambiguity is refused, however it could be
    /// resolved.
    fn framing(&mut self, http11: bool) -> Result<Framing, FramingError> {
        if self.ambiguous {
            return Err(FramingError::Ambiguous);
        }
        if self.codings.is_empty() {
            return Ok(Framing::Length(self.length.unwrap_or(0)));
        }
        // HTTP/1.0 has no transfer codings (CVE-2026-2835).
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

/// Returns the members of a list field.
fn list(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

const TYPICAL_FIELDS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_head_and_leaves_what_follows() {
        let mut read =
            BytesMut::from("\r\nPOST /a?b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");

        let head =
            HeadParser::default().parse(&mut read, BOUNDS).expect("readable").expect("whole");

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
    fn content_has_exactly_one_framing() {
        for (fields, framing) in [
            ("", Framing::Length(0)),
            ("Content-Length: 7\r\n", Framing::Length(7)),
            ("Content-Length: 7\r\nContent-Length: 7\r\n", Framing::Length(7)),
            ("Transfer-Encoding: Chunked\r\n", Framing::Chunked),
        ] {
            let head = head("POST", "1.1", fields);
            assert_eq!((head.framing, framing_error(&head)), (framing, None), "{fields}");
        }
        for (fields, error) in [
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
            assert_eq!(framing_error(&head), Some(error), "{fields}");
        }
        let old = head("POST", "1.0", "Transfer-Encoding: chunked\r\n");
        assert_eq!(framing_error(&old), Some(FramingError::Ambiguous));
    }

    #[test]
    fn ambiguous_lines_and_targets_are_framing_errors() {
        for text in [
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(
                framing_error(&whole(text).expect("readable")),
                Some(FramingError::Ambiguous),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_malformed_request_is_refused() {
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
    fn a_connection_persists_if_both_sides_agree() {
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
        assert!(head("PUT", "1.1", body).expects_continue);
        assert!(!head("PUT", "1.0", body).expects_continue);
        assert!(!head("PUT", "1.1", "Expect: 100-continue\r\n").expects_continue);
    }

    #[test]
    fn a_head_has_limits() {
        let fields = "A: b\r\n".repeat(40);
        assert!(whole(&format!("GET / HTTP/1.1\r\n{fields}\r\n")).is_ok());
        for text in [
            format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(BOUNDS.fields + 1)),
            format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(BOUNDS.size)),
            // An incomplete head as well.
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
    fn a_refused_head_has_the_fields_that_can_be_read() {
        let accept = "Accept: text/html\r\n";
        for text in [
            format!("GET / HTTP/1.1\r\n{accept}{}\r\n", "A: b\r\n".repeat(BOUNDS.fields + 1)),
            format!("GET / HTTP/1.1\r\n{accept}Cookie: {}\r\n\r\n", "b".repeat(BOUNDS.size)),
            format!("GET / HTTP/1.1\r\n{accept}Cookie: {}", "b".repeat(BOUNDS.size)),
            format!("GET /{} HTTP/1.1\r\n{accept}\r\n", "b".repeat(BOUNDS.size)),
            format!("GET http://h/{} HTTP/1.1\r\n{accept}\r\n", "{".repeat(BOUNDS.size)),
            format!("GET / HTTP/1.1\r\nA : b\r\n{accept}\r\nAccept: text/plain\r\n"),
            format!("GET http://[/ HTTP/1.1\r\n{accept}\r\n"),
        ] {
            let refused = HeadParser::default().parse(&mut BytesMut::from(&*text), BOUNDS).err();
            let fields = refused.expect("refused").fields;
            assert_eq!((fields.get_all("accept").iter().count(), fields.get("cookie")), (1, None));
            assert_eq!(fields["accept"], "text/html", "{text:.60}");
        }
    }

    #[test]
    fn a_head_that_arrives_byte_by_byte_is_parsed_when_complete() {
        let text = "GET /a HTTP/1.1\r\nHost: a\r\nX-A: b\r\n\r\n";
        let (mut heads, mut read) = (HeadParser::default(), BytesMut::new());
        for (at, byte) in text.bytes().enumerate() {
            read.extend_from_slice(&[byte]);
            let head = heads.parse(&mut read, BOUNDS).expect("readable");
            assert_eq!(head.is_some(), at + 1 == text.len(), "{at}");
        }
    }

    fn head(method: &str, version: &str, fields: &str) -> Head {
        whole(&format!("{method} / HTTP/{version}\r\n{fields}\r\n")).expect("readable")
    }

    fn whole(text: &str) -> Result<Head, ParseError> {
        let head = HeadParser::default().parse(&mut BytesMut::from(text), BOUNDS);
        let head = head.map_err(|refused| refused.error)?;
        Ok(head.expect("it is all there"))
    }

    fn framing_error(head: &Head) -> Option<FramingError> {
        head.parts.extensions.get().copied()
    }

    const BOUNDS: HeadLimits = HeadLimits { size: 2000, fields: 50, cookies: 1500 };
}
