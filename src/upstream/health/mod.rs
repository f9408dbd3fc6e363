//! Health of endpoints: active checks, passive checks, circuit breaking.

pub(super) mod circuit_breaker;
pub(super) mod client_pauses;
pub(super) mod content_outcome;
pub(super) mod endpoint_health;
pub(super) mod health_check;
pub(super) mod maintenance;
pub(super) mod passive_health;
