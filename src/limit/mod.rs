//! How much of it: spike arrest, quotas, and requests in flight.
//!
//! A *spike arrest* asks what a service can survive, and smooths traffic. A
//! *quota* asks what a client has bought, and counts it. *Concurrency* asks
//! how much is going on right now. All three are [`Settings`] here, keyed by
//! what the gateway knows about a request, bounded in memory, and decided all
//! or nothing: a refusal by one limit charges none.
//!
//! | File | What it knows |
//! |---|---|
//! | `rate`, `settings` | what a limit is told |
//! | `key` | whose requests are counted together |
//! | `counter_table` | counts by key, bounded and swept; nothing about what they mean |
//! | `gcra`, `fixed_window`, `calendar`, `concurrency` | what a count means, and when it returns |
//! | `limiter` | one limit: its rule and its counts |
//! | `counters`, `registry`, `persistence` | what outlives a reload, and a restart |
//! | `route_limits`, `response_headers` | a route's limits, and what its clients are told of them |
//!
//! The gateway makes one [`Limiter`] per limit and one [`RouteLimits`] per route when
//! it compiles a snapshot. A request gathers a [`LimitState`]: it is asked before
//! authentication and after authorization, writes the answer's fields, and is
//! kept until the last byte. Counts shared by several gateways would be another
//! table under the same rules: nothing above `counter_table` knows where a cell lies.

mod calendar;
mod concurrency;
mod counter_table;
mod counters;
mod fixed_window;
mod gcra;
mod key;
mod limiter;
mod persistence;
mod rate;
mod registry;
mod response_headers;
mod route_limits;
mod settings;

pub use calendar::{UnknownZone, Zone};
pub use counters::Now;
pub use key::LimitKeySource;
pub use limiter::Limiter;
pub use persistence::StateError;
pub use rate::{InvalidLimit, Kind, Quota, Rate, SpikeArrest, Unit, Window};
pub use registry::LimitRegistry;
pub use route_limits::{HeldPermits, LimitExceeded, LimitState, Limited, Meter, RouteLimits};
pub use settings::{Cost, KeyPart, LimitId, OnMissing, Settings, Status};

#[cfg(test)]
mod tests;
