//! The counters of one limit: the part that outlives a reload.

use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;

use crate::base::random::random;

use super::consumers::Consumers;
use super::counter::{Counter, CounterKind, MAX_OWED_WINDOWS};
use super::counter_table::CounterTable;
use super::ledger::{Ledger, Usage};
use super::persistence::SavedCounters;
use crate::base::clock::{Clock, Timestamp};
use crate::limit::algorithms::rate::{Kind, Window};
use crate::limit::key::HashSeed;
use crate::limit::settings::Settings;
use crate::observe::metrics::Metrics;

/// The time of a decision, by both clocks; read once for all of a request's limits.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Calendar time, which may be set back.
    pub now: Timestamp,
    /// Monotonic time.
    pub uptime: Duration,
}

impl Now {
    /// Reads both clocks.
    pub fn of(clock: &Clock) -> Self {
        let (now, uptime) = clock.now_and_instant();
        Self { now, uptime }
    }
}

/// The counters of one limit, by key.
#[derive(Debug)]
pub(in crate::limit) struct LimitCounters {
    pub(in crate::limit) seed: HashSeed,
    pub(in crate::limit) counters: CounterTable,
    /// The largest consumers, by name.
    pub(in crate::limit) consumers: Consumers,
    /// Usage to be billed.
    pub(in crate::limit) ledger: Ledger,
    /// The limit's name.
    name: Arc<str>,
    /// Whether the counters are in a store that several gateways share.
    is_shared: bool,
    time: Time,
    /// The position in the saved state; `None` for requests in flight, rates and shared limits, which are not saved.
    saved_as: Option<SavedPosition>,
}

impl LimitCounters {
    /// Creates empty counters for a limit with these `settings`.
    pub(in crate::limit) fn new(settings: &Settings, metrics: &Metrics) -> Self {
        let seed = random();
        let (kind, time, longest) = match &settings.kind {
            Kind::Rate(_) => (CounterKind::Rate, Time::Uptime, None),
            Kind::Concurrency(_) => (CounterKind::InFlight, Time::None, None),
            Kind::Quota(quota) => {
                let periods =
                    if settings.response_cost.is_some() { MAX_OWED_WINDOWS + 1 } else { 1 };
                let unit = Some(quota.rate().unit().nanos().saturating_mul(periods));
                match quota.window() {
                    Window::Calendar(_) => (CounterKind::Window, Time::Calendar, Some(u64::MAX)),
                    Window::Flexi => (CounterKind::Window, Time::Uptime, unit),
                    Window::Rolling => (CounterKind::Rate, Time::Uptime, unit),
                }
            }
        };
        // The store has the counters of a shared limit; a local one of the same name is another.
        let longest = longest.filter(|_| !settings.store.is_shared());
        let saved_as =
            longest.map(|longest| SavedPosition { id: settings.id().to_string(), longest });
        let keys = metrics.limit_keys(&settings.name);
        Self {
            seed: HashSeed(seed),
            counters: CounterTable::new(kind, settings.max_keys, keys),
            consumers: Consumers::default(),
            ledger: Ledger::default(),
            name: Arc::clone(&settings.name),
            is_shared: settings.store.is_shared(),
            time,
            saved_as,
        }
    }

    /// Removes every counter that has recovered, that is, equals a new one, and forgets the consumers without one.
    /// Counters of a limit that several gateways share have leases: `has_lease`.
    pub(in crate::limit) fn sweep(&self, has_lease: Option<impl Fn(u64) -> bool>, moment: Now) {
        let now = self.time(moment);
        self.counters.sweep(now);
        self.consumers.retain(|key| match &has_lease {
            Some(has_lease) => has_lease(key),
            None => self.counters.get(key, now).is_some(),
        });
    }

    /// Returns `moment` in the limit's own time, in nanoseconds.
    pub(in crate::limit) fn time(&self, moment: Now) -> u64 {
        match self.time {
            Time::Uptime => nanos(moment.uptime),
            Time::Calendar => moment.now.as_nanos(),
            Time::None => 0,
        }
    }

    /// Restores the counters of an earlier process, if `earlier`, read at `moment`, has them.
    pub(in crate::limit) fn restore(
        self,
        earlier: &mut HashMap<String, SavedCounters>,
        moment: Now,
    ) -> Self {
        let Some(saved_as) = &self.saved_as else { return self };
        let Some(saved) = earlier.remove(&saved_as.id) else { return self };
        // If the machine's clock was set back meanwhile, the wait is bounded by the longest period.
        let latest = self.time(moment).saturating_add(saved_as.longest);
        let began = self.began(moment);
        let own = |counter: Counter| Counter {
            until: counter.until.saturating_sub(began).min(latest),
            ..counter
        };
        self.counters.overflow().restore(own(saved.overflow), saved.members);
        let counters = saved.counters.into_iter().map(|(key, counter)| (key, own(counter)));
        self.counters.fill(self.time(moment), counters.collect());
        Self { seed: saved.seed, ..self }
    }

    /// Returns the counters to save at `moment`, with the limit's id.
    pub(in crate::limit) fn save(&self, moment: Now) -> Option<(String, SavedCounters)> {
        let saved_as = self.saved_as.as_ref()?;
        let (now, began) = (self.time(moment), self.began(moment));
        let since_epoch =
            |counter: Counter| Counter { until: counter.until.saturating_add(began), ..counter };
        let (overflow, members) = self.counters.overflow().save(now);
        let counters =
            self.counters.all(now).into_iter().map(|(key, counter)| (key, since_epoch(counter)));
        let saved = SavedCounters {
            seed: self.seed,
            overflow: since_epoch(overflow),
            members,
            counters: counters.collect(),
        };
        Some((saved_as.id.clone(), saved))
    }

    /// Whether there are no counters and no unbilled usage.
    pub(in crate::limit) fn is_empty(&self, moment: Now) -> bool {
        self.counters.is_empty(self.time(moment)) && self.ledger.is_empty()
    }

    /// Returns the usage to be billed, and forgets it if `collect`.
    pub(in crate::limit) fn usage(&self, moment: Now, collect: bool) -> Vec<Usage> {
        // The window ends of a shared limit are in calendar time already.
        let began = if self.is_shared { 0 } else { self.began(moment) };
        let seconds = |end: u64| end.saturating_add(began).saturating_add(NANOS / 2) / NANOS;
        let all = self.ledger.read(collect).into_iter();
        let usage = all.map(|(entry, key, units)| Usage {
            limit: Arc::clone(&self.name),
            key: Arc::unwrap_or_clone(key),
            plan: entry.plan,
            window_end: entry.window_end.map(seconds),
            units,
        });
        usage.collect()
    }

    /// Whether counters that are saved may have changed since the last call.
    pub(in crate::limit) fn take_changed(&self) -> bool {
        self.saved_as.is_some() && self.counters.take_changed()
    }

    /// Returns the zero of this limit's time, in nanoseconds since the Unix epoch.
    fn began(&self, moment: Now) -> u64 {
        moment.now.as_nanos().saturating_sub(self.time(moment))
    }
}

#[derive(Debug)]
struct SavedPosition {
    /// The limit's id as text.
    id: String,
    /// The longest recovery of any counter, in nanoseconds; calendar windows end by themselves.
    longest: u64,
}

/// The clock that a limit uses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Time {
    /// Monotonic time: rates, and windows of a fixed length.
    Uptime,
    /// Calendar time.
    Calendar,
    /// None: requests in flight.
    None,
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

const NANOS: u64 = 1_000_000_000;
