//! Calls to an authorization server: authentication, concurrency, circuit breaking.

pub(super) mod call_context;
pub(super) mod call_purpose;
pub(super) mod circuit_breaker;
pub(super) mod client_auth;
pub(super) mod concurrency;
pub(super) mod http_client;
pub(super) mod unavailable;
