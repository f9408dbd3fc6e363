//! Parsing and normalization of a request before any policy: host, path, header fields, content limits, client
//! address, loop detection, id.

pub(crate) mod await_content;
pub(crate) mod forwarded;
pub(crate) mod headers;
pub(crate) mod host;
pub(crate) mod loop_detection;
pub(crate) mod path;
pub(crate) mod path_error;
pub(crate) mod path_readings;
pub(crate) mod request_body;
pub(crate) mod request_id;
