//! Checks response heads, and streams response content.

use core::pin::Pin;
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::{Frame, SizeHint};

use super::super::UpstreamError;
use super::connection::MAX_HEADER_LIST_BYTES;
use super::stream::StreamState;
use super::stream_error::StreamError;
use crate::base::body;
use crate::base::content_length;
use crate::base::header_fields::is_trimmed;
use crate::base::idle_timeout::IdleTimeout;
use crate::http2::{ContentError, ReceivedContent, TrailerLimits};
use crate::observe::metrics::UpstreamMetrics;

/// Checks a response head, and removes the fields of the upstream's connection.
///
/// # Errors
///
/// [`UpstreamError::Protocol`] for a head that no response of HTTP/2 has, or that a recipient in HTTP/1.1 could read
/// in two ways.
pub(super) fn check<B>(response: &mut Response<B>) -> Result<(), UpstreamError> {
    let headers = response.headers();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let is_length = |value: &HeaderValue| content_length::parse(value.as_bytes()).is_some();
    let length_is_valid = lengths.next().is_none_or(is_length) && lengths.next().is_none();
    if response.status().is_informational()
        || !length_is_valid
        || headers.len() > MAX_FIELDS
        || !headers.values().all(is_trimmed)
    {
        return Err(UpstreamError::Protocol);
    }
    remove_hop_by_hop(response.headers_mut());
    Ok(())
}

/// Returns an interim response without the fields of the upstream's connection, framing and cookies; `None` if it concerns
/// that connection alone.
///
/// # Errors
///
/// [`UpstreamError::Protocol`] for `101 Switching Protocols`, which HTTP/2 does not have (RFC 9113 §8.6).
pub(super) fn interim(mut response: Response<()>) -> Result<Option<Response<()>>, UpstreamError> {
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => return Err(UpstreamError::Protocol),
        // The gateway itself decides when a client sends its content.
        StatusCode::CONTINUE => return Ok(None),
        _ => {}
    }
    let headers = response.headers_mut();
    remove_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH);
    headers.remove(SET_COOKIE);
    Ok(Some(response))
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether the response has no content whatever follows its head (RFC 9112 §6.3).
pub(super) fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The content of a response, with its stream.
pub(super) struct ResponseContent {
    pub(super) received: ReceivedContent,
    /// `None` once the content has ended.
    pub(super) stream: Option<Rc<StreamState>>,
    /// The maximum gap in the content.
    pub(super) gap: IdleTimeout,
    pub(super) ending: Ending,
    pub(super) metrics: Arc<UpstreamMetrics>,
}

/// The fate of request content that outlives the response.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// The rest is not sent: a gRPC call ends with its response.
    Cut,
    /// The rest is sent, to an upstream that reads any of it within the limit.
    Finish(Duration),
}

impl Ending {
    /// Ends the stream of a response that has ended.
    pub(super) fn apply(self, stream: &Rc<StreamState>) {
        match self {
            Self::Cut => stream.cut(),
            Self::Finish(limit) => stream.finish_upload(limit),
        }
    }
}

impl ResponseContent {
    fn end(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.ending.apply(&stream);
        }
    }

    /// Ends the stream because of an error, which is counted.
    fn fail(&mut self, failure: UpstreamError) -> body::Error {
        let mut failure = failure;
        if let Some(stream) = self.stream.take() {
            if stream.upload.has_failed() {
                failure = UpstreamError::Client;
            }
            stream.cut();
        }
        if let Some(reason) = failure.reason() {
            self.metrics.failed(reason);
        }
        failure.into()
    }
}

impl http_body::Body for ResponseContent {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        if this.stream.is_none() {
            return Poll::Ready(None);
        }
        match this.received.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.gap.stopped();
                let ends = frame.is_trailers() || this.received.is_end_stream();
                if ends {
                    this.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let failure = match error {
                    ContentError::Trailers => UpstreamError::Protocol,
                    ContentError::Stream(error) => StreamError::of(&error).of_content(),
                };
                Poll::Ready(Some(Err(this.fail(failure))))
            }
            Poll::Ready(None) => {
                this.end();
                Poll::Ready(None)
            }
            Poll::Pending => {
                // An upstream that waits for the client is not silent.
                if this.stream.as_ref().is_some_and(|stream| stream.upload.is_starved()) {
                    this.gap.stopped();
                } else if this.gap.poll_elapsed(cx).is_ready() {
                    return Poll::Ready(Some(Err(this.fail(UpstreamError::Stalled))));
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none() || self.received.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.stream.is_some() { self.received.size_hint() } else { SizeHint::with_exact(0) }
    }
}

impl Drop for ResponseContent {
    fn drop(&mut self) {
        // The client is gone, or its response was ended: the upstream is told.
        if let Some(stream) = self.stream.take() {
            stream.cut();
        }
    }
}

/// Fields of a connection or of a proxy (RFC 9110 §7.6.1, RFC 9113 §8.2.2).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    TRANSFER_ENCODING,
    UPGRADE,
    TE,
    EXPECT,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
const MAX_FIELDS: usize = 256;
/// The limits of a trailer section: those of a head.
pub(super) const MAX_TRAILERS: TrailerLimits =
    TrailerLimits { fields: MAX_FIELDS, bytes: MAX_HEADER_LIST_BYTES as usize };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_connection_are_removed() {
        let mut response = Response::builder()
            .header("connection", "x")
            .header("keep-alive", "5")
            .header("x-kept", "1")
            .body(())
            .expect("valid");

        assert_eq!(check(&mut response), Ok(()));

        let names: Vec<_> = response.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-kept"]);
    }

    #[test]
    fn a_response_with_a_malformed_length_or_surrounding_whitespace_is_refused() {
        for (name, value) in [
            ("content-length", ""),
            ("content-length", "+5"),
            ("content-length", "5, 5"),
            ("x-a", " b"),
            ("x-a", "b\t"),
        ] {
            let mut response = Response::builder().header(name, value).body(()).expect("valid");
            assert_eq!(check(&mut response), Err(UpstreamError::Protocol), "{name}: {value:?}");
        }
    }

    #[test]
    fn a_response_with_two_lengths_or_too_many_fields_is_refused() {
        let mut lengths = Response::builder()
            .header("content-length", "1")
            .header("content-length", "1")
            .body(())
            .expect("valid");
        let many = (0..=MAX_FIELDS)
            .fold(Response::builder(), |response, n| response.header(format!("x-{n}"), "1"));

        assert_eq!(check(&mut lengths), Err(UpstreamError::Protocol));
        assert_eq!(check(&mut many.body(()).expect("valid")), Err(UpstreamError::Protocol));
    }
}
