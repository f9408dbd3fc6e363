//! Forwarding: rewrites a request, adds identity to it, sends it upstream and relays the response or the upgraded
//! connection.

pub(crate) mod call_deadline;
pub(crate) mod forward;
pub(crate) mod header_edits;
pub(crate) mod identity_headers;
pub(crate) mod identity_token;
pub(crate) mod rewrite;
pub(crate) mod stream_guard;
pub(crate) mod websocket;
