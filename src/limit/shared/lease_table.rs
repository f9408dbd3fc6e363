//! The leases of one limit by key: bounded, swept, and locked one shard at a time.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::lease::Lease;
use crate::base::lock::IgnorePoison;
use crate::limit::prehashed::PrehashedMap;
use crate::observe::metrics::LabeledGauge;

/// The place of a lease.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(in crate::limit) enum LeaseSlot {
    /// The key's own.
    Own(u64),
    /// The lease that all keys beyond the bound share.
    Overflow,
}

impl LeaseSlot {
    /// Returns the name of the counter in the store: of a key's own counter, `name`.
    pub(in crate::limit) fn name(self, name: impl FnOnce() -> String) -> String {
        match self {
            Self::Own(_) => name(),
            Self::Overflow => OVERFLOW.to_owned(),
        }
    }
}

/// Leases by key.
#[derive(Debug)]
pub(super) struct LeaseTable {
    shards: Box<[Mutex<PrehashedMap<Lease>>]>,
    overflow: Mutex<Lease>,
    keys: AtomicUsize,
    max_keys: AtomicUsize,
    nonces: Arc<AtomicU32>,
    gauge: Arc<LabeledGauge>,
}

impl LeaseTable {
    /// Creates a table of at most `max_keys` leases, whose number `gauge` exports. All tables of a process take the numbers
    /// of their leases from `nonces`: the store would take an earlier table's for this one's.
    pub(super) fn new(max_keys: usize, gauge: Arc<LabeledGauge>, nonces: Arc<AtomicU32>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            overflow: Mutex::new(Lease::new(nonces.fetch_add(1, Relaxed))),
            keys: AtomicUsize::new(0),
            max_keys: AtomicUsize::new(max_keys),
            nonces,
            gauge,
        }
    }

    /// Changes the maximum number of keys.
    pub(super) fn allow(&self, max_keys: usize) {
        self.max_keys.store(max_keys, Relaxed);
    }

    /// Returns a number that no lease of this process has had.
    pub(super) fn fresh_nonce(&self) -> u32 {
        self.nonces.fetch_add(1, Relaxed)
    }

    /// Passes `change` the key's lease, new if there is none; locked until `change` returns.
    pub(super) fn with<R>(&self, key: u64, change: impl FnOnce(&mut Lease, LeaseSlot) -> R) -> R {
        let mut shard = self.shard(key);
        if let Some(lease) = shard.get_mut(&key) {
            return change(lease, LeaseSlot::Own(key));
        }
        if self.keys.load(Relaxed) >= self.max_keys.load(Relaxed) {
            drop(shard);
            return change(&mut self.overflow(), LeaseSlot::Overflow);
        }
        let mut lease = Lease::new(self.fresh_nonce());
        let result = change(&mut lease, LeaseSlot::Own(key));
        if !lease.is_blank() {
            shard.insert(key, lease);
            self.keys.fetch_add(1, Relaxed);
            self.gauge.inc();
        }
        result
    }

    /// Passes `change` an existing lease.
    pub(super) fn existing<R>(
        &self,
        slot: LeaseSlot,
        change: impl FnOnce(&mut Lease) -> R,
    ) -> Option<R> {
        match slot {
            LeaseSlot::Own(key) => self.shard(key).get_mut(&key).map(change),
            LeaseSlot::Overflow => Some(change(&mut self.overflow())),
        }
    }

    /// Passes every lease to `visit`, one shard after the other, and removes those for which it returns false.
    pub(super) fn retain(&self, mut visit: impl FnMut(LeaseSlot, &mut Lease) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock().ignore_poison();
            let before = shard.len();
            shard.retain(|key, lease| visit(LeaseSlot::Own(*key), lease));
            let removed = before - shard.len();
            self.keys.fetch_sub(removed, Relaxed);
            self.gauge.add(-(removed.cast_signed() as i64));
        }
        visit(LeaseSlot::Overflow, &mut self.overflow());
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, PrehashedMap<Lease>> {
        self.shards[(key >> 32) as usize % SHARDS].lock().ignore_poison()
    }

    fn overflow(&self) -> MutexGuard<'_, Lease> {
        self.overflow.lock().ignore_poison()
    }
}

impl Drop for LeaseTable {
    fn drop(&mut self) {
        // The gauge may be reused by another table of the same limit.
        self.gauge.add(-(self.keys.load(Relaxed).cast_signed() as i64));
    }
}

const SHARDS: usize = 64;
/// The name of the counter that all keys beyond a limit's `max_keys` share.
const OVERFLOW: &str = "overflow";
