//! Rate limits, quotas and concurrency limits (floor 2).
//!
//! A *spike arrest* protects an upstream, and smooths traffic. A
//! *quota* is an allowance of a client, and counts it. *Concurrency* bounds
//! the requests in flight. All three are [`Settings`] here, keyed by
//! properties of a request, bounded in memory, and decided all
//! or nothing: a refusal by one limit charges none.
//!
//! | Module | Content |
//! |---|---|
//! | `settings`, `key`, `plans` | settings of a limit, which requests are counted together, amounts by a caller's plan |
//! | `algorithms` | GCRA, fixed and calendar windows, concurrency, and the rates that they count by |
//! | `counters` | counters by key: bounded, swept, saved over reloads and restarts, with usage to be billed |
//! | `limiter`, `route_limits` | one limit with its algorithm and its counters, and all limits of a route |
//! | `request` | the check of one request, its content, its cost, its refusal and its response header fields |
//! | `shared` | counters that several gateways share, and leases of them |
//! | `report` | what operators see and reset |
//!
//! The gateway creates one [`Limiter`] per limit and one [`RouteLimits`] per route when
//! it compiles a snapshot. A request has a [`LimitState`]: it is checked before
//! authentication and after authorization, writes the response header fields, and is
//! held until the last byte. A decision is synchronous unless a limit that several gateways share has no lease for the
//! request: then it is a [`Decision::Ask`], which waits for the store and decides once more.

mod algorithms;
mod counters;
mod key;
mod limiter;
mod plans;
mod report;
mod request;
mod route_limits;
mod settings;
mod shared;

pub use self::algorithms::time_zone::{UnknownZone, Zone};
pub use algorithms::rate::{InvalidLimit, Kind, Quota, Rate, SpikeArrest, Unit, Window};
pub use counters::ledger::Usage;
pub use counters::limit_counters::Now;
pub use counters::persistence::StateError;
pub use counters::registry::LimitRegistry;
pub use key::LimitKeySource;
pub use limiter::{Limiter, least_overrun, overrun_bound};
pub use plans::{ClientPlans, Plan, Plans};
pub use report::{Reset, ResetTarget};
pub use request::content_charge::ContentCharge;
pub use request::decision::{Decision, Question};
pub use request::limit_exceeded::{LimitExceeded, Limited};
pub use request::limit_state::{HeldPermits, LimitState};
pub use request::response_cost::ResponseCost;
pub use route_limits::{RouteLimits, Stage};
pub use settings::{Cost, KeyPart, LimitId, OnMissing, OnStoreError, Settings, Status, Store};
pub use shared::LimitStore;

#[cfg(test)]
mod tests;
