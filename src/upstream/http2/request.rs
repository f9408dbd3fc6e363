//! Builds request heads (RFC 9113 §8.3.1).

use std::borrow::Cow;

use h2::ext::Protocol;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, SEC_WEBSOCKET_KEY, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version};

use super::super::settings::Scheme;
use super::super::{OutgoingRequest, UpstreamError};
use crate::base::header_fields::is_trimmed;
use crate::base::raw_target;

/// Builds the request, with content of `length` bytes if that is known. `host`, if given, replaces the `Host` field of its
/// head; either becomes `:authority`. Fields of an HTTP/1.1 connection are left out (RFC 9113 §8.2.2).
///
/// # Errors
///
/// [`UpstreamError::Protocol`] for a request that HTTP/2 cannot express, such as one without a host.
pub(super) fn build(
    OutgoingRequest { head, fields, .. }: &OutgoingRequest<'_>,
    host: Option<&HeaderValue>,
    scheme: Scheme,
    length: Option<u64>,
) -> Result<Request<()>, UpstreamError> {
    let host = host.or_else(|| head.headers.get(HOST)).ok_or(UpstreamError::Protocol)?;
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| UpstreamError::Protocol)?;
    if head.method == Method::CONNECT {
        return Err(UpstreamError::Protocol);
    }
    // HTTP/2 carries all bytes, but the type of its targets does not: those that it refuses are escaped.
    let path = match head.uri.path_and_query() {
        None => PathAndQuery::from_static("/"),
        Some(path) => match raw_target::held(path.as_str()) {
            Cow::Borrowed(_) => path.clone(),
            Cow::Owned(held) => {
                PathAndQuery::try_from(held).map_err(|_| UpstreamError::Protocol)?
            }
        },
    };
    let uri = Uri::builder()
        .scheme(match scheme {
            Scheme::Http => http::uri::Scheme::HTTP,
            Scheme::Https => http::uri::Scheme::HTTPS,
        })
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| UpstreamError::Protocol)?;
    let mut headers = HeaderMap::with_capacity(head.headers.len() + EXTRA_FIELDS_CAPACITY);
    for (name, value) in head.headers.iter().filter(|(name, value)| is_end_to_end(name, value)) {
        headers.append(name, value.clone());
    }
    fields.append_to(&mut headers);
    headers.values_mut().for_each(trim);
    // A request without content says so only where a service could expect some (RFC 9110 §8.6).
    if let Some(length) = length.filter(|&length| length > 0 || expects_content(&head.method)) {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Builds the extended CONNECT that stands for the opening handshake of a WebSocket (RFC 8441 §5).
///
/// # Errors
///
/// As [`build`].
pub(super) fn build_websocket(
    outgoing: &OutgoingRequest<'_>,
    host: Option<&HeaderValue>,
    scheme: Scheme,
) -> Result<Request<()>, UpstreamError> {
    let mut request = build(outgoing, host, scheme, None)?;
    *request.method_mut() = Method::CONNECT;
    request.headers_mut().remove(SEC_WEBSOCKET_KEY);
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    Ok(request)
}

/// Returns the size of a head as the limit of the upstream counts it (RFC 9113 §6.5.2).
pub(super) fn list_bytes(request: &Request<()>) -> usize {
    let (uri, protocol) = (request.uri(), request.extensions().get::<Protocol>());
    let pseudo = [
        (":method", Some(request.method().as_str())),
        (":scheme", uri.scheme_str()),
        (":authority", uri.authority().map(Authority::as_str)),
        (":path", uri.path_and_query().map(PathAndQuery::as_str)),
        (":protocol", protocol.map(Protocol::as_str)),
    ];
    let pseudo = pseudo.iter().filter_map(|(name, value)| Some(name.len() + (*value)?.len()));
    let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
    pseudo.chain(fields).map(|bytes| bytes + FIELD_OVERHEAD_BYTES).sum()
}

/// Whether content of requests with a method has a meaning (RFC 9110 §9.3).
fn expects_content(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::DELETE)
}

/// Removes blanks at the ends of a value, which HTTP/1.1 ignores and which are malformed in HTTP/2 (RFC 9113 §8.2.1): a strict
/// service ends the connection for them, with the requests of others on it.
fn trim(value: &mut HeaderValue) {
    if !is_trimmed(value)
        && let Ok(mut trimmed) = HeaderValue::from_bytes(value.as_bytes().trim_ascii())
    {
        trimmed.set_sensitive(value.is_sensitive());
        *value = trimmed;
    }
}

fn is_end_to_end(name: &HeaderName, value: &HeaderValue) -> bool {
    match *name {
        HOST | CONTENT_LENGTH | TRANSFER_ENCODING | CONNECTION | UPGRADE | EXPECT => false,
        TE => value.as_bytes().eq_ignore_ascii_case(b"trailers"),
        _ => !matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings"),
    }
}

/// The bytes that each field counts besides its name and its value.
const FIELD_OVERHEAD_BYTES: usize = 32;
/// The capacity for fields that the gateway adds.
const EXTRA_FIELDS_CAPACITY: usize = 10;

#[cfg(test)]
mod tests {
    use http::request::Parts;

    use super::*;
    use crate::upstream::ExtraHeaders;

    #[test]
    fn a_head_has_pseudo_headers_and_no_field_of_a_connection() {
        let head = head(&[
            ("host", "client.example"),
            ("connection", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("keep-alive", "5"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("x-kept", "1"),
        ]);

        let built =
            build(&outgoing(&head), None, Scheme::Https, None).expect("it can be expressed");

        assert_eq!(built.uri(), "https://client.example/a?b=c");
        let names: Vec<_> = built.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["te", "x-kept"]);
    }

    #[test]
    fn the_size_of_a_head_counts_pseudo_headers_and_each_field() {
        let head = head(&[("host", "a"), ("x-a", "1234")]);

        let built = build(&outgoing(&head), None, Scheme::Http, None).expect("it can be expressed");

        // :method POST, :scheme http, :authority a, :path /a?b=c, x-a 1234
        assert_eq!(list_bytes(&built), 11 + 11 + 11 + 11 + 7 + 5 * 32);
    }

    #[test]
    fn a_value_has_no_blanks_at_its_ends() {
        let mut head = head(&[("host", "a"), ("cookie", "a=1 "), ("x-a", "\t b c ")]);
        head.headers.append("x-empty", HeaderValue::from_static("  "));

        let built = build(&outgoing(&head), None, Scheme::Http, None).expect("it can be expressed");

        let values: Vec<_> = built.headers().values().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, [&b"a=1"[..], b"b c", b""]);
    }

    #[test]
    fn te_is_trailers_or_left_out() {
        let head = head(&[("host", "a"), ("te", "gzip")]);

        let built = build(&outgoing(&head), None, Scheme::Http, None).expect("it can be expressed");

        assert!(built.headers().is_empty());
    }

    #[test]
    fn a_request_without_a_host_is_refused() {
        let head = head(&[]);

        assert_eq!(
            build(&outgoing(&head), None, Scheme::Http, None).err(),
            Some(UpstreamError::Protocol)
        );
    }

    #[test]
    fn a_request_has_the_length_of_its_content_if_that_is_known() {
        let length = |method: &str, length| {
            let mut head = head(&[("host", "a"), ("content-length", "7")]);
            head.method = method.parse().expect("a method");
            let built = build(&outgoing(&head), None, Scheme::Http, length).expect("valid");
            built.headers().get(CONTENT_LENGTH).map(|length| length.to_str().expect("text").into())
        };

        assert_eq!(length("POST", Some(3)), Some("3".to_owned()));
        assert_eq!(length("POST", Some(0)), Some("0".to_owned()));
        assert_eq!(length("POST", None), None);
        assert_eq!(length("GET", Some(0)), None);
    }

    fn head(fields: &[(&'static str, &'static str)]) -> Parts {
        let (mut head, ()) = Request::post("/a?b=c").body(()).expect("valid").into_parts();
        for &(name, value) in fields {
            head.headers.append(name, HeaderValue::from_static(value));
        }
        head
    }

    fn outgoing(head: &Parts) -> OutgoingRequest<'_> {
        OutgoingRequest { head, fields: ExtraHeaders::default(), interim: None }
    }
}
