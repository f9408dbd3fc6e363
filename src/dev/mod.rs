//! Floor 8: the whole system on one machine, for a newcomer and for the tests.

pub mod issuer;
mod listen;
