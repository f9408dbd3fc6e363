//! Writes request heads and parses response heads (RFC 9112 §2–§4, §6).

use core::mem::MaybeUninit;
use std::fmt;

use bytes::{Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE,
    TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use httparse::Status;

use crate::base::content_length;
use crate::base::encoded_fields::write_field_line;
use crate::base::raw_target;
use crate::http1::{BodyWriter, Framing, HeaderNameCache, Length};
use crate::upstream::{InvalidResponse, OutgoingRequest};

/// Writes a request head: request line, `host` or the head's own, all fields except
/// framing ones, and the framing of `sending`.
pub(super) fn write(
    out: &mut Vec<u8>,
    OutgoingRequest { head, fields, .. }: &OutgoingRequest<'_>,
    host: Option<&HeaderValue>,
    sending: &BodyWriter,
) {
    out.clear();
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.push(b' ');
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    out.extend_from_slice(&raw_target::bytes(target));
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(host) = host {
        write_field_line(out, &HOST, host);
    }
    for (name, value) in &head.headers {
        let ours = *name == CONTENT_LENGTH
            || *name == TRANSFER_ENCODING
            || (*name == HOST && host.is_some());
        if !ours {
            write_field_line(out, name, value);
        }
        if *name == TE {
            out.extend_from_slice(b"connection: te\r\n");
        }
    }
    fields.write(out);
    match sending.length() {
        Length::Exact(0) if !expects_content(&head.method) => {}
        length => length.write(out),
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether content is defined for the method, so that `Content-Length: 0` is sent (RFC 9110 §8.6).
fn expects_content(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// The result of parsing a response head.
pub(super) enum ParseOutcome {
    /// More bytes are needed.
    Partial,
    /// A 1xx response other than 101 was read; the final one follows. `None` if it is not passed on.
    Interim(Option<Response<()>>),
    /// The final head.
    Head(Head),
}

/// A response head, taken from the buffer it was read into.
pub(super) struct Head {
    pub(super) response: Response<()>,
    pub(super) framing: Framing,
    /// Whether the connection may carry another request once the body has ended.
    pub(super) reusable: bool,
}

/// Parses one head at the front of `read`, if it is complete. `method` is the request's, since
/// a response to HEAD has no body in any case. `names` are those of the previous head.
pub(super) fn parse(
    read: &mut BytesMut,
    names: &mut HeaderNameCache,
    method: &Method,
) -> Result<ParseOutcome, InvalidResponse> {
    let mut few = [const { MaybeUninit::uninit() }; TYPICAL_FIELDS];
    let located = match FieldSpan::parse(read, &mut few) {
        Err(httparse::Error::TooManyHeaders) => {
            let mut many = [const { MaybeUninit::uninit() }; MAX_FIELDS];
            FieldSpan::parse(read, &mut many)
        }
        parsed => parsed,
    };
    match located.map_err(InvalidResponse::from)? {
        Some(located) => located.take(read, names, method),
        None if read.len() > MAX_HEAD_BYTES => Err(InvalidResponse::TooLarge),
        None => Ok(ParseOutcome::Partial),
    }
}

/// The positions of the parts of a head in the buffer.
struct FieldSpan {
    length: usize,
    status: u16,
    http11: bool,
    fields: Fields,
}

/// Start and length of each field's name and value.
type Fields = Vec<[u32; 4]>;

impl FieldSpan {
    fn parse<'b>(
        read: &'b [u8],
        fields: &mut [MaybeUninit<httparse::Header<'b>>],
    ) -> Result<Option<Self>, httparse::Error> {
        let mut response = httparse::Response::new(&mut []);
        let strict = httparse::ParserConfig::default();
        let parsed = strict.parse_response_with_uninit_headers(&mut response, read, fields)?;
        let Status::Complete(length) = parsed else { return Ok(None) };
        let start = read.as_ptr().addr();
        let range = |part: &[u8]| [(part.as_ptr().addr() - start) as u32, part.len() as u32];
        let fields = response
            .headers
            .iter()
            .map(|header| {
                let ([name, name_length], [value, value_length]) =
                    (range(header.name.as_bytes()), range(header.value));
                [name, name_length, value, value_length]
            })
            .collect();
        Ok(Some(Self {
            length,
            status: response.code.unwrap_or(0),
            http11: response.version == Some(1),
            fields,
        }))
    }

    fn take(
        self,
        read: &mut BytesMut,
        names: &mut HeaderNameCache,
        method: &Method,
    ) -> Result<ParseOutcome, InvalidResponse> {
        if self.length > MAX_HEAD_BYTES {
            return Err(InvalidResponse::TooLarge);
        }
        let status = StatusCode::from_u16(self.status).map_err(|_| InvalidResponse::Head)?;
        let bytes = read.split_to(self.length).freeze();
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(ParseOutcome::Interim(self.interim(status, &bytes)));
        }
        let mut headers = HeaderMap::with_capacity(self.fields.len() + EXTRA_FIELDS_CAPACITY);
        let mut hop = HopByHop::default();
        for (index, &[name, name_length, value, value_length]) in self.fields.iter().enumerate() {
            // Field values share the buffer.
            let part = |start: u32, length: u32| start as usize..(start + length) as usize;
            let name = names
                .parse(index, &bytes[part(name, name_length)])
                .map_err(|_| InvalidResponse::Head)?;
            let value = HeaderValue::from_maybe_shared(bytes.slice(part(value, value_length)))
                .map_err(|_| InvalidResponse::Head)?;
            if !hop.takes(&name, &value, status)? {
                headers.append(name, value);
            }
        }
        // Both sides announce an upgrade, each on its own connection (RFC 9110 §7.8, RFC 6455 §4.1).
        if status == StatusCode::SWITCHING_PROTOCOLS && !(hop.upgrades && self.http11) {
            return Err(InvalidResponse::Upgrade);
        }
        for name in &hop.named {
            headers.remove(name);
        }
        let framing = hop.framing(status, method, self.http11)?;
        let reusable = self.http11
            && framing != Framing::UntilClose
            && !hop.closes
            && !(status == StatusCode::NO_CONTENT && hop.announces_content());
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(ParseOutcome::Head(Head { response, framing, reusable }))
    }
}

impl FieldSpan {
    /// Returns an interim response, without hop-by-hop fields, framing and cookies; `None` if it concerns the upstream
    /// connection alone, or is malformed.
    fn interim(&self, status: StatusCode, bytes: &Bytes) -> Option<Response<()>> {
        // The gateway itself decides when a client sends its content.
        if status == StatusCode::CONTINUE {
            return None;
        }
        let (mut response, mut hop) = (Response::new(()), HopByHop::default());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for &[name, name_length, value, value_length] in &self.fields {
            let part = |start: u32, length: u32| start as usize..(start + length) as usize;
            let name = HeaderName::from_bytes(&bytes[part(name, name_length)]).ok()?;
            let value = bytes.slice(part(value, value_length));
            let value = HeaderValue::from_maybe_shared(value).ok()?;
            if !hop.takes(&name, &value, status).ok()? {
                headers.append(name, value);
            }
        }
        for name in hop.named.iter().chain(&[CONTENT_LENGTH, SET_COOKIE]) {
            headers.remove(name);
        }
        Some(response)
    }
}

/// The fields about this connection and this message alone (RFC 9110 §7.6.1, RFC 9112 §6).
#[derive(Debug, Default)]
struct HopByHop {
    /// `Content-Length`.
    length: Option<u64>,
    /// `Transfer-Encoding: chunked`, the only supported coding.
    chunked: bool,
    /// The upstream closes the connection after the response.
    closes: bool,
    /// `Connection: upgrade`.
    upgrades: bool,
    /// Other field names in `Connection`.
    named: Vec<HeaderName>,
}

impl HopByHop {
    /// Whether a field is hop-by-hop and consumed here. Ambiguous framing is an error.
    fn takes(
        &mut self,
        name: &HeaderName,
        value: &HeaderValue,
        status: StatusCode,
    ) -> Result<bool, InvalidResponse> {
        Ok(match *name {
            CONTENT_LENGTH => {
                let length =
                    content_length::parse(value.as_bytes()).ok_or(InvalidResponse::Length)?;
                // Equal repeated lengths count as one, as in requests (RFC 9112 §6.3).
                match self.length.replace(length) {
                    None => false,
                    Some(before) if before == length => true,
                    Some(before) => return Err(InvalidResponse::TwoLengths(before, length)),
                }
            }
            TRANSFER_ENCODING => {
                let chunked = value.as_bytes().eq_ignore_ascii_case(b"chunked");
                if !chunked || core::mem::replace(&mut self.chunked, true) {
                    return Err(InvalidResponse::Coding);
                }
                true
            }
            CONNECTION => {
                value
                    .as_bytes()
                    .split(|&b| b == b',')
                    .map(<[u8]>::trim_ascii)
                    .for_each(|option| self.option(option));
                true
            }
            UPGRADE => status != StatusCode::SWITCHING_PROTOCOLS,
            TE | EXPECT | PROXY_AUTHENTICATE | PROXY_AUTHORIZATION => true,
            _ => matches!(name.as_str(), "keep-alive" | "proxy-connection"),
        })
    }

    fn option(&mut self, option: &[u8]) {
        if option.eq_ignore_ascii_case(b"close") {
            self.closes = true;
        } else if option.eq_ignore_ascii_case(b"upgrade") {
            // The gateway decides about upgrades: `Connection` cannot remove the field.
            self.upgrades = true;
        } else if !option.eq_ignore_ascii_case(b"keep-alive")
            && let Ok(name) = HeaderName::from_bytes(option)
            // Framing is decided here: `Connection` cannot remove the field.
            && name != CONTENT_LENGTH
        {
            self.named.push(name);
        }
    }

    /// Whether content is announced. After a 204 there is none (RFC 9112 §6): content that an upstream sends
    /// anyway would be read as the response to the connection's next request.
    fn announces_content(&self) -> bool {
        self.chunked || self.length.is_some_and(|length| length > 0)
    }

    /// Returns the framing of the response body (RFC 9112 §6.3).
    fn framing(
        &self,
        status: StatusCode,
        method: &Method,
        http11: bool,
    ) -> Result<Framing, InvalidResponse> {
        let framing = match (self.chunked, self.length) {
            (false, None) => Framing::UntilClose,
            (false, Some(length)) => Framing::Length(length),
            (true, None) if http11 => Framing::Chunked,
            (true, Some(_)) => return Err(InvalidResponse::LengthAndCoding),
            (true, None) => return Err(InvalidResponse::Coding),
        };
        let bodiless = *method == Method::HEAD
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Ok(if bodiless { Framing::Length(0) } else { framing })
    }
}

impl From<httparse::Error> for InvalidResponse {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => Self::TooLarge,
            _ => Self::Head,
        }
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head").field("status", &self.response.status()).finish_non_exhaustive()
    }
}

/// The capacity for fields that the gateway adds to a response.
const EXTRA_FIELDS_CAPACITY: usize = 4;
const TYPICAL_FIELDS: usize = 32;
pub(in crate::upstream) const MAX_FIELDS: usize = 256;
pub(in crate::upstream) const MAX_HEAD_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_parsed_and_the_body_is_left() {
        let (head, rest) =
            read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nhi").expect("valid");

        assert_eq!(head.response.status(), 200);
        assert_eq!(head.response.headers()["x-a"], "b");
        assert_eq!((head.framing, head.reusable, &*rest), (Framing::Length(2), true, "hi"));
    }

    #[test]
    fn a_partial_head_needs_more_bytes() {
        let whole = "HTTP/1.1 204 No Content\r\nA: b\r\n\r\n";
        for cut in 1..whole.len() {
            let mut bytes = BytesMut::from(&whole[..cut]);
            assert!(
                matches!(
                    parse(&mut bytes, &mut HeaderNameCache::default(), &Method::GET),
                    Ok(ParseOutcome::Partial)
                ),
                "{cut}"
            );
        }
    }

    #[test]
    fn interim_responses_precede_the_final_one() {
        let mut bytes = BytesMut::from(
            "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\nConnection: x-a\r\nX-A: b\r\n\
                Content-Length: 5\r\nSet-Cookie: a=b\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n\
                HTTP/1.1 200 OK\r\n\r\n",
        );

        let mut parse_one = || parse(&mut bytes, &mut HeaderNameCache::default(), &Method::GET);
        let Ok(ParseOutcome::Interim(Some(hints))) = parse_one() else { panic!("hints") };
        assert_eq!((hints.status(), hints.headers().len()), (StatusCode::EARLY_HINTS, 1));
        assert_eq!(hints.headers()["link"], "<a>");
        assert!(matches!(parse_one(), Ok(ParseOutcome::Interim(None))));
        assert!(matches!(
            parse(&mut bytes, &mut HeaderNameCache::default(), &Method::GET),
            Ok(ParseOutcome::Head(_))
        ));
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: \x0bchunked\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).is_none(), "{fields}");
        }
        assert!(read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_none());
        assert!(read("HTTP/1.1 200 OK\r\nA : b\r\n\r\n").is_none());
    }

    #[test]
    fn equal_repeated_lengths_are_one() {
        let (head, _) = read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi")
            .expect("valid");

        assert_eq!(head.framing, Framing::Length(2));
        assert_eq!(head.response.headers().get_all(CONTENT_LENGTH).iter().count(), 1);
    }

    #[test]
    fn responses_without_content_have_no_body_despite_their_fields() {
        for start in ["HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified"] {
            let (head, _) = read(&format!("{start}\r\nContent-Length: 5\r\n\r\n")).expect("valid");
            assert_eq!(head.framing, Framing::Length(0), "{start}");
        }
        let mut bytes = BytesMut::from("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
        let Ok(ParseOutcome::Head(head)) =
            parse(&mut bytes, &mut HeaderNameCache::default(), &Method::HEAD)
        else {
            panic!("valid")
        };
        assert_eq!(head.framing, Framing::Length(0));
    }

    #[test]
    fn a_connection_is_reusable_only_with_unambiguous_framing() {
        for (text, reusable) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, close\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n", false),
            ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n", true),
        ] {
            assert_eq!(read(text).expect("valid").0.reusable, reusable, "{text}");
        }
    }

    #[test]
    fn hop_by_hop_fields_are_removed() {
        let (head, _) = read(concat!(
            "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive, content-length\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n",
            "Proxy-Connection: x\r\nUpgrade: h2c\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\nX-Kept: 1\r\n\r\n"
        ))
        .expect("valid");

        let mut names: Vec<_> = head.response.headers().keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["content-length", "x-kept"]);
        assert!(head.reusable);
    }

    #[test]
    fn cached_names_are_reused_only_if_equal() {
        let mut names = HeaderNameCache::default();
        let mut next = |fields: &str| {
            let mut bytes =
                BytesMut::from(&*format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n"));
            let Ok(ParseOutcome::Head(head)) = parse(&mut bytes, &mut names, &Method::GET) else {
                panic!("valid")
            };
            head.response.headers().keys().map(ToString::to_string).collect::<Vec<_>>()
        };

        assert_eq!(next("X-A: 1\r\nX-B: 2\r\n"), ["content-length", "x-a", "x-b"]);
        assert_eq!(next("x-A: 1\r\nX-C: 2\r\n"), ["content-length", "x-a", "x-c"]);
        assert_eq!(next("X-B: 1\r\n"), ["content-length", "x-b"]);
        assert_eq!(next("X-B: 1\r\nX-C: 2\r\nX-D: 3\r\n"), ["content-length", "x-b", "x-c", "x-d"]);
    }

    #[test]
    fn an_endless_head_is_refused() {
        let mut bytes = BytesMut::from("HTTP/1.1 200 OK\r\n");
        while bytes.len() <= MAX_HEAD_BYTES {
            bytes.extend_from_slice(b"x-filler: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n");
        }

        assert!(parse(&mut bytes, &mut HeaderNameCache::default(), &Method::GET).is_err());
    }

    #[test]
    fn a_request_head_has_the_framing_of_the_body() {
        let (mut head, ()) = http::Request::post("/a?b=c").body(()).expect("valid").into_parts();
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("999"));
        head.headers.insert(HOST, HeaderValue::from_static("client.example"));
        let mut out = Vec::new();

        write(
            &mut out,
            &OutgoingRequest {
                head: &head,
                fields: crate::upstream::ExtraHeaders::default(),
                interim: None,
            },
            Some(&HeaderValue::from_static("service:1")),
            &BodyWriter::new("four".into()),
        );

        assert_eq!(
            String::from_utf8(out).expect("text"),
            "POST /a?b=c HTTP/1.1\r\nhost: service:1\r\ncontent-length: 4\r\n\r\n"
        );
    }

    fn read(text: &str) -> Option<(Head, String)> {
        let mut bytes = BytesMut::from(text);
        match parse(&mut bytes, &mut HeaderNameCache::default(), &Method::GET) {
            Ok(ParseOutcome::Head(head)) => {
                Some((head, String::from_utf8(bytes.to_vec()).expect("text")))
            }
            Ok(_) => panic!("the head is whole"),
            Err(_) => None,
        }
    }
}
