//! The algorithms of limits, and the rates and windows that they count by.

pub(super) mod algorithm;
pub(super) mod calendar;
pub(super) mod concurrency;
pub(super) mod fixed_window;
pub(super) mod gcra;
pub(super) mod rate;
pub(super) mod time_zone;
