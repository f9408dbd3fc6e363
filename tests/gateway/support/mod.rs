//! What the tests of the running gateway share.

mod client;
mod gateway;
mod http2;
mod http2_service;
mod issuer;

mod upstream;

pub(crate) use client::{Answer, Client};
pub(crate) use gateway::{Gateway, noon, whole};
pub(crate) use http2::{GET, Http2, Outcome};
pub(crate) use http2_service::{
    Http2Client, Http2Service, drain, frame, next_frame, raw_service, read, read_frame,
    request_arrived, trailers, try_read,
};
pub(crate) use issuer::{Issuer, start_issuer};

pub(crate) use upstream::{Reading, Seen, Upstream, ok};

use core::time::Duration;

/// How long anything that must happen may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Looks at `condition` until it holds. Fails the test if it does not within [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let began = tokio::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// One service, and a public route to it.
pub(crate) fn open(upstream: &Upstream) -> String {
    format!(
        "upstreams:\n  service: {{ targets: [\"{}\"] }}\n\
         routes:\n  - {{ id: open, path: /**, upstream: service, auth: none }}\n",
        upstream.url()
    )
}
