//! Revoked tokens and ended sessions, remembered until none of their tokens could be valid.

pub mod fields;
pub(crate) mod journal;
pub mod list;
pub(crate) mod token_ages;
