//! One limit at work: its rule, and the counts that it may share with its past.

use core::time::Duration;
use std::sync::Arc;

use http::Method;

use super::amount::{Kind, Window};
use super::calendar::Calendar;
use super::cells::Cell;
use super::concurrency::Slots;
use super::counts::Counts;
use super::kept::Kept;
use super::key::{Subject, Uncounted};
use super::settings::{Cost, Settings};
use super::spike::{Gcra, owed};
use super::window::{Allowance, Fresh};
use crate::observe::metrics::Metrics;

/// A limit of one snapshot. Its counts are those of the snapshot before, if there they went by the same
/// [`LimitId`](super::LimitId); everything else may have changed.
#[derive(Debug)]
pub struct Limiter {
    settings: Settings,
    rule: Rule,
    pub(super) counts: Arc<Counts>,
}

impl Limiter {
    /// A limit as `settings` says, going on with what `kept` has counted.
    pub fn new(settings: Settings, kept: &Kept, metrics: &Metrics) -> Self {
        let counts = kept.of(&settings, metrics);
        counts.cells.allow(settings.max_keys);
        Self { rule: Rule::new(&settings.kind), settings, counts }
    }

    /// What it was told.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The key under which it counts this request.
    pub(super) fn key(&self, subject: &Subject<'_>) -> Result<u64, Uncounted> {
        match &self.settings.methods {
            Some(methods) if !counts(methods, subject.method) => Err(Uncounted::Skip),
            _ => self.counts.seed.key(&self.settings.by, self.settings.on_missing, subject),
        }
    }

    /// The cell after a request with a body of `size` bytes, or how long to wait, in nanoseconds.
    ///
    /// The cell itself is not charged.
    pub(super) fn admit(&self, cell: &mut Cell, now: u64, size: u64) -> Result<Cell, u64> {
        let cost = self.settings.cost.of(size);
        match &self.rule {
            Rule::Rate(gcra) => match self.settings.cost {
                Cost::Fixed(_) => gcra.admit(*cell, now, cost),
                Cost::RequestSize(_) => gcra.admit_open(*cell, now, cost),
            },
            Rule::Rolling(gcra) => gcra.admit(*cell, now, cost),
            Rule::Window { allowance, ends } => {
                let fresh = ends.fresh(now);
                fresh.set_right(cell);
                allowance.admit(*cell, fresh, cost).map_err(|end| end.saturating_sub(now))
            }
            Rule::InFlight(slots) => slots.admit(*cell),
        }
    }

    /// The cell after a body that was admitted as if it were empty has grown from `before` to `size` bytes, or how long
    /// to wait, in nanoseconds: a quota ends with what was bought. A rate that was open is burdened, as by a body that
    /// has said its size.
    ///
    /// The cell itself is not charged.
    pub(super) fn grow(
        &self,
        cell: &mut Cell,
        now: u64,
        before: u64,
        size: u64,
    ) -> Result<Cell, u64> {
        let cost = self.settings.cost.of(size) - self.settings.cost.of(before);
        match &self.rule {
            Rule::Rate(gcra) => Ok(gcra.burden(*cell, now, cost)),
            Rule::Rolling(gcra) => gcra.admit(*cell, now, cost),
            Rule::Window { allowance, ends } => {
                let fresh = ends.fresh(now);
                fresh.set_right(cell);
                allowance.admit(*cell, fresh, cost).map_err(|end| end.saturating_sub(now))
            }
            Rule::InFlight(_) => Ok(*cell),
        }
    }

    /// Where the key of this cell stands.
    pub(super) fn left(&self, cell: Cell, now: u64) -> Left {
        let (remaining, reset) = match &self.rule {
            Rule::Rate(gcra) | Rule::Rolling(gcra) => match gcra.left(cell, now) {
                0 => (0, gcra.next(cell, now)),
                left => (left, owed(cell, now)),
            },
            Rule::Window { allowance, ends } => {
                let cell = ends.fresh(now).cell(cell);
                (allowance.left(cell), cell.until.saturating_sub(now))
            }
            Rule::InFlight(slots) => (slots.left(cell), 0),
        };
        Left::new(remaining, reset)
    }

    /// Whether it counts bytes, so that a body of unknown size is charged as it comes.
    pub(super) fn measures_bodies(&self) -> bool {
        matches!(self.settings.cost, Cost::RequestSize(_))
            && !matches!(self.rule, Rule::InFlight(_))
    }

    /// Whether what it admits stays counted until it ends.
    pub(super) fn holds(&self) -> bool {
        matches!(self.rule, Rule::InFlight(_))
    }
}

/// Whether a limit of `methods` counts a request: HEAD costs a service what GET does (RFC 9110 §9.3.2).
fn counts(methods: &[Method], method: &Method) -> bool {
    methods.contains(method) || (*method == Method::HEAD && methods.contains(&Method::GET))
}

/// What is left of a limit, and when more comes. The default is that of a limit which was not asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Left {
    /// Whether the limit was asked.
    pub(super) asked: bool,
    /// Seconds until the whole limit is there again; if nothing remains, until the next request may pass.
    pub(super) reset: u32,
    /// Requests, or units of cost.
    pub(super) remaining: u64,
}

impl Left {
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
enum Rule {
    Rate(Gcra),
    Rolling(Gcra),
    Window { allowance: Allowance, ends: Ends },
    InFlight(Slots),
}

impl Rule {
    fn new(kind: &Kind) -> Self {
        match kind {
            Kind::Rate(spike) => {
                let gcra = Gcra::new(spike.rate().interval(), spike.burst());
                Self::Rate(gcra.with_max_debt(MAX_RATE_DEBT))
            }
            Kind::Concurrency(slots) => Self::InFlight(Slots(slots.get().into())),
            Kind::Quota(quota) => {
                let rate = quota.rate();
                let allowance = Allowance::new(rate.count());
                match quota.window() {
                    Window::Rolling => Self::Rolling(Gcra::new(rate.interval(), quota.burst())),
                    Window::Flexi => {
                        Self::Window { allowance, ends: Ends::After(rate.unit().nanos()) }
                    }
                    Window::Calendar(zone) => {
                        let calendar = Calendar::new(zone.clone(), rate.unit());
                        Self::Window { allowance, ends: Ends::With(calendar) }
                    }
                }
            }
        }
    }
}

/// When a window ends that begins now.
#[derive(Debug)]
enum Ends {
    /// So many nanoseconds later.
    After(u64),
    /// With the calendar's.
    With(Calendar),
}

impl Ends {
    fn fresh(&self, now: u64) -> Fresh {
        match self {
            Self::After(nanos) => {
                let end = now.saturating_add(*nanos);
                Fresh { end, latest: end }
            }
            Self::With(calendar) => {
                let period = calendar.around(now / NANOS);
                // The next window is at most a little longer than this one.
                let latest = period.end + 2 * (period.end - period.start);
                Fresh {
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
