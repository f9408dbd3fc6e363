//! Health checks in HTTP/2, each on a connection of its own: a path, or `grpc.health.v1.Health/Check`.
//!
//! They run on any runtime, unlike requests: the check itself drives its connection.

use core::future::poll_fn;
use core::pin::pin;
use core::time::Duration;
use std::borrow::Cow;

use bytes::Bytes;
use futures_util::future::{Either, select};
use h2::{RecvStream, client};
use http::header::{ACCEPT, CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderValue, Request, Response};

use super::super::Endpoint;
use super::super::connections::connect::{Stream, connect};
use super::super::connections::handshake_error::ReceivedAlert;
use super::super::connections::tls_connectors::Offer;
use super::response::MAX_TRAILERS;
use super::stream_error::StreamError;
use crate::base::grpc::{self, FRAME_HEADER_BYTES, frame};
use crate::base::inspected_stream::InspectedStream;
use crate::http2::{ContentError, ReceivedContent, ReceivedContents};

/// Asks a gRPC server as `host` whether `service` is serving, or the server as a whole if that is empty, within `limit`.
///
/// # Errors
///
/// The cause of the failure, for the operator: there is no answer, or another one, such as that the server does not know
/// the service.
pub(in crate::upstream) async fn check(
    endpoint: &Endpoint,
    host: &HeaderValue,
    service: &str,
    limit: Duration,
) -> Result<(), Cow<'static, str>> {
    let checking = async {
        let stream = connect(endpoint, limit, Offer::Http2).await;
        let stream = stream.map_err(|error| error.cause.into_string())?;
        let request = Request::post(target(endpoint, host, CHECK)?)
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(());
        exchange(stream, request, encode_request(service), is_serving).await
    };
    let timed_out = || format!("no response within {} ms", limit.as_millis());
    tokio::time::timeout(limit, checking).await.unwrap_or_else(|_| Err(timed_out().into()))
}

/// Sends `GET path` with `host` to `endpoint` on `stream`, a new connection, and returns the status of the final response.
/// Its content is not read. To be run within a timeout.
///
/// # Errors
///
/// The cause of the failure, for the operator, if there is no response.
pub(in crate::upstream) async fn status_of(
    stream: Stream,
    endpoint: &Endpoint,
    host: &HeaderValue,
    path: &str,
) -> Result<u16, Cow<'static, str>> {
    let request = Request::get(target(endpoint, host, path)?)
        .header(USER_AGENT, "northgate-health-check")
        .header(ACCEPT, "*/*")
        .body(());
    exchange(stream, request, Bytes::new(), async |response| Ok(response.status().as_u16())).await
}

fn target(
    endpoint: &Endpoint,
    host: &HeaderValue,
    path: &str,
) -> Result<String, Cow<'static, str>> {
    let host = host.to_str().map_err(|_| INVALID_REQUEST)?;
    Ok(format!("{}://{host}{path}", endpoint.scheme().as_str()))
}

/// Sends `request` with `content` on `stream`, and reads what matters of the response.
async fn exchange<T>(
    stream: Stream,
    request: http::Result<Request<()>>,
    content: Bytes,
    read: impl AsyncFnOnce(Response<RecvStream>) -> Result<T, CheckError>,
) -> Result<T, Cow<'static, str>> {
    if stream.selected_http2() == Some(false) {
        return Err(WITHOUT_HTTP2.into());
    }
    let request = request.map_err(|_| INVALID_REQUEST)?;
    let alert = ReceivedAlert::default();
    let stream = InspectedStream { stream, inspector: alert.clone() };
    let asking = async {
        let mut builder = client::Builder::new();
        let (sender, connection) = builder.enable_push(false).handshake(stream).await?;
        let asking = async {
            let mut sender = sender.ready().await?;
            let (response, mut sending) = sender.send_request(request, content.is_empty())?;
            if !content.is_empty() {
                sending.send_data(content, true)?;
            }
            read(response.await?).await
        };
        match select(pin!(asking), pin!(connection)).await {
            Either::Left((answer, _)) => answer,
            // The end of the connection is also that of the request.
            Either::Right((_, asking)) => asking.await,
        }
    };
    asking.await.map_err(|error| match error {
        CheckError::Answer(cause) => cause,
        CheckError::Http2(error) => match alert.cause() {
            Some(cause) => cause.into(),
            None => StreamError::of(&error).error().cause(),
        },
    })
}

/// The reason why a request of the gateway's own has no good answer.
enum CheckError {
    /// The connection or the stream failed.
    Http2(h2::Error),
    /// The answer is another one, for this cause.
    Answer(Cow<'static, str>),
}

impl From<h2::Error> for CheckError {
    fn from(error: h2::Error) -> Self {
        Self::Http2(error)
    }
}

impl From<ContentError> for CheckError {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Stream(error) => Self::Http2(error),
            ContentError::Trailers => Self::Answer(error.to_string().into()),
        }
    }
}

async fn is_serving(response: Response<RecvStream>) -> Result<(), CheckError> {
    let (head, stream) = response.into_parts();
    let answer = |cause: String| Err(CheckError::Answer(cause.into()));
    if !head.status.is_success() {
        return answer(format!("status {}", head.status.as_u16()));
    }
    let contents = ReceivedContents::default();
    let received = ReceivedContent::new(&head.headers, stream, MAX_TRAILERS, &contents);
    let (mut content, mut trailers) = (Vec::new(), None);
    while let Some(part) = poll_fn(|cx| received.poll_frame(cx)).await {
        match part?.into_data() {
            Ok(data) if content.len() + data.len() > MAX_ANSWER_BYTES => {
                return answer(NO_HEALTH_RESPONSE.to_owned());
            }
            Ok(data) => content.extend_from_slice(&data),
            Err(part) => trailers = part.into_trailers().ok(),
        }
    }
    let status = trailers.as_ref().and_then(grpc::status_of);
    match (status.or_else(|| grpc::status_of(&head.headers)), decode_status(&content)) {
        (Some(0), Some(SERVING)) => Ok(()),
        (Some(0), Some(_)) => answer("the gRPC service is not serving".to_owned()),
        (Some(0), None) | (None, _) => answer(NO_HEALTH_RESPONSE.to_owned()),
        (Some(status), _) => answer(match grpc::status_name(status) {
            Some(name) => format!("gRPC status {status} {name}"),
            None => format!("gRPC status {status}"),
        }),
    }
}

/// Encodes a `HealthCheckRequest`: `string service = 1`.
fn encode_request(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 3);
    if !service.is_empty() {
        message.push(STRING_1);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    frame(&message, false).into()
}

/// Decodes the `status` of a `HealthCheckResponse`: `ServingStatus status = 1`. The last one counts, other fields are
/// skipped; `None` if the message is malformed.
pub(super) fn decode_status(content: &[u8]) -> Option<u64> {
    let (head, mut message) = content.split_at_checked(FRAME_HEADER_BYTES)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || length != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        match key & 7 {
            VARINT => {
                let value = varint(&mut message)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            I64 => message = message.get(8..)?,
            LEN => {
                let length = usize::try_from(varint(&mut message)?).ok()?;
                message = message.get(length..)?;
            }
            I32 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// The cause of a check whose request cannot be written.
const INVALID_REQUEST: &str = "the request cannot be expressed in HTTP/2";
/// The cause of a failure with an endpoint that does not speak HTTP/2.
pub(in crate::upstream) const WITHOUT_HTTP2: &str =
    "the TLS handshake did not select HTTP/2 (ALPN)";
const NO_HEALTH_RESPONSE: &str = "the content is not a response of grpc.health.v1";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const SERVING: u64 = 1;
const MAX_ANSWER_BYTES: usize = 4096;
/// The key of field 1 as a string.
const STRING_1: u8 = 0x0a;
/// Wire types of Protocol Buffers.
const VARINT: u64 = 0;
const I64: u64 = 1;
const LEN: u64 = 2;
const I32: u64 = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::upstream::balancing::endpoint::{Dial, EndpointKey};
    use crate::upstream::{Scheme, Settings};

    #[test]
    fn a_request_names_the_service() {
        assert_eq!(&encode_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&encode_request("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = encode_request(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
    }

    #[test]
    fn the_status_is_found_among_unknown_fields() {
        for (content, status) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], Some(1)),
            (b"\0\0\0\0\x02\x08\x02", Some(2)),
            (b"\0\0\0\0\0", Some(0)),
            (b"\0\0\0\0\x07\x12\x03abc\x08\x01", Some(1)),
            (b"\0\0\0\0\x07\x15abcd\x08\x01", Some(1)),
            (b"\0\0\0\0\x0b\x19abcdefgh\x08\x01", Some(1)),
            (b"", None),
            (b"\0\0\0\0\x03\x08\x01", None),
            (b"\x01\0\0\0\x02\x08\x01", None),
            (b"\0\0\0\0\x02\x12\x7f", None),
            (b"\0\0\0\0\x02\x08\x80", None),
            (b"\0\0\0\0\x02\x0b\x01", None),
        ] {
            assert_eq!(decode_status(content), status, "{content:?}");
        }
    }

    async fn check_at(
        endpoint: &Endpoint,
        service: &str,
        limit: Duration,
    ) -> Result<(), Cow<'static, str>> {
        check(endpoint, endpoint.host(), service, limit).await
    }

    #[tokio::test]
    async fn a_server_says_whether_it_is_serving() {
        for (status, grpc_status, expected) in [
            (1, "0", ""),
            (2, "0", "the gRPC service is not serving"),
            (1, "5", "gRPC status 5 NOT_FOUND"),
        ] {
            let endpoint = server(Some((status, grpc_status))).await;
            let checked = check_at(&endpoint, "a.B", Duration::from_secs(5)).await;
            assert_eq!(checked.err().unwrap_or_default(), expected);
        }
    }

    #[tokio::test]
    async fn a_server_that_is_silent_or_gone_does_not_serve() {
        let endpoint = server(None).await;
        let silent = check_at(&endpoint, "", Duration::from_millis(200)).await;
        assert_eq!(silent, Err("no response within 200 ms".into()));

        let gone = check_at(&endpoint_at(1), "", Duration::from_secs(5)).await;
        assert_eq!(gone, Err("connection refused".into()));
    }

    #[tokio::test]
    async fn a_health_check_requests_its_path_in_http2() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = endpoint_at(listener.local_addr().expect("an address").port());
        tokio::runtime::Handle::current().spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut http2 = h2::server::handshake(stream).await.expect("HTTP/2");
            while let Some(Ok((request, mut respond))) = http2.accept().await {
                assert_eq!(request.uri(), "http://name.test/ready?a=b");
                assert_eq!(request.headers()["user-agent"], "northgate-health-check");
                let response = Response::builder().status(503).body(()).expect("valid");
                respond.send_response(response, true).expect("open");
            }
        });

        let stream = connect(&endpoint, Duration::from_secs(5), Offer::Http2).await;
        let host = HeaderValue::from_static("name.test");
        let status = status_of(stream.expect("a connection"), &endpoint, &host, "/ready?a=b");

        assert_eq!(status.await, Ok(503));
    }

    /// Starts a server that gives one answer, or none.
    async fn server(answer: Option<(u8, &'static str)>) -> Endpoint {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        tokio::runtime::Handle::current().spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let mut http2 = h2::server::handshake(stream).await.expect("HTTP/2");
            let mut open = Vec::new();
            while let Some(Ok((request, mut respond))) = http2.accept().await {
                assert_eq!(request.uri().path(), CHECK);
                let response = Response::builder().header(CONTENT_TYPE, "application/grpc");
                if let Some((status, grpc_status)) = answer {
                    let response = response.body(()).expect("valid");
                    let mut stream = respond.send_response(response, false).expect("open");
                    let message = frame(&[8, status], false);
                    stream.send_data(Bytes::from(message), false).expect("open");
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert(&grpc::GRPC_STATUS, grpc_status.parse().expect("a value"));
                    stream.send_trailers(trailers).expect("open");
                } else {
                    open.push(respond);
                }
            }
        });
        endpoint_at(port)
    }

    fn endpoint_at(port: u16) -> Endpoint {
        let settings = Settings::new("test", Vec::new());
        let dial = Dial::Socket(([127, 0, 0, 1], port).into());
        let authority = format!("127.0.0.1:{port}").into();
        Endpoint::new(EndpointKey::new(&settings, Scheme::Http, authority, dial, None), None)
    }

    proptest! {
        #[test]
        fn any_answer_is_decoded_or_refused(message in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = decode_status(&frame(&message, false));
            let _ = decode_status(&message);
        }
    }
}
