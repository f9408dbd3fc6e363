//! The Redis server that several gateways share (floor 1).
//!
//! A single server, the primary that Sentinels name, or a Cluster. One connection for the whole process, maintained on
//! the control runtime, with a
//! short timeout: a caller whose command times out continues with local state.
//! Nothing here depends on the data; sessions, locks and revocations bring
//! their own keys and scripts.

mod client;
mod connection_manager;
mod servers;
mod settings;

pub use ::redis::{Script, Value};

pub use self::client::{Redis, Unavailable};
pub use self::connection_manager::Condition;
pub(crate) use self::connection_manager::RESTORE_TIME;
pub use self::settings::{InvalidUrl, Settings, Topology};
