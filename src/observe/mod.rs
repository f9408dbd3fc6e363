//! Metrics for Prometheus, events and the access log (floor 1).

pub mod log;
pub mod log_format;
pub mod metrics;
pub mod record;

mod event;
mod library_lines;
mod writer;
