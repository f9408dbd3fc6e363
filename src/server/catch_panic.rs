//! One request, whatever becomes of it.

use core::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures_util::FutureExt;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};

use crate::base::body::Body;
use crate::gateway::{Gateway, Peer};

/// What the gateway answers. A panic costs that request a 500 and nobody else anything.
pub(super) fn serve(
    gateway: &Gateway,
    peer: Rc<Peer>,
    request: Request<Body>,
) -> impl Future<Output = Response<Body>> {
    AssertUnwindSafe(gateway.serve(peer, request))
        .catch_unwind()
        .map(|served| served.unwrap_or_else(|_| internal_error()))
}

/// What is left to say after a panic: the story is in the log.
fn internal_error() -> Response<Body> {
    let mut response = Response::new(Body::from(
        r#"{"type":"urn:northgate:problem:internal","title":"Internal gateway error","status":500}"#,
    ));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    let problem = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(CONTENT_TYPE, problem);
    response
}
