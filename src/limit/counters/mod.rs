//! Counters by key: bounded, swept, saved, and billed.

pub(super) mod consumers;
pub(super) mod counter;
pub(super) mod counter_table;
pub(super) mod ledger;
pub(super) mod limit_counters;
pub(super) mod overflow;
pub(super) mod persistence;
pub(super) mod prehashed;
pub(super) mod registry;
