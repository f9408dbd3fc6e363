//! Floor 0: values without I/O, known to every room.

pub mod alarm;
pub mod body;
pub mod clock;
pub mod flight;
pub mod log_limiter;
pub mod scopes;
pub mod secret;
pub mod shelf;
pub mod tapped;
pub mod under_way;
pub mod written;
