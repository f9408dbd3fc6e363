//! The id of a request whose handling panicked, for the response to it.

use std::cell::Cell;

use http::HeaderValue;

/// Keeps the id of the request whose handling panics on this thread.
pub(super) fn record(request_id: &HeaderValue) {
    LAST.set(Some(request_id.clone()));
}

/// Takes the id of the request whose handling has just panicked on this thread.
pub(in crate::gateway) fn take() -> Option<HeaderValue> {
    LAST.take()
}

thread_local! {
    static LAST: Cell<Option<HeaderValue>> = const { Cell::new(None) };
}
