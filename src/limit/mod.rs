//! Rate limits, quotas and concurrency limits (floor 2).
//!
//! A *spike arrest* protects an upstream, and smooths traffic. A
//! *quota* is an allowance of a client, and counts it. *Concurrency* bounds
//! the requests in flight. All three are [`Settings`] here, keyed by
//! properties of a request, bounded in memory, and decided all
//! or nothing: a refusal by one limit charges none.
//!
//! | File | Content |
//! |---|---|
//! | `rate`, `settings` | settings of a limit |
//! | `key` | which requests are counted together |
//! | `counter`, `counter_table`, `overflow` | counters by key, bounded and swept |
//! | `algorithm`, `gcra`, `fixed_window`, `calendar`, `concurrency` | the algorithms |
//! | `plans`, `response_cost` | amounts by a caller's plan, costs that the response tells |
//! | `limiter` | one limit: its algorithms and its counters |
//! | `counters`, `registry`, `persistence` | state that outlives a reload, and a restart |
//! | `consumers`, `report` | the largest consumers by name, and what operators see and reset |
//! | `route_limits`, `response_headers` | a route's limits, and the header fields about them |
//!
//! The gateway creates one [`Limiter`] per limit and one [`RouteLimits`] per route when
//! it compiles a snapshot. A request has a [`LimitState`]: it is checked before
//! authentication and after authorization, writes the response header fields, and is
//! held until the last byte. Counters shared by several gateways would be another
//! table under the same algorithms: nothing above `counter_table` depends on their location.

mod algorithm;
mod calendar;
mod concurrency;
mod consumers;
mod counter;
mod counter_table;
mod counters;
mod fixed_window;
mod gcra;
mod key;
mod limiter;
mod overflow;
mod persistence;
mod plans;
mod rate;
mod registry;
mod report;
mod response_cost;
mod response_headers;
mod route_limits;
mod settings;

pub use self::time_zone::{UnknownZone, Zone};
pub use counters::Now;
pub use key::LimitKeySource;
pub use limiter::Limiter;
pub use persistence::StateError;
pub use plans::{Plan, Plans};
pub use rate::{InvalidLimit, Kind, Quota, Rate, SpikeArrest, Unit, Window};
pub use registry::LimitRegistry;
pub use report::{Reset, ResetTarget};
pub use response_cost::ResponseCost;
pub use route_limits::{HeldPermits, LimitExceeded, LimitState, Limited, Meter, RouteLimits};
pub use settings::{Cost, KeyPart, LimitId, OnMissing, Settings, Status};

#[cfg(test)]
mod tests;
mod time_zone;
