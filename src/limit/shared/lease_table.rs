//! The leases of one limit by key: bounded, swept, and locked one shard at a time.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::lease::{Lease, LeaseSlot};
use crate::base::lock::IgnorePoison;
use crate::limit::counters::prehashed::{PrehashedMap, least};
use crate::observe::metrics::LabeledGauge;

/// Leases by key.
#[derive(Debug)]
pub(super) struct LeaseTable {
    shards: Box<[Mutex<PrehashedMap<Lease>>]>,
    overflow: Mutex<Lease>,
    /// The overflow's key in the store.
    overflow_key: Arc<str>,
    keys: AtomicUsize,
    max_keys: AtomicUsize,
    /// The number of further requests that skip the search for room in a full table.
    skipped_searches: AtomicUsize,
    nonces: Arc<AtomicU32>,
    gauge: Arc<LabeledGauge>,
}

impl LeaseTable {
    /// Creates a table of at most `max_keys` leases, whose number `gauge` exports; all keys beyond share the counter
    /// `overflow_key`. All tables of a process take the numbers of their leases from `nonces`: the store could not
    /// distinguish the leases of an earlier table from those of this one.
    pub(super) fn new(
        max_keys: usize,
        overflow_key: Arc<str>,
        gauge: Arc<LabeledGauge>,
        nonces: Arc<AtomicU32>,
    ) -> Self {
        let overflow = Lease::of(&overflow_key, nonces.fetch_add(1, Relaxed));
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            overflow: Mutex::new(overflow),
            overflow_key,
            keys: AtomicUsize::new(0),
            max_keys: AtomicUsize::new(max_keys),
            skipped_searches: AtomicUsize::new(0),
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

    /// Passes `change` the lease at `slot`, new if the key has none; locked until `change` returns. In a full table
    /// other leases make room, and are passed to `evict`; without `evict`, or without room, the key shares the
    /// overflow's lease.
    pub(super) fn with<R>(
        &self,
        slot: LeaseSlot,
        evict: Option<impl FnMut(u64, Lease)>,
        change: impl FnOnce(&mut Lease, LeaseSlot) -> R,
    ) -> R {
        let LeaseSlot::Own(key) = slot else {
            return change(&mut self.overflow(), LeaseSlot::Overflow);
        };
        let mut shard = self.shard(key);
        if let Some(lease) = shard.get_mut(&key) {
            return change(lease, LeaseSlot::Own(key));
        }
        if let (true, Some(evict)) = (self.is_full(), evict) {
            self.make_room(index(key), &mut shard, evict);
        }
        if self.is_full() {
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

    /// Passes every lease to `visit`, one shard after the other, and removes those for which it returns false; the
    /// overflow is then reset.
    pub(super) fn retain(&self, mut visit: impl FnMut(LeaseSlot, &mut Lease) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.lock().ignore_poison();
            let before = shard.len();
            shard.retain(|key, lease| visit(LeaseSlot::Own(*key), lease));
            self.removed(before - shard.len());
        }
        let mut overflow = self.overflow();
        if !visit(LeaseSlot::Overflow, &mut overflow) {
            *overflow = Lease::of(&self.overflow_key, self.fresh_nonce());
        }
    }

    fn is_full(&self) -> bool {
        self.keys.load(Relaxed) >= self.max_keys.load(Relaxed)
    }

    /// Removes the least used leases that may make room, of some shards from the one at `index` on: a sixteenth or one, so
    /// that a flood searches for room once in many requests. `own` is the shard at `index`, which the caller has locked.
    fn make_room(
        &self,
        index: usize,
        own: &mut PrehashedMap<Lease>,
        mut evict: impl FnMut(u64, Lease),
    ) {
        let skip = |left: usize| left.checked_sub(1);
        if self.skipped_searches.fetch_update(Relaxed, Relaxed, skip).is_ok() {
            return;
        }
        let mut searched = own.len();
        let mut others = Vec::new();
        for step in 1..SHARDS {
            if searched >= MAX_SEARCHED {
                break;
            }
            // Only locks that are free: their owners may wait for this shard.
            if let Some(shard) = self.shards[(index + step) % SHARDS].try_lock().ignore_poison() {
                searched += shard.len();
                others.push(shard);
            }
        }
        let mut shards: Vec<_> = others.iter_mut().map(|shard| &mut **shard).collect();
        shards.push(own);
        let mut candidates = Vec::new();
        for (place, shard) in shards.iter().enumerate() {
            let leases = shard.iter().filter(|(_, lease)| lease.is_dispensable());
            // A refusal that is remembered spares the store a question.
            let ranked = leases.map(|(key, lease)| ((lease.is_refused(), lease.used), place, *key));
            candidates.extend(ranked);
        }
        let least = least(&mut candidates);
        for (_, place, key) in least {
            if let Some(lease) = shards[*place].remove(key) {
                evict(*key, lease);
            }
        }
        self.removed(least.len());
        if least.is_empty() {
            self.skipped_searches.store(searched.max(SHARDS), Relaxed);
        }
    }

    fn removed(&self, count: usize) {
        self.keys.fetch_sub(count, Relaxed);
        self.gauge.add(-(count.cast_signed() as i64));
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, PrehashedMap<Lease>> {
        self.shards[index(key)].lock().ignore_poison()
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

fn index(key: u64) -> usize {
    (key >> 32) as usize % SHARDS
}

const SHARDS: usize = 64;
/// The leases after which a search for room looks into no further shard.
const MAX_SEARCHED: usize = 2_000;
