//! The wait for request content before its request is forwarded, so that uploads that do not begin leave the
//! connections of an upstream to other requests (decision 0053).

use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;

use http::Version;
use http_body::Body as _;
use tokio::time::timeout;

use super::request_body::LimitedBody;
use crate::base::body::Body;
use crate::base::grpc::Variant;
use crate::gateway::Rejection;
use crate::gateway::exchange::Exchange;
use crate::gateway::response::problem::ResponseFormat;
use crate::upstream::Upstream;

/// Returns the content of a request to `upstream` once the request may be forwarded: when its content has begun.
///
/// A client may also begin its content after the response. Such a request is forwarded after a while, at once if it
/// is a stream of HTTP/2 without a declared length, as calls that stream both ways are; but only while few requests
/// of that kind use the upstream. The timeouts of the content limit the wait of all others. A gRPC call to an
/// upstream that speaks HTTP/2 never waits: it occupies a stream there, and no connection.
///
/// # Errors
///
/// [`Rejection::BodyTimeout`] if no content arrives, and the other rejections of content.
pub(crate) async fn begin(
    mut content: Box<LimitedBody>,
    version: Version,
    exchange: &mut Exchange,
    upstream: &Upstream,
) -> Result<Body, Rejection> {
    let length = content.declared_length();
    let begun = match poll_fn(|cx| Poll::Ready(content.poll_begun(cx))).await {
        Poll::Ready(begun) => begun,
        Poll::Pending if length == Some(0) => true,
        Poll::Pending => {
            let streams = version >= Version::HTTP_2 && length.is_none();
            if streams && shares_connections(version, exchange, upstream) {
                return Ok(Body::streaming(content));
            }
            // Boxed: most content arrives with its head, and every request carries this future.
            let wait = Box::pin(wait(&mut content, upstream, streams));
            exchange.measured(wait).await
        }
    };
    match begun {
        true if content.is_end_stream() => Ok(Body::empty()),
        true => Ok(Body::streaming(content)),
        false => Err(exchange.body_failed()),
    }
}

/// Whether a request to `upstream` is a gRPC call that takes a stream of HTTP/2 on both sides, and no connection: its
/// messages may be hours apart. `Content-Type` alone is no evidence, since every client may send it.
pub(crate) fn shares_connections(
    version: Version,
    exchange: &Exchange,
    upstream: &Upstream,
) -> bool {
    version >= Version::HTTP_2
        && exchange.response_format == ResponseFormat::Grpc(Variant::Grpc)
        && upstream.speaks_http2()
}

/// Waits until the request may be forwarded; false if its content was aborted.
async fn wait(content: &mut LimitedBody, upstream: &Upstream, streams: bool) -> bool {
    if !streams && let Ok(begun) = timeout(HEAD_START, poll_fn(|cx| content.poll_begun(cx))).await {
        return begun;
    }
    if let Some(permit) = upstream.admit_unstarted() {
        content.hold_until_begun(permit);
        return true;
    }
    poll_fn(|cx| content.poll_begun(cx)).await
}

/// The time that a client has to begin its content before it is assumed to wait for the response.
const HEAD_START: Duration = Duration::from_millis(500);
