//! Metrics for Prometheus, events and the access log (floor 1).

pub mod access_log_entry;
pub mod log;
pub mod log_format;
pub mod metrics;
pub mod usage_log;

mod event_format;
mod library_log_limit;
mod redact_query;
mod writer;
