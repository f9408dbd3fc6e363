//! The counter of one key, and how much of a limit it has used.

/// The counter of one key. The default counts nothing, and takes no memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::limit) struct Counter {
    /// The moment, in nanoseconds of the limit's own time, from which the counter equals the default.
    pub(in crate::limit) until: u64,
    /// A window: the used amount, and the windows that its debt lasts beyond this one. A rate: the interval, in
    /// nanoseconds, at which `until` was charged, so that another rate can compute how many requests that were; 0 is
    /// the rate's own. In flight: the number of requests.
    pub(in crate::limit) used: u64,
}

impl Counter {
    /// Returns the counter as of `now`: the default, if it has recovered.
    pub(in crate::limit) fn at(self, now: u64) -> Self {
        if self.until > now { self } else { Self::default() }
    }

    /// Returns the counter of a window with `used`, at most [`MAX_AMOUNT`], whose debt lasts `owed` windows longer.
    pub(in crate::limit) fn window(until: u64, used: u64, owed: u64) -> Self {
        Self { until, used: (owed << AMOUNT_BITS) | used.min(MAX_AMOUNT) }
    }

    /// Returns the used amount of a window's counter.
    pub(in crate::limit) const fn amount(self) -> u64 {
        self.used & MAX_AMOUNT
    }

    /// Returns the windows that the debt of a window's counter lasts longer than that window.
    pub(in crate::limit) const fn owed_windows(self) -> u64 {
        self.used >> AMOUNT_BITS
    }
}

/// The low bits of a window's counter are its amount: `999_999_999_999_999` fits fourfold.
const AMOUNT_BITS: u32 = 52;
/// The windows after which a debt is forgiven.
pub(in crate::limit) const MAX_OWED_WINDOWS: u64 = 400;
/// The largest amount of a window's counter.
pub(in crate::limit) const MAX_AMOUNT: u64 = (1 << AMOUNT_BITS) - 1;

/// The meaning of a limit's counters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) enum CounterKind {
    /// An amount that is used until the end of a window.
    Window,
    /// A theoretical arrival time (GCRA).
    Rate,
    /// Requests in flight.
    InFlight,
}

impl CounterKind {
    /// Returns the used units of a counter as of `now`, rounded up.
    pub(in crate::limit) fn used(self, counter: Counter, now: u64) -> u64 {
        match self {
            Self::Window => counter.amount(),
            Self::InFlight => counter.used,
            Self::Rate => counter.until.saturating_sub(now).div_ceil(counter.used.max(1)),
        }
    }

    /// Whether a counter may be dropped while it counts: requests in flight are released later.
    pub(in crate::limit) fn is_evictable(self) -> bool {
        self != Self::InFlight
    }
}
