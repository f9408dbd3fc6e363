//! One request at the limits of its route, from the check to the last byte of the response.

pub(super) mod charged_limit;
pub(super) mod content_charge;
pub(super) mod decision;
pub(super) mod evaluation;
pub(super) mod json_pointer;
pub(super) mod limit_exceeded;
pub(super) mod limit_state;
pub(super) mod response_cost;
pub(super) mod response_headers;
