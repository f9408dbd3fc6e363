//! The algorithm of a limit, as its kind and amount select it.

use core::time::Duration;

use super::calendar::Calendar;
use super::concurrency::ConcurrencyLimit;
use super::fixed_window::{FixedWindow, WindowEnds};
use super::gcra::Gcra;
use super::rate::{Kind, Window};
use crate::limit::counters::counter::{Counter, MAX_OWED_WINDOWS};
use crate::limit::shared::Shape;

/// The algorithm of one amount.
#[derive(Debug)]
pub(in crate::limit) enum Algorithm {
    /// Spike arrest.
    Rate(Gcra),
    /// A quota that is renewed evenly.
    Rolling(Gcra),
    /// A quota in windows.
    Window(FixedWindow),
    /// Requests in flight.
    InFlight(ConcurrencyLimit),
}

impl Algorithm {
    /// Creates the algorithm of this kind and amount.
    pub(in crate::limit) fn new(kind: &Kind) -> Self {
        match kind {
            Kind::Rate(spike) => {
                let gcra = Gcra::new(spike.rate().interval(), spike.burst());
                Self::Rate(gcra.with_max_debt(MAX_RATE_DEBT))
            }
            Kind::Concurrency(slots) => Self::InFlight(ConcurrencyLimit(slots.get().into())),
            Kind::Quota(quota) => {
                let rate = quota.rate();
                let window = |ends| Self::Window(FixedWindow::new(rate.count(), ends));
                match quota.window() {
                    Window::Rolling => {
                        let windows = rate.unit().nanos().saturating_mul(MAX_OWED_WINDOWS + 1);
                        let gcra = Gcra::new(rate.interval(), quota.burst());
                        Self::Rolling(gcra.with_max_debt(Duration::from_nanos(windows)))
                    }
                    Window::Flexi => window(WindowEnds::After(rate.unit().nanos())),
                    Window::Calendar(zone) => {
                        window(WindowEnds::With(Calendar::new(zone.clone(), rate.unit())))
                    }
                }
            }
        }
    }

    /// Returns the counter after `cost`, or how long to wait, in nanoseconds. With `overdraft` a rate admits any cost if
    /// one request may pass, and takes the rest as debt.
    pub(in crate::limit) fn admit(
        &self,
        counter: &mut Counter,
        now: u64,
        cost: u64,
        overdraft: bool,
    ) -> Result<Counter, u64> {
        match self {
            Self::Rate(gcra) | Self::Rolling(gcra) => {
                // Kept also if refused: the debt is paid at the rate by which it is reported.
                *counter = gcra.converted(*counter, now);
                let overdraft = overdraft && matches!(self, Self::Rate(_));
                if overdraft {
                    gcra.admit_overdraft(*counter, now, cost)
                } else {
                    gcra.admit(*counter, now, cost)
                }
            }
            Self::Window(window) => window.admit(counter, now, cost),
            Self::InFlight(slots) => slots.admit(*counter),
        }
    }

    /// Returns the counter after `cost` that is charged whether or not it fits: what exceeds the amount is debt.
    pub(in crate::limit) fn charge(&self, counter: Counter, now: u64, cost: u64) -> Counter {
        match self {
            Self::Rate(gcra) | Self::Rolling(gcra) => gcra.charge(counter, now, cost),
            Self::Window(window) => window.charge(counter, now, cost),
            Self::InFlight(_) => counter,
        }
    }

    /// Returns the counter after giving back `cost`.
    pub(in crate::limit) fn refund(&self, counter: Counter, now: u64, cost: u64) -> Counter {
        match self {
            Self::Rate(gcra) | Self::Rolling(gcra) => gcra.refund(counter, now, cost),
            Self::Window(window) => window.refund(counter, now, cost),
            Self::InFlight(_) => counter,
        }
    }

    /// Returns the amount in the form of a shared store, whose time is `now`. With `debts`, a window's excess is owed by
    /// the next one.
    pub(in crate::limit) fn shape(&self, now: u64, overdraft: bool, debts: bool) -> Shape {
        match self {
            Self::Rate(gcra) => gcra.shape(overdraft, false),
            Self::Rolling(gcra) => gcra.shape(false, true),
            Self::Window(window) => window.shape(now, debts),
            Self::InFlight(slots) => Shape::Slots { limit: slots.0 },
        }
    }

    /// Returns what is left of a counter, and in how many nanoseconds it is renewed.
    pub(in crate::limit) fn left(&self, counter: Counter, now: u64) -> (u64, u64) {
        match self {
            Self::Rate(gcra) | Self::Rolling(gcra) => match gcra.left(counter, now) {
                0 => (0, gcra.next(counter, now)),
                left => (left, gcra.debt(counter, now)),
            },
            Self::Window(window) => window.left(counter, now),
            Self::InFlight(slots) => (slots.left(counter), 0),
        }
    }

    /// Returns the end of the window that a counter counts in; `None` without windows.
    pub(in crate::limit) fn window_end(&self, counter: Counter, now: u64) -> Option<u64> {
        match self {
            Self::Window(window) => Some(window.end(counter, now)),
            Self::Rate(_) | Self::Rolling(_) | Self::InFlight(_) => None,
        }
    }

    /// Whether an admitted request stays counted until it ends.
    pub(in crate::limit) const fn is_concurrency(&self) -> bool {
        matches!(self, Self::InFlight(_))
    }
}

/// The maximum debt of one request at a rate: a day, or the refill time of its burst if longer.
const MAX_RATE_DEBT: Duration = Duration::from_secs(86_400);
