//! One request at an upstream: its attempts, content, interim responses and tunnel.

mod attempt;
mod attempt_result;
mod endpoint_selection;
pub(super) mod extra_headers;
pub(super) mod interim_responses;
pub(super) mod judgement;
pub(super) mod long_lived_response;
pub(super) mod send;
pub(super) mod send_options;
pub(super) mod tunnel;
pub(super) mod unstarted_uploads;
