//! What a limit has counted so far: the part that outlives a reload.

use core::time::Duration;
use std::collections::HashMap;

use aws_lc_rs::rand;

use super::counter_table::{Counter, CounterTable};
use super::key::HashSeed;
use super::persistence::SavedCounters;
use super::rate::{Kind, Window};
use super::settings::Settings;
use crate::base::clock::{Clock, Timestamp};
use crate::observe::metrics::Metrics;

/// The moment of a decision, by both clocks; read once for all of a request's limits.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// The calendar's time.
    pub now: Timestamp,
    /// The time that never steps back.
    pub uptime: Duration,
}

impl Now {
    /// This moment.
    pub fn of(clock: &Clock) -> Self {
        let (now, uptime) = clock.now_and_instant();
        Self { now, uptime }
    }
}

/// One limit's counts by key.
#[derive(Debug)]
pub(super) struct LimitCounters {
    pub(super) seed: HashSeed,
    pub(super) cells: CounterTable,
    time: Time,
    /// Under what they are saved; requests in flight and what comes back in seconds are not.
    saved_as: Option<SavedPosition>,
}

impl LimitCounters {
    /// No counts yet, for a limit as `settings` has it.
    pub(super) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        let mut seed = [0; 16];
        rand::fill(&mut seed).expect("the system has random numbers");
        let (time, saved_as) = match &settings.kind {
            Kind::Rate(_) => (Time::Uptime, None),
            Kind::Concurrency(_) => (Time::None, None),
            Kind::Quota(quota) => {
                let (time, longest) = match quota.window() {
                    Window::Calendar(_) => (Time::Calendar, u64::MAX),
                    Window::Flexi | Window::Rolling => (Time::Uptime, quota.rate().unit().nanos()),
                };
                (time, Some(SavedPosition { id: settings.id().to_string(), longest }))
            }
        };
        let keys = metrics.limit_keys(&settings.name);
        Self {
            seed: HashSeed(seed),
            cells: CounterTable::new(settings.max_keys, keys),
            time,
            saved_as,
        }
    }

    /// Forgets every count that has recovered.
    pub(super) fn sweep(&self, moment: Now) {
        self.cells.sweep(self.time(moment));
    }

    /// `moment` as this limit measures it, in nanoseconds.
    pub(super) fn time(&self, moment: Now) -> u64 {
        match self.time {
            Time::Uptime => nanos(moment.uptime),
            Time::Calendar => moment.now.as_nanos(),
            Time::None => 0,
        }
    }

    /// The same limit with what an earlier process has counted, if it is among `earlier`, which was read at `moment`.
    pub(super) fn restore(self, earlier: &mut HashMap<String, SavedCounters>, moment: Now) -> Self {
        let Some(saved_as) = &self.saved_as else { return self };
        let Some(saved) = earlier.remove(&saved_as.id) else { return self };
        // If the machine's clock was set back meanwhile, nobody waits longer than it ever takes.
        let latest = self.time(moment).saturating_add(saved_as.longest);
        let began = self.began(moment);
        let own =
            |cell: Counter| Counter { until: cell.until.saturating_sub(began).min(latest), ..cell };
        self.cells
            .fill(own(saved.overflow), saved.cells.into_iter().map(|(key, cell)| (key, own(cell))));
        Self { seed: saved.seed, ..self }
    }

    /// What is to be saved of it at `moment`, and under what id.
    pub(super) fn save(&self, moment: Now) -> Option<(String, SavedCounters)> {
        let saved_as = self.saved_as.as_ref()?;
        let (now, began) = (self.time(moment), self.began(moment));
        let since_epoch =
            |cell: Counter| Counter { until: cell.until.saturating_add(began), ..cell };
        let (overflow, cells) = self.cells.all(now);
        let cells = cells.into_iter().map(|(key, cell)| (key, since_epoch(cell)));
        let saved = SavedCounters {
            seed: self.seed,
            overflow: since_epoch(overflow),
            cells: cells.collect(),
        };
        Some((saved_as.id.clone(), saved))
    }

    /// When this limit's time was zero, in nanoseconds since the Unix epoch.
    fn began(&self, moment: Now) -> u64 {
        moment.now.as_nanos().saturating_sub(self.time(moment))
    }
}

#[derive(Debug)]
struct SavedPosition {
    /// The limit's id in words.
    id: String,
    /// How long any of its counts can take to recover, in nanoseconds; the calendar sees to its own.
    longest: u64,
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

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
