//! State that survives a restart, in the directory `server.state_dir` (floor 1).
//!
//! A [`Directory`] reads and replaces small files; a [`Journal`] stores records that must
//! be on disk before a response is sent. Neither trusts files
//! that another account could have created: no link is followed, no file of
//! another account or open to others is read, and no existing file is written
//! to.

pub mod directory;
pub mod journal;
pub mod record;
mod write_queue;
mod writer;

pub use self::directory::OpenError;
pub use self::journal::{Journal, WriteFailed};
pub use directory::{Directory, Permissions, own_account};
pub use record::Record;
