//! Floor 1: what several gateways share, in Redis.
//!
//! One connection for the whole process, kept on the control runtime, with a
//! short patience: whoever asks in vain goes on with what this process knows.
//! Nothing here knows what is kept there; sessions, leases and counts bring
//! their own keys and scripts.

mod keeper;
mod redis;
mod settings;

pub use ::redis::{FromRedisValue, Script, Value};

pub use self::keeper::Condition;
pub use self::redis::{Entry, Redis, Unavailable};
pub use self::settings::{InvalidUrl, Settings};
