//! Usage to be billed: what a metered limit has charged since it was last collected.
//!
//! An entry is written under the lock of the counter that admits, so that exactly what was admitted is metered. Its
//! memory is bounded like that of the counters: usage of keys beyond `max_keys` is collected under no name.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Map, Value};

use crate::base::lock::IgnorePoison;

/// Usage of one key, under one plan, in one window.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// The limit.
    pub limit: Arc<str>,
    /// The parts of the key, such as the client; empty for keys beyond `max_keys`.
    pub key: Map<String, Value>,
    /// The caller's plan; `None` for the limit's own amount.
    pub plan: Option<Arc<str>>,
    /// The end of the window, in seconds since the Unix epoch; `None` for limits without windows.
    pub window_end: Option<u64>,
    /// Charged units; below zero if more was given back than charged since the last time.
    pub units: i64,
}

/// The usage of one limit that was not collected yet.
#[derive(Debug, Default)]
pub(in crate::limit) struct Ledger {
    entries: Mutex<Entries>,
    changed: AtomicBool,
}

/// The name of a key, and its units, by entry.
type Entries = HashMap<Entry, (Arc<Map<String, Value>>, i64)>;

/// An entry, with the name of its key, and its units.
pub(in crate::limit) type NamedUnits = (Entry, Arc<Map<String, Value>>, i64);

/// The identity of usage.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(in crate::limit) struct Entry {
    /// The hash of the key; `None` for keys beyond the bound.
    pub(in crate::limit) key: Option<u64>,
    /// The name of the plan.
    pub(in crate::limit) plan: Option<Arc<str>>,
    /// The end of the window in the limit's own time.
    pub(in crate::limit) window_end: Option<u64>,
}

impl Ledger {
    /// Adds `units` of `entry`, whose key is called `name`; at most `max_keys` entries have one.
    pub(in crate::limit) fn add(
        &self,
        entry: Entry,
        units: i64,
        max_keys: usize,
        name: impl FnOnce() -> Arc<Map<String, Value>>,
    ) {
        if units == 0 {
            return;
        }
        let mut entries = self.entries();
        if let Some((_, pending)) = entries.get_mut(&entry) {
            *pending += units;
        } else if entries.len() < max_keys {
            entries.insert(entry, (name(), units));
        } else {
            let (_, pending) = entries.entry(Entry { key: None, ..entry }).or_default();
            *pending += units;
        }
        // Under the lock: a look that does not see the entry is followed by another.
        self.changed.store(true, Relaxed);
    }

    /// Whether nothing waits to be collected.
    pub(in crate::limit) fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    /// Returns all entries, and forgets them if `collect`.
    pub(in crate::limit) fn read(&self, collect: bool) -> Vec<NamedUnits> {
        let mut entries = self.entries();
        let all = entries.iter();
        let all = all.map(|(entry, (name, units))| (entry.clone(), Arc::clone(name), *units));
        let all = all.collect();
        if collect {
            *entries = HashMap::new();
        }
        all
    }

    /// Whether an entry was added since the last call.
    pub(in crate::limit) fn take_changed(&self) -> bool {
        self.changed.swap(false, Relaxed)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().ignore_poison()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_that_is_added_during_a_look_is_found_by_the_next() {
        let ledger = Ledger::default();
        let entry = Entry { key: Some(1), plan: None, window_end: None };

        ledger.add(entry, 1, 10, || {
            ledger.take_changed();
            Arc::default()
        });

        assert!(ledger.take_changed());
    }
}
