//! Limits that several gateways share through one store.
//!
//! The store counts; a gateway borrows a *lease* of a counter, and decides by it alone and synchronously until it is
//! used up. A lease is charged before it is used, so that several gateways never admit more than the limit while the
//! store responds. A request that no lease covers asks the store: one round trip for all of its limits, decided all or
//! nothing together with its local limits.
//!
//! | File | Content |
//! |---|---|
//! | `lease`, `lease_size`, `lease_table` | one gateway's part of one counter, its size, and all of a limit |
//! | `shared_limit`, `request`, `pending_request` | one limit's decisions, one request at it, and one that waits for the store |
//! | `protocol`, `decide.lua` | messages to the store, and the script that decides them |
//! | `backend`, `redis_backend` | the store |
//! | `store_state`, `store_time`, `store_epoch`, `store_task` | its availability, its clock, and the task that talks to it |

mod backend;
mod lease;
mod lease_size;
mod lease_table;
mod pending_request;
mod protocol;
mod redis_backend;
pub(super) mod request;
mod shared_limit;
mod store_epoch;
mod store_state;
mod store_task;
mod store_time;

#[cfg(test)]
mod tests;

pub(super) use self::lease::{ChargedLease, Lease, LeaseSlot};
pub(super) use self::lease_size::{least_overrun, overrun_bound};
pub(super) use self::pending_request::{StoreAnswer, Ticket, ask};
pub(super) use self::protocol::Shape;
pub(super) use self::shared_limit::{FirstAnswer, SharedLimit, TicketRequest};
pub(super) use self::store_epoch::{from_epoch_nanos, to_epoch_nanos};
pub use self::store_task::LimitStore;
