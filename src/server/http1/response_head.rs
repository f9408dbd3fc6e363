//! Response heads (RFC 9112 §4, RFC 9110 §6.6.1).

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, StatusCode, response};

use crate::base::body::Body;
use crate::base::encoded_fields::write_field_line;
use crate::http1::Length;

/// The properties of a request that determine the framing of its response.
#[derive(Clone, Copy, Debug)]
pub(super) struct ResponseFraming {
    /// Whether the client uses HTTP/1.0.
    pub(super) http10: bool,
    /// Whether the request method is HEAD.
    pub(super) to_head: bool,
    /// Whether the client accepts trailers.
    pub(super) trailers: bool,
}

impl ResponseFraming {
    /// Returns the framing of the response content; `None` if the response has no content (RFC 9112 §6.3).
    pub(super) fn framing(self, head: &response::Parts, body: &Body) -> Option<Length> {
        if self.to_head || is_bodiless(head.status) {
            return None;
        }
        Some(match Length::of(body) {
            Length::Chunked if self.http10 => Length::UntilClose,
            length => length,
        })
    }

    /// Writes a response head; `framing` is the result of [`ResponseFraming::framing`]. Connection and framing fields
    /// are set here alone.
    pub(super) fn write(
        self,
        out: &mut Vec<u8>,
        head: &response::Parts,
        body: &Body,
        framing: Option<Length>,
        last: bool,
        date: Option<&HeaderValue>,
    ) {
        out.extend_from_slice(if self.http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        out.extend_from_slice(head.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        let mut has_date = false;
        for (name, value) in &head.headers {
            match *name {
                CONNECTION | CONTENT_LENGTH | TRANSFER_ENCODING => continue,
                DATE => has_date = true,
                _ => {}
            }
            write_field_line(out, name, value);
        }
        if let Some(date) = date.filter(|_| !has_date) {
            write_field_line(out, &DATE, date);
        }
        match framing {
            Some(length) => length.write(out),
            None => self.framing_of_get(head, body, out),
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            out.extend_from_slice(b"connection: upgrade\r\n");
        } else if last && !self.http10 {
            out.extend_from_slice(b"connection: close\r\n");
        } else if !last && self.http10 {
            out.extend_from_slice(b"connection: keep-alive\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Writes the length that the content of a GET would have (RFC 9110 §8.6).
    fn framing_of_get(self, head: &response::Parts, body: &Body, out: &mut Vec<u8>) {
        let without_length =
            head.status == StatusCode::NO_CONTENT || head.status.is_informational();
        if !without_length {
            if let Some(length) = head.headers.get(CONTENT_LENGTH) {
                return write_field_line(out, &CONTENT_LENGTH, length);
            }
            if let (true, Length::Exact(length @ 1..)) = (self.to_head, Length::of(body)) {
                Length::Exact(length).write(out);
            }
        }
    }
}

/// Whether the gateway closes the connection after this response.
pub(super) fn ends_connection(headers: &HeaderMap) -> bool {
    headers.get(CONNECTION).is_some_and(|option| option.as_bytes().eq_ignore_ascii_case(b"close"))
}

fn is_bodiless(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    #[test]
    fn a_response_is_framed() {
        let (plain, old) = (FORM, ResponseFraming { http10: true, ..FORM });
        let unknown =
            || Body::streaming(http_body_util::StreamBody::new(futures_util::stream::empty()));
        for (form, status, body, expected) in [
            (plain, 200, Body::from("four"), "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"),
            (plain, 200, Body::empty(), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
            (plain, 200, unknown(), "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"),
            (
                old,
                200,
                "four".into(),
                "HTTP/1.0 200 OK\r\ncontent-length: 4\r\nconnection: keep-alive\r\n\r\n",
            ),
            (plain, 204, Body::empty(), "HTTP/1.1 204 No Content\r\n\r\n"),
            (plain, 304, Body::empty(), "HTTP/1.1 304 Not Modified\r\n\r\n"),
            (
                plain,
                101,
                Body::empty(),
                "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n",
            ),
            (plain, 599, Body::empty(), "HTTP/1.1 599 \r\ncontent-length: 0\r\n\r\n"),
        ] {
            assert_eq!(written(form, Response::builder().status(status), body, false), expected);
        }
    }

    #[test]
    fn a_response_to_head_has_the_length_and_no_content() {
        let form = ResponseFraming { to_head: true, ..FORM };
        let expected = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";

        let none = Response::builder().status(204).header(CONTENT_LENGTH, "4");
        assert_eq!(written(form, none, Body::empty(), false), "HTTP/1.1 204 No Content\r\n\r\n");

        let of_body = written(form, Response::builder(), Body::from("four"), false);
        let of_service = Response::builder().header(CONTENT_LENGTH, "4");

        assert_eq!(of_body, expected);
        assert_eq!(written(form, of_service, Body::empty(), false), expected);
    }

    #[test]
    fn connection_and_framing_fields_of_the_upstream_are_dropped() {
        let response = Response::builder()
            .header(CONNECTION, "x-a")
            .header(TRANSFER_ENCODING, "gzip")
            .header(CONTENT_LENGTH, "9")
            .header("x-a", "b");

        assert_eq!(
            written(FORM, response, Body::from("four"), true),
            "HTTP/1.1 200 OK\r\nx-a: b\r\ncontent-length: 4\r\nconnection: close\r\n\r\n"
        );
    }

    #[test]
    fn a_response_has_one_date() {
        let now = HeaderValue::from_static("now");
        let (head, ()) = Response::new(()).into_parts();
        let mut out = Vec::new();
        FORM.write(&mut out, &head, &Body::empty(), Some(Length::Exact(0)), false, Some(&now));
        let text = String::from_utf8(out).expect("text");
        assert!(text.contains("\r\ndate: now\r\n"), "{text}");

        let own = Response::builder().header(DATE, "then");
        assert!(!written(FORM, own, Body::empty(), false).contains("now"));
    }

    fn written(
        form: ResponseFraming,
        response: response::Builder,
        body: Body,
        last: bool,
    ) -> String {
        let (head, body) = response.body(body).expect("valid").into_parts();
        let now = HeaderValue::from_static("now");
        let date = head.headers.contains_key(DATE).then_some(&now);
        let (mut out, framing) = (Vec::new(), form.framing(&head, &body));
        form.write(&mut out, &head, &body, framing, last, date);
        String::from_utf8(out).expect("text")
    }

    const FORM: ResponseFraming =
        ResponseFraming { http10: false, to_head: false, trailers: false };
}
