//! Revoked tokens and ended sessions, stored until none of their tokens could be valid.

pub(crate) mod event;
pub mod fields;
pub(crate) mod journal;
pub mod list;
pub(crate) mod publication;
pub(crate) mod token_ages;
