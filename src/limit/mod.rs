//! How much of it: spike arrest, quotas, and requests in flight.
//!
//! A *spike arrest* asks what a service can survive, and smooths traffic. A
//! *quota* asks what a client has bought, and counts it. *Concurrency* asks
//! how much is going on right now. All three are [`Settings`] here, keyed by
//! what the gateway knows about a request, bounded in memory, and decided all
//! or nothing: a refusal by one limit charges none.

mod answer;
mod calendar;
mod cells;
mod concurrency;
mod counts;
mod key;
mod limiter;
mod set;
mod settings;
mod spike;
mod window;

pub use calendar::{UnknownZone, Zone};
pub use counts::{Counts, Kept, Moment};
pub use key::Subject;
pub use limiter::Limiter;
pub use set::{Limited, Refusal, Set, Standing};
pub use settings::{
    Cost, InvalidLimit, KeyPart, Kind, LimitId, OnMissing, Quota, Rate, Settings, Spike, Status,
    Unit, Window,
};

#[cfg(test)]
mod tests;
