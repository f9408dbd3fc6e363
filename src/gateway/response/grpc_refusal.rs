//! Refusals and failures in the form that gRPC clients understand: a status of the call, not of HTTP.
//!
//! A gRPC client reads `grpc-status`; a response of HTTP with another status and without that field is an unknown
//! error to it. A refusal is therefore 200 with the status in the head (*Trailers-Only*). gRPC-Web clients in browsers
//! read the same fields only if CORS exposes them, so the trailers are in the content as well.

use core::pin::Pin;
use core::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::Reason;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Frame, SizeHint};

use super::rejection::Rejection;
use crate::base::body::{self, Body};
use crate::base::grpc::{self, GRPC_MESSAGE, GRPC_STATUS, Status, Variant};
use crate::gateway::proxy::call_deadline::DeadlineExceeded;
use crate::gateway::proxy::stream_guard::TerminationReason;
use crate::upstream::UpstreamError;

/// Builds the response to a refused call.
pub(crate) fn respond(rejection: &Rejection, variant: Variant) -> Response<Body> {
    let (status, message) = (status(rejection), rejection.title());
    let mut response = Response::new(content(variant, status, message));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, content_type(variant));
    headers.insert(&GRPC_STATUS, status.value());
    headers.insert(&GRPC_MESSAGE, grpc::encode_message(message));
    response
}

fn content_type(variant: Variant) -> HeaderValue {
    HeaderValue::from_static(match variant {
        Variant::Grpc => "application/grpc",
        Variant::Web => "application/grpc-web+proto",
        Variant::WebText => "application/grpc-web-text+proto",
    })
}

fn content(variant: Variant, status: Status, message: &'static str) -> Body {
    let trailers = || {
        let message = grpc::encode_message(message);
        let message = message.to_str().unwrap_or_default();
        let fields = format!("grpc-status: {}\r\ngrpc-message: {message}\r\n", status as u8);
        grpc::frame(fields.as_bytes(), true)
    };
    match variant {
        Variant::Grpc => Body::empty(),
        Variant::Web => Bytes::from(trailers()).into(),
        Variant::WebText => STANDARD.encode(trailers()).into(),
    }
}

/// Returns the status of a call for a refusal. Where the mapping of HTTP statuses in the specification says only
/// "unavailable" or "unknown", the more exact status is used: a timeout of the gateway is `DEADLINE_EXCEEDED` as in Envoy,
/// since clients repeat what is unavailable at once.
fn status(rejection: &Rejection) -> Status {
    match rejection {
        Rejection::Upstream(UpstreamError::Client) => return Status::Cancelled,
        Rejection::Upstream(UpstreamError::StreamReset(code)) => return status_of_reset(*code),
        // Whatever the status of the limit: clients repeat what is unavailable at once.
        Rejection::Limited(_) => return Status::ResourceExhausted,
        _ => {}
    }
    match rejection.status() {
        StatusCode::BAD_REQUEST | StatusCode::INTERNAL_SERVER_ERROR | StatusCode::LOOP_DETECTED => {
            Status::Internal
        }
        StatusCode::UNAUTHORIZED => Status::Unauthenticated,
        StatusCode::FORBIDDEN => Status::PermissionDenied,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            Status::Unimplemented
        }
        StatusCode::URI_TOO_LONG => Status::InvalidArgument,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Status::ResourceExhausted,
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => Status::DeadlineExceeded,
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => Status::Unavailable,
        _ => Status::Unknown,
    }
}

/// Returns the status of a call whose stream the upstream has reset (PROTOCOL-HTTP2.md of gRPC, *Errors*).
/// `REFUSED_STREAM`, which is `UNAVAILABLE`, is no such failure: the call was not processed.
const fn status_of_reset(code: Reason) -> Status {
    match code {
        Reason::CANCEL => Status::Cancelled,
        Reason::ENHANCE_YOUR_CALM => Status::ResourceExhausted,
        Reason::INADEQUATE_SECURITY => Status::PermissionDenied,
        Reason::REFUSED_STREAM => Status::Unavailable,
        _ => Status::Internal,
    }
}

/// Returns the status code of a call whose response failed with `error`, or whose request was `refused` after its response had
/// begun; `None` if the client itself is gone.
pub(crate) fn code_of_failure(error: &body::Error, refused: Option<Rejection>) -> Option<u16> {
    end_of_call(error, refused).map(|(status, _)| status as u16)
}

fn end_of_call(error: &body::Error, refused: Option<Rejection>) -> Option<(Status, &'static str)> {
    let refused = refused.map(|refused| (status(&refused), refused.title()));
    refused.or_else(|| status_of_error(error))
}

/// Returns the status and message of a call whose response failed with `error`; `None` if the client itself is gone.
fn status_of_error(error: &body::Error) -> Option<(Status, &'static str)> {
    if error.is::<DeadlineExceeded>() {
        let rejection = Rejection::DeadlineExceeded;
        return Some((status(&rejection), rejection.title()));
    }
    if let Some(reason) = error.downcast_ref::<TerminationReason>() {
        return Some(match reason {
            TerminationReason::Expired => (Status::Unauthenticated, "The token has expired"),
            TerminationReason::Revoked => {
                (Status::Unauthenticated, "The authorization was revoked")
            }
            TerminationReason::Overdue => {
                (Status::DeadlineExceeded, "The stream timeout has elapsed")
            }
            TerminationReason::ShuttingDown => {
                (Status::Unavailable, "The gateway is shutting down")
            }
        });
    }
    match error.downcast_ref::<UpstreamError>() {
        Some(UpstreamError::Client) => None,
        Some(UpstreamError::Timeout | UpstreamError::Stalled) => {
            Some((Status::DeadlineExceeded, "The upstream server did not respond in time"))
        }
        Some(UpstreamError::StreamReset(code)) => {
            Some((status_of_reset(*code), FAILED_DURING_CALL))
        }
        _ => Some((Status::Unavailable, FAILED_DURING_CALL)),
    }
}

const FAILED_DURING_CALL: &str = "The upstream server failed during the call";

/// The content of a gRPC response, which ends in a status in any case: an error becomes the status of the call.
pub(crate) struct StatusOnFailure<F> {
    /// `None` once the content has ended in an error.
    body: Option<Body>,
    /// Returns the refusal of the request, if it was refused after its response had begun.
    refused: F,
}

impl<F: Fn() -> Option<Rejection> + Unpin + 'static> StatusOnFailure<F> {
    /// Wraps the content of a gRPC response.
    pub(crate) fn body(body: Body, refused: F) -> Body {
        body.wrapped(|body| Self { body: Some(body), refused })
    }
}

impl<F: Fn() -> Option<Rejection> + Unpin> http_body::Body for StatusOnFailure<F> {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        let Poll::Ready(Some(Err(error))) = &polled else { return polled };
        let Some((status, message)) = end_of_call(error, (this.refused)()) else {
            return polled;
        };
        this.body = None;
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert(&GRPC_STATUS, status.value());
        trailers.insert(&GRPC_MESSAGE, grpc::encode_message(message));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Challenge;

    #[test]
    fn every_refusal_has_the_status_of_a_call() {
        for (rejection, expected) in [
            (Rejection::BadRequest, 13),
            (Rejection::AmbiguousPath, 13),
            (Rejection::AmbiguousField, 13),
            (Rejection::MalformedCredentials, 13),
            (Rejection::LoopDetected, 13),
            (Rejection::TargetTooLong, 3),
            (Rejection::UnknownCoding, 12),
            (Rejection::Unauthenticated(Challenge::Missing), 16),
            (Rejection::Unauthenticated(Challenge::SessionEnded), 16),
            (Rejection::Forbidden, 7),
            (Rejection::CsrfRejected, 7),
            (Rejection::HttpsRequired, 7),
            (Rejection::NoRoute, 12),
            (Rejection::Method { allow: HeaderValue::from_static("GET") }, 12),
            (Rejection::HeadTooLarge { clears_cookies: false }, 8),
            (Rejection::Upstream(UpstreamError::HeadTooLarge), 8),
            (Rejection::BodyTooLarge, 8),
            (Rejection::BodyTimeout, 4),
            (Rejection::TooManyFailures { retry_after: 1 }, 8),
            (Rejection::Overloaded, 14),
            (Rejection::IssuerUnavailable { retry_after: 1 }, 14),
            (Rejection::StoreUnavailable, 14),
            (Rejection::Upstream(UpstreamError::Connect), 14),
            (Rejection::Upstream(UpstreamError::Reset), 14),
            (Rejection::Upstream(UpstreamError::Protocol), 14),
            (Rejection::Upstream(UpstreamError::Refused), 14),
            (Rejection::Upstream(UpstreamError::CircuitOpen { seconds: 1 }), 14),
            (Rejection::Upstream(UpstreamError::Overflow), 14),
            (Rejection::Upstream(UpstreamError::NoEndpoint), 14),
            (Rejection::Upstream(UpstreamError::Timeout), 4),
            (Rejection::Upstream(UpstreamError::StreamReset(Reason::CANCEL)), 1),
            (Rejection::Upstream(UpstreamError::StreamReset(Reason::ENHANCE_YOUR_CALM)), 8),
            (Rejection::Upstream(UpstreamError::StreamReset(Reason::INADEQUATE_SECURITY)), 7),
            (Rejection::Upstream(UpstreamError::StreamReset(Reason::NO_ERROR)), 13),
            (Rejection::Upstream(UpstreamError::StreamReset(Reason::INTERNAL_ERROR)), 13),
            (Rejection::DeadlineExceeded, 4),
            (Rejection::Upstream(UpstreamError::Client), 1),
            (Rejection::Internal, 13),
        ] {
            assert_eq!(status(&rejection) as u8, expected, "{rejection:?}");
        }
    }

    #[tokio::test]
    async fn the_trailers_of_grpc_web_are_in_the_content() {
        let rejection = Rejection::Unauthenticated(Challenge::Missing);
        let fields = "grpc-status: 16\r\ngrpc-message: Credentials are required\r\n";

        let web = respond(&rejection, Variant::Web);
        assert_eq!(web.headers()["grpc-status"], "16");
        let frame = web.into_body().collect(1000).await.expect("small");
        assert_eq!(frame[..5], [0x80, 0, 0, 0, fields.len() as u8]);
        assert_eq!(&frame[5..], fields.as_bytes());

        let text = respond(&rejection, Variant::WebText);
        assert_eq!(text.headers()[CONTENT_TYPE], "application/grpc-web-text+proto");
        let text = text.into_body().collect(1000).await.expect("small");
        assert_eq!(STANDARD.decode(text).expect("Base64"), frame);

        let grpc = respond(&rejection, Variant::Grpc);
        assert_eq!(
            (grpc.status(), grpc.headers()[CONTENT_TYPE].as_bytes()),
            (StatusCode::OK, &b"application/grpc"[..])
        );
        assert!(http_body::Body::is_end_stream(grpc.body()));
    }
}
