//! Turns a panic while handling a request into a 500.

use core::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures_util::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};

use crate::base::body::Body;
use crate::gateway::{Gateway, Peer};

/// Handles one request. A panic fails that request with 500 and affects no other.
pub(super) fn serve(
    gateway: &Gateway,
    peer: Rc<Peer>,
    request: Request<Body>,
) -> impl Future<Output = Response<Body>> {
    AssertUnwindSafe(gateway.serve(peer, request))
        .catch_unwind()
        .map(|served| served.unwrap_or_else(|_| internal_error()))
}

/// Returns the response after a panic; the panic itself is in the log.
fn internal_error() -> Response<Body> {
    let mut response = Response::new(Body::from(
        r#"{"type":"urn:northgate:problem:internal","title":"Internal gateway error","status":500}"#,
    ));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let problem = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, problem);
    response
}
