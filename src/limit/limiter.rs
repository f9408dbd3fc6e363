//! One limit at work: its rule, and the counts that it may share with its past.

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

/// A limit of one snapshot. Its counts are those of the snapshot before, if there they went by the same
/// [`LimitId`](super::LimitId); everything else may have changed.
#[derive(Debug)]
pub struct Limiter {
    settings: Settings,
    rule: Algorithm,
    pub(super) counts: Arc<LimitCounters>,
}

impl Limiter {
    /// A limit as `settings` says, going on with what `registry` has counted.
    pub fn new(settings: Settings, kept: &LimitRegistry, metrics: &Metrics) -> Self {
        let counts = kept.get_or_create(&settings, metrics);
        counts.cells.allow(settings.max_keys);
        Self { rule: Algorithm::new(&settings.kind), settings, counts }
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The key under which it counts this request.
    pub(super) fn key(&self, subject: &LimitKeySource<'_>) -> Result<u64, NoKey> {
        match &self.settings.methods {
            Some(methods) if !counts(methods, subject.method) => Err(NoKey::Skip),
            _ => self.counts.seed.key(&self.settings.by, self.settings.on_missing, subject),
        }
    }

    /// The cell after a request with a body of `size` bytes, or how long to wait, in nanoseconds.
    ///
    /// The cell itself is not charged.
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

    /// The cell after a body that was admitted as if it were empty has grown from `before` to `size` bytes, or how long
    /// to wait, in nanoseconds: a quota ends with what was bought. A rate that was open is burdened, as by a body that
    /// has said its size.
    ///
    /// The cell itself is not charged.
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

    /// Where the key of this cell stands.
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

    /// Whether it counts bytes, so that a body of unknown size is charged as it comes.
    pub(super) fn measures_bodies(&self) -> bool {
        matches!(self.settings.cost, Cost::RequestSize(_))
            && !matches!(self.rule, Algorithm::InFlight(_))
    }

    /// Whether what it admits stays counted until it ends.
    pub(super) fn is_concurrency(&self) -> bool {
        matches!(self.rule, Algorithm::InFlight(_))
    }
}

/// Whether a limit of `methods` counts a request: HEAD costs a service what GET does (RFC 9110 §9.3.2).
fn counts(methods: &[Method], method: &Method) -> bool {
    methods.contains(method) || (*method == Method::HEAD && methods.contains(&Method::GET))
}

/// What is left of a limit, and when more comes. The default is that of a limit which was not asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Balance {
    /// Whether the limit was asked.
    pub(super) asked: bool,
    /// Seconds until the whole limit is there again; if nothing remains, until the next request may pass.
    pub(super) reset: u32,
    /// Requests, or units of cost.
    pub(super) remaining: u64,
}

impl Balance {
    /// `remaining` now, and `nanos` nanoseconds until more comes.
    pub(super) fn new(remaining: u64, nanos: u64) -> Self {
        let reset = u32::try_from(seconds(nanos)).unwrap_or(u32::MAX);
        Self { asked: true, reset, remaining }
    }
}

/// Nanoseconds as whole seconds, rounded up: whoever waits that long is not refused again for a fraction.
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

/// When a window ends that begins now.
#[derive(Debug)]
enum ResetTime {
    /// So many nanoseconds later.
    After(u64),
    /// With the calendar's.
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
/// For how long one request may block a rate, whatever it weighs: a day, or as long as its burst takes to come back.
const MAX_RATE_DEBT: Duration = Duration::from_secs(86_400);
