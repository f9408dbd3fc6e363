//! What a request is: its head, path, content and the client that sent it, before any policy.

pub(crate) mod forwarded;
pub(crate) mod headers;
pub(crate) mod host;
pub(crate) mod loop_detection;
pub(crate) mod path;
pub(crate) mod path_readings;
pub(crate) mod request_body;
pub(crate) mod request_id;
