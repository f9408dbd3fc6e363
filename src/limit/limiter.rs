//! One limit: its algorithm, and counters that may outlive a reload.

use core::time::Duration;
use std::sync::Arc;

use http::Method;

use super::calendar::Calendar;
use super::concurrency::ConcurrencyLimit;
use super::counter_table::Counter;
use super::counters::LimitCounters;
use super::fixed_window::{FixedWindow, NewWindow};
use super::gcra::{Gcra, debt};
use super::key::{LimitKeySource, NoKey};
use super::rate::{Kind, Window};
use super::registry::LimitRegistry;
use super::settings::{Cost, Settings};
use crate::observe::metrics::Metrics;

/// A limit of one snapshot. Its counters are shared with the previous snapshot if the
/// [`LimitId`](super::LimitId) is the same; all other settings may differ.
#[derive(Debug)]
pub struct Limiter {
    settings: Settings,
    rule: Algorithm,
    pub(super) counts: Arc<LimitCounters>,
}

impl Limiter {
    /// Creates a limit with these `settings`, continuing the counters in the registry.
    pub fn new(settings: Settings, registry: &LimitRegistry, metrics: &Metrics) -> Self {
        let counts = registry.get_or_create(&settings, metrics);
        counts.cells.allow(settings.max_keys);
        Self { rule: Algorithm::new(&settings.kind), settings, counts }
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the key under which this request is counted.
    pub(super) fn key(&self, subject: &LimitKeySource<'_>) -> Result<u64, NoKey> {
        match &self.settings.methods {
            Some(methods) if !counts(methods, subject.method) => Err(NoKey::Skip),
            _ => self.counts.seed.key(&self.settings.by, self.settings.on_missing, subject),
        }
    }

    /// Returns the counter after a request with a body of `size` bytes, or how long to wait, in nanoseconds.
    ///
    /// `cell` itself is not charged.
    pub(super) fn admit(&self, cell: &mut Counter, now: u64, size: u64) -> Result<Counter, u64> {
        let cost = self.settings.cost.of(size);
        match &self.rule {
            Algorithm::Rate(gcra) => match self.settings.cost {
                Cost::Fixed(_) => gcra.admit(*cell, now, cost),
                Cost::RequestSize(_) => gcra.admit_overdraft(*cell, now, cost),
            },
            Algorithm::Rolling(gcra) => gcra.admit(*cell, now, cost),
            Algorithm::Window { allowance, ends } => {
                let fresh = ends.fresh(now);
                fresh.correct_clock(cell);
                allowance.admit(*cell, fresh, cost).map_err(|end| end.saturating_sub(now))
            }
            Algorithm::InFlight(slots) => slots.admit(*cell),
        }
    }

    /// Returns the counter after a body that was admitted as empty has grown from `before` to `size` bytes, or how long
    /// to wait, in nanoseconds. A quota refuses what exceeds it; an open rate takes debt, as for a body with an
    /// announced size.
    ///
    /// `cell` itself is not charged.
    pub(super) fn charge_more(
        &self,
        cell: &mut Counter,
        now: u64,
        before: u64,
        size: u64,
    ) -> Result<Counter, u64> {
        let cost = self.settings.cost.of(size) - self.settings.cost.of(before);
        match &self.rule {
            Algorithm::Rate(gcra) => Ok(gcra.charge(*cell, now, cost)),
            Algorithm::Rolling(gcra) => gcra.admit(*cell, now, cost),
            Algorithm::Window { allowance, ends } => {
                let fresh = ends.fresh(now);
                fresh.correct_clock(cell);
                allowance.admit(*cell, fresh, cost).map_err(|end| end.saturating_sub(now))
            }
            Algorithm::InFlight(_) => Ok(*cell),
        }
    }

    /// Returns the balance of the key with this counter.
    pub(super) fn left(&self, cell: Counter, now: u64) -> Balance {
        let (remaining, reset) = match &self.rule {
            Algorithm::Rate(gcra) | Algorithm::Rolling(gcra) => match gcra.left(cell, now) {
                0 => (0, gcra.next(cell, now)),
                left => (left, debt(cell, now)),
            },
            Algorithm::Window { allowance, ends } => {
                let cell = ends.fresh(now).cell(cell);
                (allowance.left(cell), cell.until.saturating_sub(now))
            }
            Algorithm::InFlight(slots) => (slots.left(cell), 0),
        };
        Balance::new(remaining, reset)
    }

    /// Whether the limit counts bytes, so that a body of unknown size is charged while it arrives.
    pub(super) fn measures_bodies(&self) -> bool {
        matches!(self.settings.cost, Cost::RequestSize(_))
            && !matches!(self.rule, Algorithm::InFlight(_))
    }

    /// Whether an admitted request stays counted until it ends.
    pub(super) fn is_concurrency(&self) -> bool {
        matches!(self.rule, Algorithm::InFlight(_))
    }
}

/// Whether a limit of `methods` counts a request: HEAD costs an upstream as much as GET (RFC 9110 §9.3.2).
fn counts(methods: &[Method], method: &Method) -> bool {
    methods.contains(method) || (*method == Method::HEAD && methods.contains(&Method::GET))
}

/// The remaining allowance of a limit, and when it is renewed. The default is that of a limit that was not checked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Balance {
    /// Whether the limit was checked.
    pub(super) checked: bool,
    /// Seconds until the whole limit is available; if nothing remains, until the next request is admitted.
    pub(super) reset: u32,
    /// Remaining requests, or units of cost.
    pub(super) remaining: u64,
}

impl Balance {
    /// Creates a balance of `remaining` now, renewed in `nanos` nanoseconds.
    pub(super) fn new(remaining: u64, nanos: u64) -> Self {
        let reset = u32::try_from(seconds(nanos)).unwrap_or(u32::MAX);
        Self { checked: true, reset, remaining }
    }
}

/// Returns nanoseconds as whole seconds, rounded up, so that a client that waits that long is not refused for a fraction.
pub(super) fn seconds(nanos: u64) -> u64 {
    nanos.div_ceil(NANOS)
}

#[derive(Debug)]
enum Algorithm {
    Rate(Gcra),
    Rolling(Gcra),
    Window { allowance: FixedWindow, ends: ResetTime },
    InFlight(ConcurrencyLimit),
}

impl Algorithm {
    fn new(kind: &Kind) -> Self {
        match kind {
            Kind::Rate(spike) => {
                let gcra = Gcra::new(spike.rate().interval(), spike.burst());
                Self::Rate(gcra.with_max_debt(MAX_RATE_DEBT))
            }
            Kind::Concurrency(slots) => Self::InFlight(ConcurrencyLimit(slots.get().into())),
            Kind::Quota(quota) => {
                let rate = quota.rate();
                let allowance = FixedWindow::new(rate.count());
                match quota.window() {
                    Window::Rolling => Self::Rolling(Gcra::new(rate.interval(), quota.burst())),
                    Window::Flexi => {
                        Self::Window { allowance, ends: ResetTime::After(rate.unit().nanos()) }
                    }
                    Window::Calendar(zone) => {
                        let calendar = Calendar::new(zone.clone(), rate.unit());
                        Self::Window { allowance, ends: ResetTime::With(calendar) }
                    }
                }
            }
        }
    }
}

/// The end of a window that begins now.
#[derive(Debug)]
enum ResetTime {
    /// After this many nanoseconds.
    After(u64),
    /// At the end of the calendar window.
    With(Calendar),
}

impl ResetTime {
    fn fresh(&self, now: u64) -> NewWindow {
        match self {
            Self::After(nanos) => {
                let end = now.saturating_add(*nanos);
                NewWindow { end, latest: end }
            }
            Self::With(calendar) => {
                let period = calendar.around(now / NANOS);
                // The next window is at most a little longer than this one.
                let latest = period.end + 2 * (period.end - period.start);
                NewWindow {
                    end: period.end.saturating_mul(NANOS),
                    latest: latest.saturating_mul(NANOS),
                }
            }
        }
    }
}

const NANOS: u64 = 1_000_000_000;
/// The maximum debt of one request at a rate: a day, or the refill time of its burst if longer.
const MAX_RATE_DEBT: Duration = Duration::from_secs(86_400);
