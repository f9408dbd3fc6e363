//! Floor 1: what the gateway tells about itself, to Prometheus and to its log.

pub mod log;
pub mod metrics;
pub mod record;

mod event;
mod writer;
