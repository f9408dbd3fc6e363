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
//! | `amount`, `settings` | what a limit is told |
//! | `key` | whose requests are counted together |
//! | `cells` | counts by key, bounded and swept; nothing about what they mean |
//! | `spike`, `window`, `calendar`, `concurrency` | what a count means, and when it returns |
//! | `limiter` | one limit: its rule and its counts |
//! | `counts`, `kept`, `state` | what outlives a reload, and a restart |
//! | `set`, `answer` | a route's limits, and what its clients are told of them |
//!
//! The gateway makes one [`Limiter`] per limit and one [`Set`] per route when
//! it compiles a snapshot. A request gathers a [`Standing`]: it is asked before
//! authentication and after authorization, writes the answer's fields, and is
//! kept until the last byte. Counts shared by several gateways would be another
//! table under the same rules: nothing above `cells` knows where a cell lies.

mod amount;
mod answer;
mod calendar;
mod cells;
mod concurrency;
mod counts;
mod kept;
mod key;
mod limiter;
mod set;
mod settings;
mod spike;
mod state;
mod window;

pub use amount::{InvalidLimit, Kind, Quota, Rate, Spike, Unit, Window};
pub use calendar::{UnknownZone, Zone};
pub use counts::Moment;
pub use kept::Kept;
pub use key::Subject;
pub use limiter::Limiter;
pub use set::{Held, Limited, Meter, Refusal, Set, Standing};
pub use settings::{Cost, KeyPart, LimitId, OnMissing, Settings, Status};
pub use state::StateError;

#[cfg(test)]
mod tests;
