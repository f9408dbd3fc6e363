//! Forwarding to an upstream: what the upstream is told, and what lasts as long as the exchange.

pub(crate) mod forward;
pub(crate) mod header_edits;
pub(crate) mod identity_headers;
pub(crate) mod identity_token;
pub(crate) mod rewrite;
pub(crate) mod stream_guard;
pub(crate) mod websocket;
