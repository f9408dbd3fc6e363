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
//! | `counter`, `counter_table`, `overflow`, `prehashed` | counters by key, bounded and swept |
//! | `algorithm`, `gcra`, `fixed_window`, `calendar`, `concurrency` | the algorithms |
//! | `plans`, `response_cost`, `json_pointer` | amounts by a caller's plan, costs that the response tells |
//! | `limiter` | one limit: its algorithms and its counters |
//! | `limit_counters`, `registry`, `persistence` | state that outlives a reload, and a restart |
//! | `ledger` | usage to be billed |
//! | `consumers`, `report` | the largest consumers by name, and what operators see and reset |
//! | `shared` | counters that several gateways share, and leases of them |
//! | `route_limits`, `evaluation` | a route's limits, and the check of one request |
//! | `limit_state`, `content_charge`, `limit_exceeded` | the state of one request, its content of unknown size, and its refusal |
//! | `response_headers` | the header fields about limits |
//!
//! The gateway creates one [`Limiter`] per limit and one [`RouteLimits`] per route when
//! it compiles a snapshot. A request has a [`LimitState`]: it is checked before
//! authentication and after authorization, writes the response header fields, and is
//! held until the last byte. A decision is synchronous unless a limit that several gateways share has no lease for the
//! request: then it is a [`Decision::Ask`], which waits for the store and decides once more.

mod algorithm;
mod calendar;
mod charged_limit;
mod concurrency;
mod consumers;
mod content_charge;
mod counter;
mod counter_table;
mod decision;
mod evaluation;
mod fixed_window;
mod gcra;
mod json_pointer;
mod key;
mod ledger;
mod limit_counters;
mod limit_exceeded;
mod limit_state;
mod limiter;
mod overflow;
mod persistence;
mod plans;
mod prehashed;
mod rate;
mod registry;
mod report;
mod response_cost;
mod response_headers;
mod route_limits;
mod settings;
mod shared;

pub use self::time_zone::{UnknownZone, Zone};
pub use content_charge::ContentCharge;
pub use decision::{Decision, Question};
pub use key::LimitKeySource;
pub use ledger::Usage;
pub use limit_counters::Now;
pub use limit_exceeded::{LimitExceeded, Limited};
pub use limit_state::{HeldPermits, LimitState};
pub use limiter::{Limiter, overrun_bound};
pub use persistence::StateError;
pub use plans::{ClientPlans, Plan, Plans};
pub use rate::{InvalidLimit, Kind, Quota, Rate, SpikeArrest, Unit, Window};
pub use registry::LimitRegistry;
pub use report::{Reset, ResetTarget};
pub use response_cost::ResponseCost;
pub use route_limits::{RouteLimits, Stage};
pub use settings::{Cost, KeyPart, LimitId, OnMissing, OnStoreError, Settings, Status, Store};
pub use shared::LimitStore;

#[cfg(test)]
mod tests;
mod time_zone;
