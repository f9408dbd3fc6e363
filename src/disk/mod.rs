//! Floor 1: what survives a restart, in the one directory `server.state_dir`.
//!
//! A [`Directory`] reads and replaces small files; a [`Journal`] keeps what must
//! be on disk before an answer goes out. Both trust nothing in the directory
//! that another account could have put there: no link is followed, no file of
//! another account or open to others is read, nothing is written into a file
//! that was there before.

pub mod directory;
pub mod journal;
pub mod record;
mod writer;

pub use directory::{Directory, Permissions, own_account};
pub use journal::{Journal, OpenError, WriteFailed};
pub use record::Record;
