//! Turns a panic while handling a request into a 500.

use core::panic::AssertUnwindSafe;
use std::rc::Rc;

use futures_util::FutureExt;
use http::{Request, Response};

use crate::base::body::Body;
use crate::base::interim_sink::InterimSink;
use crate::gateway::{Gateway, Peer};

/// Handles one request. A panic fails that request with 500 and affects no other.
pub(super) fn serve(
    gateway: &Gateway,
    peer: Rc<Peer>,
    interim: Option<Rc<dyn InterimSink>>,
    request: Request<Body>,
) -> impl Future<Output = Response<Body>> {
    AssertUnwindSafe(gateway.serve(peer, interim, request))
        .catch_unwind()
        .map(|served| served.unwrap_or_else(|_| gateway.internal_error()))
}
