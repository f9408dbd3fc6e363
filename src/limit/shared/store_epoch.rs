//! The beginning of the store's time, which `decide.lua` counts from as well.

/// Returns a moment of the store's time in nanoseconds since the Unix epoch.
pub(in crate::limit) const fn to_epoch_nanos(micros: u64) -> u64 {
    micros.saturating_add(BASE_MICROS).saturating_mul(1_000)
}

/// Returns nanoseconds since the Unix epoch as the store's time.
pub(in crate::limit) const fn from_epoch_nanos(nanos: u64) -> u64 {
    (nanos / 1_000).saturating_sub(BASE_MICROS)
}

/// 14 November 2023: late enough for a double to hold the time and a fraction of a microsecond.
const BASE_MICROS: u64 = 1_700_000_000_000_000;
