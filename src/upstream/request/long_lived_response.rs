//! Responses that may be silent for long: events and gRPC messages may be hours apart.

use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::base::grpc;

/// Whether the response with these fields has no timeout between its parts.
pub(crate) fn is_endless(headers: &HeaderMap) -> bool {
    let is_event_stream =
        headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(EVENT_STREAM));
    is_event_stream || grpc::is_grpc(headers)
}

const EVENT_STREAM: &[u8] = b"text/event-stream";
