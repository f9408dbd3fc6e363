//! What a limit has counted so far: the part that outlives a reload.

use core::time::Duration;

use aws_lc_rs::rand;

use super::cells::Cells;
use super::key::Seed;
use super::settings::{Kind, LimitId, Settings, Window};
use crate::base::clock::{Clock, Timestamp};
use crate::base::shelf::Shelf;
use crate::observe::metrics::Metrics;

/// Every limit's counts, kept as long as a snapshot uses them.
pub type Kept = Shelf<LimitId, Counts>;

/// The moment of a decision, by both clocks; read once for all of a request's limits.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The calendar's time.
    pub now: Timestamp,
    /// The time that never steps back.
    pub uptime: Duration,
}

impl Moment {
    /// This moment.
    pub fn of(clock: &Clock) -> Self {
        Self { now: clock.now(), uptime: clock.uptime() }
    }
}

/// One limit's counts by key.
#[derive(Debug)]
pub struct Counts {
    pub(super) seed: Seed,
    pub(super) cells: Cells,
    time: Time,
}

impl Counts {
    /// No counts yet, for a limit as `settings` has it.
    pub(super) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        let mut seed = [0; 16];
        rand::fill(&mut seed).expect("the system has random numbers");
        let time = match &settings.kind {
            Kind::Quota(quota) if matches!(quota.window(), Window::Calendar(_)) => Time::Calendar,
            Kind::Rate(_) | Kind::Quota(_) => Time::Uptime,
            Kind::Concurrency(_) => Time::None,
        };
        let keys = metrics.limit_keys(&settings.name);
        Self { seed: Seed(seed), cells: Cells::new(settings.max_keys, keys), time }
    }

    /// How many keys have a count of their own.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether nothing is counted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets every count that has recovered. To be called every ten seconds or so, from any thread; holds no lock
    /// for longer than some microseconds.
    pub fn sweep(&self, moment: Moment) {
        self.cells.sweep(self.time(moment));
    }

    /// `moment` as this limit measures it, in nanoseconds.
    pub(super) fn time(&self, moment: Moment) -> u64 {
        match self.time {
            Time::Uptime => u64::try_from(moment.uptime.as_nanos()).unwrap_or(u64::MAX),
            Time::Calendar => moment.now.as_nanos(),
            Time::None => 0,
        }
    }
}

/// What time a limit goes by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Time {
    /// The one that never steps: rates and windows that last as long as they last.
    Uptime,
    /// The one on the wall.
    Calendar,
    /// None: requests in flight end when they end.
    None,
}
