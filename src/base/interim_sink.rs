//! A sink for interim responses to the client of a request (RFC 9110 §15.2).

use core::fmt;

use http::Response;

/// Sends interim responses to the client of one request, before the final one.
///
/// A sink is bounded: a client that reads nothing, or an upstream without end, costs no more memory.
pub trait InterimSink: fmt::Debug {
    /// Whether the client gets further interim responses.
    fn is_open(&self) -> bool;

    /// Sends a response, unless there are too many, or too large ones.
    fn send(&self, response: Response<()>);

    /// Tells a client that has its response that the gateway refused the rest of its request. In HTTP/1.1 the end of the
    /// connection says so.
    fn refuse_rest(&self) {}
}

/// Interim responses to one request.
pub const MAX_INTERIM_RESPONSES: usize = 16;
/// Bytes of interim responses to one request that wait to be sent.
pub const MAX_INTERIM_BYTES: usize = 32 * 1024;
