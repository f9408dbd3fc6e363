//! The counters of all limits, found again after a reload and, with a directory, after a restart.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use core::time::Duration;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::ledger::Usage;
use super::limit_counters::{LimitCounters, Now};
use super::persistence::{self, SavedCounters, StateError};
use crate::base::lock::IgnorePoison;
use crate::base::weak_map::WeakMap;
use crate::limit::settings::{LimitId, Settings};
use crate::limit::shared::{LimitStore, SharedLimit};
use crate::observe::metrics::Metrics;

/// Counters by limit: state that outlives a reload and, with a directory, a restart.
///
/// Counters of a limit that no snapshot uses any more are kept until they have recovered: a limit that is away for one
/// reload, or renamed and renamed back, finds them. The server sweeps every ten seconds or so and saves twice a second,
/// and once more after the last request; both on a thread that may block.
#[derive(Debug, Default)]
pub struct LimitRegistry {
    counts: Mutex<HashMap<LimitId, RegisteredLimit>>,
    earlier: Mutex<Option<RetainedLimit>>,
    /// Whether the file of an earlier process could neither be read nor put aside: it is not overwritten.
    is_blocked: AtomicBool,
    /// Whether the last save failed, or a limit's counters are new: the next one writes in any case.
    is_due: AtomicBool,
    /// The leases of shared limits, by limit.
    shared: WeakMap<LimitId, SharedLimit>,
    store: Mutex<Option<Arc<LimitStore>>>,
}

/// The counters of one limit.
#[derive(Debug)]
struct RegisteredLimit {
    counts: Arc<LimitCounters>,
    /// The number of the sweep that found them unused, until they are used again.
    unused_since: Option<u64>,
}

impl LimitRegistry {
    /// Loads the quotas that an earlier process has saved in `dir`. To be called before a limit is created.
    ///
    /// # Errors
    ///
    /// Returns [`StateError`] if the file cannot be read, is damaged or newer; then all counters start at zero. The file
    /// is put aside; if it cannot be, nothing is saved.
    pub fn load(&self, dir: &Path, moment: Now) -> Result<(), StateError> {
        let limits = persistence::load(dir).inspect_err(|error| {
            self.is_blocked.store(matches!(error, StateError::Aside(_)), Relaxed);
        })?;
        *self.earlier() = Some(RetainedLimit { limits, at: moment });
        Ok(())
    }

    /// Saves all quotas in `dir`, atomically, if one may have changed since the last time; returns whether it did.
    ///
    /// # Errors
    ///
    /// Returns [`StateError`] if the file cannot be written; then the previous file remains.
    pub fn save(&self, dir: &Path, moment: Now) -> Result<bool, StateError> {
        if self.is_blocked.load(Relaxed) {
            return Err(StateError::Blocked);
        }
        let all = self.all();
        // `count` visits every limit, so that each resets its flag before the counters are read.
        let changed = all.iter().filter(|counts| counts.take_changed()).count();
        if !self.is_due.swap(false, Relaxed) && changed == 0 {
            return Ok(false);
        }
        // Limits that the current configuration lacks may return with the next one.
        let mut limits = match &mut *self.earlier() {
            Some(retained) => {
                let now = moment.now.as_nanos();
                retained.limits.retain(|_, saved| saved.is_live(now));
                retained.limits.clone()
            }
            None => HashMap::new(),
        };
        limits.extend(all.iter().filter_map(|counts| counts.save(moment)));
        persistence::save(dir, &limits).inspect_err(|_| self.is_due.store(true, Relaxed))?;
        Ok(true)
    }

    /// Removes every recovered counter, and the counters of unused limits that have all recovered; holds no lock for
    /// longer than microseconds.
    pub fn sweep(&self, moment: Now) {
        let all: Vec<_> = self.counts().iter().map(with_id).collect();
        for (id, counts) in all {
            let shared = self.shared.get(&id);
            let has_lease = shared.map(|shared| move |key| shared.existing(key, |_| ()).is_some());
            counts.sweep(has_lease, moment);
        }
        let mut limits = self.counts();
        let sweeps = 1 + limits.values().filter_map(|limit| limit.unused_since).max().unwrap_or(0);
        limits.retain(|_, limit| {
            let is_unused = Arc::strong_count(&limit.counts) == 1;
            limit.unused_since = is_unused.then(|| limit.unused_since.unwrap_or(sweeps));
            !is_unused || !limit.counts.is_empty(moment)
        });
        let mut unused: Vec<_> = limits.values().filter_map(|limit| limit.unused_since).collect();
        if unused.len() > MAX_UNUSED_LIMITS {
            unused.sort_unstable();
            let oldest_kept = unused[unused.len() - MAX_UNUSED_LIMITS];
            limits.retain(|_, limit| limit.unused_since.is_none_or(|since| since >= oldest_kept));
        }
    }

    /// Returns the counters of this limit: those of an earlier snapshot, of the previous process, or new ones.
    pub(in crate::limit) fn get_or_create(
        &self,
        settings: &Settings,
        metrics: &Metrics,
    ) -> Arc<LimitCounters> {
        let mut limits = self.counts();
        let limit = limits.entry(settings.id()).or_insert_with(|| {
            self.is_due.store(true, Relaxed);
            let counts = LimitCounters::new(settings, metrics);
            let counts = match &mut *self.earlier() {
                Some(retained) => counts.restore(&mut retained.limits, retained.at),
                None => counts,
            };
            RegisteredLimit { counts: Arc::new(counts), unused_since: None }
        });
        limit.unused_since = None;
        Arc::clone(&limit.counts)
    }

    /// Selects the store of limits that several gateways share. Leases of another store end with their last requests.
    ///
    /// To be called before a limit is created.
    pub fn share(&self, store: Option<Arc<LimitStore>>) {
        let mut selected = self.store.lock().ignore_poison();
        let same = match (&*selected, &store) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        if !same {
            self.shared.clear();
            *selected = store;
        }
    }

    /// Returns all unused leases to the store, for at most `timeout`.
    pub async fn drain(&self, timeout: Duration) {
        let store = self.store.lock().ignore_poison().clone();
        if let Some(store) = store {
            store.drain(timeout).await;
        }
    }

    /// Returns the leases of a shared limit: the previous snapshot's, or new ones. `None` without a store.
    pub(in crate::limit) fn shared(&self, settings: &Settings) -> Option<Arc<SharedLimit>> {
        let store = self.store.lock().ignore_poison().clone()?;
        let shared = self.shared.get_or_insert_arc(settings.id(), || store.limit(settings));
        store.serve(&shared);
        Some(shared)
    }

    /// Returns the store of limits that several gateways share.
    pub(in crate::limit) fn store(&self) -> Option<Arc<LimitStore>> {
        self.store.lock().ignore_poison().clone()
    }

    /// Returns all usage to be billed, and forgets it.
    pub fn collect_usage(&self, moment: Now) -> Vec<Usage> {
        self.all().iter().flat_map(|counts| counts.usage(moment, true)).collect()
    }

    /// Returns all usage to be billed.
    pub fn pending_usage(&self, moment: Now) -> Vec<Usage> {
        self.all().iter().flat_map(|counts| counts.usage(moment, false)).collect()
    }

    /// Whether there may be more usage than at the last call.
    pub fn take_usage_changed(&self) -> bool {
        // `count` visits every limit, so that each resets its flag.
        self.all().iter().filter(|counts| counts.ledger.take_changed()).count() > 0
    }

    fn all(&self) -> Vec<Arc<LimitCounters>> {
        self.counts().values().map(|limit| Arc::clone(&limit.counts)).collect()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<LimitId, RegisteredLimit>> {
        self.counts.lock().ignore_poison()
    }

    fn earlier(&self) -> MutexGuard<'_, Option<RetainedLimit>> {
        self.earlier.lock().ignore_poison()
    }
}

fn with_id((id, limit): (&LimitId, &RegisteredLimit)) -> (LimitId, Arc<LimitCounters>) {
    (id.clone(), Arc::clone(&limit.counts))
}

/// The counters of an earlier process that no limit has taken over yet.
#[derive(Debug)]
struct RetainedLimit {
    limits: HashMap<String, SavedCounters>,
    /// When they were read.
    at: Now,
}

/// The limits without a snapshot whose counters are kept; of more, those that were used last.
const MAX_UNUSED_LIMITS: usize = 64;
