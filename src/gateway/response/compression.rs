//! Compression of responses: the ones that are compressed, and their header fields.
//!
//! Text and data formats of at least a kibibyte are compressed. Never compressed is a response that its origin forbids
//! to transform, that has a coding or is a part already, or that sets a cookie: the size of a compressed response
//! reveals secrets in it beside text that an attacker chooses (BREACH, CVE-2013-3587).

use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, SET_COOKIE,
    VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Body as _;

use super::accept_encoding;
use super::encoder::{CompressedBody, DIGEST_FIELDS};
use super::hardening::has_directive;
use crate::base::body::Body;
use crate::base::media_type::essence;
use crate::config::route::Coding;

/// The compression of one response.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResponseCompression {
    /// The coding that the client prefers, if any.
    coding: Option<Coding>,
}

impl ResponseCompression {
    /// Negotiates the coding of the response to a request with these fields; `None` if the route compresses nothing.
    pub(crate) fn negotiate(offered: &[Coding], request: &HeaderMap) -> Option<Self> {
        let any = !offered.is_empty();
        any.then(|| Self { coding: accept_encoding::negotiate(request, offered) })
    }

    /// Compresses a response to `method`, if it may be compressed and the client accepts a coding.
    pub(crate) fn apply(self, response: Response<Body>, method: &Method) -> Response<Body> {
        let (mut head, body) = response.into_parts();
        let headers = &mut head.headers;
        if head.status == StatusCode::NOT_MODIFIED {
            // The response in the client's cache may have been compressed: it has a weak validator.
            if self.coding.is_some() && may_be_transformed(headers) {
                vary(headers);
                weaken(headers);
            }
            return Response::from_parts(head, body);
        }
        if !is_eligible(head.status, headers, &body, method) {
            return Response::from_parts(head, body);
        }
        vary(headers);
        let Some(coding) = self.coding else { return Response::from_parts(head, body) };
        let body = if *method == Method::HEAD {
            Body::empty()
        } else {
            match CompressedBody::compress(body, coding) {
                Ok(body) => body,
                Err(body) => return Response::from_parts(head, body),
            }
        };
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        for name in [ACCEPT_RANGES, CONTENT_LENGTH].into_iter().chain(DIGEST_FIELDS) {
            headers.remove(name);
        }
        weaken(headers);
        Response::from_parts(head, body)
    }
}

fn is_eligible(status: StatusCode, headers: &HeaderMap, body: &Body, method: &Method) -> bool {
    let has_content = !status.is_informational()
        && !matches!(status, StatusCode::NO_CONTENT | StatusCode::PARTIAL_CONTENT);
    let length = if *method == Method::HEAD {
        // The content is that of the gateway, or the upstream has sent none.
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let own = body.size_hint().exact().filter(|length| *length > 0);
        announced.and_then(|length| length.parse().ok()).or(own)
    } else {
        body.size_hint().exact()
    };
    has_content
        && length.is_none_or(|length: u64| length >= MIN_BYTES)
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(CONTENT_RANGE)
        && may_be_transformed(headers)
        && headers.get(CONTENT_TYPE).is_some_and(is_compressible)
}

fn may_be_transformed(headers: &HeaderMap) -> bool {
    !headers.contains_key(SET_COOKIE) && !has_directive(headers, &["no-transform"])
}

/// Whether content of this type is text or data that compresses well.
fn is_compressible(kind: &HeaderValue) -> bool {
    let Ok(text) = kind.to_str() else { return false };
    let kind = essence(text).to_ascii_lowercase();
    let is_text = kind.starts_with("text/")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || TYPES.contains(&&*kind);
    // The messages of gRPC have a compression of their own, whatever is in them.
    is_text && !kind.starts_with("application/grpc")
}

/// Adds `Accept-Encoding` to `Vary` (RFC 9110 §12.5.5).
fn vary(headers: &mut HeaderMap) {
    let is_there = headers.get_all(VARY).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            value
                .split(',')
                .map(str::trim)
                .any(|name| name == "*" || name.eq_ignore_ascii_case("accept-encoding"))
        })
    });
    if !is_there {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Makes the validator weak: the bytes of the response are no longer those that it stands for (RFC 9110 §8.8.1).
fn weaken(headers: &mut HeaderMap) {
    let Some(tag) = headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) else {
        return;
    };
    match HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat()) {
        Ok(weak) => drop(headers.insert(ETAG, weak)),
        Err(_) => drop(headers.remove(ETAG)),
    }
}

/// The least content that is compressed, where its length is known.
const MIN_BYTES: u64 = 1024;

/// The compressible types besides text and those with the suffixes of JSON and XML.
const TYPES: [&str; 16] = [
    "application/geo+json-seq",
    "application/graphql",
    "application/javascript",
    "application/json",
    "application/json-seq",
    "application/jsonlines",
    "application/ndjson",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-javascript",
    "application/x-ndjson",
    "application/xml",
    "application/yaml",
    "font/otf",
    "font/ttf",
    "image/svg+xml",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_compressed_only_where_that_is_safe_and_useful() {
        let long = || Body::from("x".repeat(1024));
        let json = ("content-type", "application/json; charset=utf-8");
        for (status, fields, body, compressed) in [
            (200, &[json][..], long(), true),
            (404, &[json], long(), true),
            (200, &[("content-type", "TEXT/HTML")], long(), true),
            (200, &[("content-type", "application/problem+json")], long(), true),
            (200, &[json, ("cache-control", "public, max-age=1")], long(), true),
            (200, &[json], Body::from("x".repeat(1023)), false),
            (200, &[("content-type", "image/png")], long(), false),
            (200, &[("content-type", "application/grpc+proto")], long(), false),
            (200, &[("content-type", "application/grpc-web+json")], long(), false),
            (200, &[], long(), false),
            (206, &[json], long(), false),
            (204, &[json], Body::empty(), false),
            (200, &[json, ("content-range", "bytes 0-1/2")], long(), false),
            (200, &[json, ("content-encoding", "br")], long(), false),
            (200, &[json, ("content-encoding", "identity")], long(), false),
            (200, &[json, ("cache-control", "max-age=1, No-Transform")], long(), false),
            (200, &[json, ("set-cookie", "a=b")], long(), false),
        ] {
            let response = respond(status, fields, body, "gzip", &Method::GET);
            let coding = response.headers().get(CONTENT_ENCODING);
            let ours = coding.is_some_and(|coding| coding == "gzip");
            assert_eq!(ours, compressed, "{status} {fields:?}");
            assert_eq!(response.headers().contains_key(VARY), compressed, "{status} {fields:?}");
        }
    }

    #[test]
    fn fields_describe_the_compressed_content() {
        let fields = [
            ("content-type", "text/css"),
            ("content-length", "1024"),
            ("accept-ranges", "bytes"),
            ("etag", "\"abc\""),
            ("vary", "Origin"),
            ("repr-digest", "sha-256=:x:"),
        ];
        for (method, body) in
            [(Method::GET, Body::from("x".repeat(1024))), (Method::HEAD, Body::empty())]
        {
            let response = respond(200, &fields, body, "zstd", &method);
            let headers = response.headers();
            assert_eq!(headers[CONTENT_ENCODING], "zstd");
            assert_eq!(headers[ETAG], "W/\"abc\"");
            let vary: Vec<_> = headers.get_all(VARY).iter().collect();
            assert_eq!(vary, ["Origin", "Accept-Encoding"]);
            for name in ["content-length", "accept-ranges", "repr-digest"] {
                assert!(!headers.contains_key(name), "{method} {name}");
            }
        }
    }

    #[test]
    fn a_client_that_accepts_no_coding_gets_the_content_as_it_is() {
        let fields = [("content-type", "text/css"), ("etag", "\"abc\"")];
        let response =
            respond(200, &fields, Body::from("x".repeat(1024)), "identity", &Method::GET);
        assert_eq!(response.headers()[ETAG], "\"abc\"");
        assert_eq!(response.headers()[VARY], "Accept-Encoding");
        assert_eq!(response.body().size_hint().exact(), Some(1024));
    }

    #[test]
    fn an_unchanged_response_keeps_the_weak_validator() {
        for (tag, weak) in [("\"abc\"", "W/\"abc\""), ("W/\"abc\"", "W/\"abc\"")] {
            let response = respond(304, &[("etag", tag)], Body::empty(), "gzip", &Method::GET);
            assert_eq!(response.headers()[ETAG], weak);
        }
    }

    fn respond(
        status: u16,
        fields: &[(&str, &str)],
        body: Body,
        accepts: &'static str,
        method: &Method,
    ) -> Response<Body> {
        let mut request = HeaderMap::new();
        request.insert(http::header::ACCEPT_ENCODING, HeaderValue::from_static(accepts));
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let compression = ResponseCompression::negotiate(&Coding::ALL, &request).expect("on");
        compression.apply(response.body(body).expect("valid"), method)
    }
}
