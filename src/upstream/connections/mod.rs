//! Connections to endpoints: opening, TLS, reuse.

pub(super) mod connect;
pub(super) mod connection_gauges;
pub(super) mod handshake_error;
pub(super) mod idle_pool;
pub(super) mod pooled_body;
pub(super) mod tls_connectors;
pub(super) mod tls_records;
