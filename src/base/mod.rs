//! Shared values without I/O (floor 0).

pub mod abort_on_drop;
pub mod accept_header;
pub mod body;
pub mod clock;
pub mod content_length;
pub mod digest;
pub mod domain;
pub mod encoded_fields;
pub mod grpc;
pub mod idle_timeout;
pub mod in_flight;
pub mod inspected_stream;
pub mod interim_sink;
pub mod lock;
pub mod log_limiter;
pub mod media_type;
pub mod random;
pub mod raw_target;
pub mod read_ahead;
pub mod scopes;
pub mod secret;
pub mod single_flight;
pub mod strict_json;
pub mod trailers;
pub mod watched_body;
pub mod weak_map;
