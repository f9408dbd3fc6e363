//! Forwarding: rewrites a request, adds identity to it, sends it upstream and relays the response or the upgraded
//! connection.

pub(crate) mod affinity;
pub(crate) mod call_deadline;
mod destination;
pub(crate) mod fallback;
pub(crate) mod forward;
pub(crate) mod header_edits;
pub(crate) mod identity_headers;
pub(crate) mod identity_token;
mod if_header;
pub(crate) mod mirror;
pub(crate) mod outcome;
mod reference;
pub(crate) mod references;
pub(crate) mod rewrite;
pub(crate) mod route_upstream;
pub(crate) mod split;
pub(crate) mod stale_responses;
pub(crate) mod stream_guard;
pub(crate) mod trailer_edits;
pub(crate) mod tunnel;
mod upstream_head;
pub(crate) mod websocket;
