//! Shared values without I/O (floor 0).

pub mod accept;
pub mod body;
pub mod clock;
pub mod digest;
pub mod encoded_fields;
pub mod grpc;
pub mod idle_timeout;
pub mod in_flight;
pub mod lock;
pub mod log_limiter;
pub mod random;
pub mod raw_target;
pub mod read_ahead;
pub mod scopes;
pub mod secret;
pub mod single_flight;
pub mod tapped;
pub mod weak_map;
