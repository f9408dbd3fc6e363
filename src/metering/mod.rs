//! Metering: exports the usage of limits for billing, as log lines, to a file, and as CloudEvents over HTTP (floor 3).
//!
//! Limits collect what they charge ([`Usage`](crate::limit::Usage)). Twice a second all of it is on disk; every interval
//! it becomes a batch of events with ids. A batch is on disk before it is exported, and is exported to each destination
//! until that one has it, after a restart under the same ids: a receiver that ignores an id that it knows bills nothing
//! twice. No destination waits for another. A killed process loses what was charged since the last write, at most a second.
//!
//! | File | Content |
//! |---|---|
//! | `settings` | destinations and interval |
//! | `event` | events and batches |
//! | `outbox` | what is not exported yet, on disk |
//! | `batch_files` | the files of batches |
//! | `export` | the destinations |
//! | `delivery` | the exports to one destination |
//! | `task` | the task that does all this |

mod batch_files;
mod delivery;
mod event;
mod export;
mod outbox;
mod settings;
mod task;

pub use self::settings::{HttpDestination, Settings};
pub use self::task::{Metering, MeteringError};
