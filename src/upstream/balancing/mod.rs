//! The endpoints of an upstream, and the choice of one for an attempt.

pub(super) mod attempted_endpoints;
pub(super) mod endpoint;
pub(super) mod endpoint_set;
pub(super) mod load_balancer;
pub(super) mod resolve;
pub(super) mod retry_budget;
