//! A bounded table of counters by key, shared by every kind of limit.
//!
//! A flood of fresh keys must not allocate memory for each, nor get a
//! fresh counter for each. The table holds a maximum number of keys, every further
//! one shares a single *overflow* counter, and keys whose counter has recovered
//! are swept. It is divided into shards, each with a lock of its own that is held
//! for nanoseconds, so that workers do not wait for one another.
//!
//! The meaning of a counter is up to the caller; the table only knows the moment
//! from which it equals the default.

use core::hash::{BuildHasherDefault, Hasher};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::base::lock::IgnorePoison;
use crate::observe::metrics::LabeledGauge;

/// The counter of one key. The default counts nothing, and takes no memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counter {
    /// The moment, in nanoseconds of the limit's own time, from which the counter equals the default.
    pub(super) until: u64,
    /// The used amount, where `until` alone does not determine it.
    pub(super) used: u64,
}

impl Counter {
    /// Returns the counter as of `now`: the default, if it has recovered.
    fn at(self, now: u64) -> Self {
        if self.until > now { self } else { Self::default() }
    }
}

/// The counter that a key was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Slot {
    /// The key's own counter.
    Own,
    /// The counter shared by all keys beyond the bound.
    Overflow,
}

/// Counters by key.
#[derive(Debug)]
pub(super) struct CounterTable {
    shards: Box<[Shard]>,
    overflow: Mutex<Counter>,
    keys: AtomicUsize,
    max_keys: AtomicUsize,
    /// The exported number of keys.
    gauge: Arc<LabeledGauge>,
}

impl CounterTable {
    /// Creates a table of at most `max_keys` keys, which `gauge` exports.
    pub(super) fn new(max_keys: usize, gauge: Arc<LabeledGauge>) -> Self {
        let shards = (max_keys / KEYS_PER_SHARD).next_power_of_two().clamp(8, 4_096);
        Self {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            overflow: Mutex::default(),
            keys: AtomicUsize::new(0),
            max_keys: AtomicUsize::new(max_keys),
            gauge,
        }
    }

    /// Returns the number of keys with a counter of their own.
    pub(super) fn len(&self) -> usize {
        self.keys.load(Relaxed)
    }

    /// Changes the maximum number of keys; those beyond it are removed by sweeping.
    pub(super) fn allow(&self, max_keys: usize) {
        self.max_keys.store(max_keys, Relaxed);
    }

    /// Passes `change` the key's counter as of `now`, which is the default if there is none or it has recovered.
    ///
    /// The counter is locked until `change` returns.
    pub(super) fn with<R>(
        &self,
        key: u64,
        now: u64,
        change: impl FnOnce(&mut Counter, Slot) -> R,
    ) -> R {
        let mut shard = lock(&self.shard(key).0);
        if let Some(cell) = shard.cells.get_mut(&key) {
            *cell = cell.at(now);
            return change(cell, Slot::Own);
        }
        let room = self.reserve() || (self.sweep_full(&mut shard, now) && self.reserve());
        if !room {
            drop(shard);
            let mut cell = lock(&self.overflow);
            *cell = cell.at(now);
            return change(&mut cell, Slot::Overflow);
        }
        let mut cell = Counter::default();
        let result = change(&mut cell, Slot::Own);
        if cell == Counter::default() {
            self.keys.fetch_sub(1, Relaxed);
        } else {
            shard.cells.insert(key, cell);
            self.gauge.inc();
        }
        result
    }

    /// Passes `change` an existing counter, and removes it if it is the default afterwards.
    pub(super) fn give_back(&self, key: u64, place: Slot, change: impl FnOnce(&mut Counter)) {
        if place == Slot::Overflow {
            return change(&mut lock(&self.overflow));
        }
        let mut shard = lock(&self.shard(key).0);
        let Some(cell) = shard.cells.get_mut(&key) else { return };
        change(cell);
        if *cell == Counter::default() {
            shard.cells.remove(&key);
            self.release(1);
        }
    }

    /// Removes every recovered counter, one shard after the other.
    pub(super) fn sweep(&self, now: u64) {
        for shard in &self.shards {
            let mut shard = lock(&shard.0);
            self.release(shard.sweep(now));
            // Returns the memory of a flood to the system.
            let roomy = 4 * shard.cells.len() + 64;
            if shard.cells.capacity() > roomy {
                shard.cells.shrink_to(roomy / 2);
            }
        }
        let mut overflow = lock(&self.overflow);
        *overflow = overflow.at(now);
    }

    /// Returns the overflow counter and every key's, as of `now`; shards are read one after the other.
    pub(super) fn all(&self, now: u64) -> (Counter, Vec<(u64, Counter)>) {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = lock(&shard.0);
            let live = shard.cells.iter().filter(|(_, cell)| cell.until > now);
            all.extend(live.map(|(key, cell)| (*key, *cell)));
        }
        (lock(&self.overflow).at(now), all)
    }

    /// Restores the counters of an earlier table; keys beyond the bound are left out.
    pub(super) fn fill(&self, overflow: Counter, cells: impl Iterator<Item = (u64, Counter)>) {
        *lock(&self.overflow) = overflow;
        for (key, cell) in cells {
            if self.reserve() {
                self.gauge.inc();
                if lock(&self.shard(key).0).cells.insert(key, cell).is_some() {
                    self.release(1);
                }
            }
        }
    }

    /// Reserves room for one key, if there is any.
    fn reserve(&self) -> bool {
        let max_keys = self.max_keys.load(Relaxed);
        self.keys
            .fetch_update(Relaxed, Relaxed, |keys| (keys < max_keys).then_some(keys + 1))
            .is_ok()
    }

    /// Releases the room of `keys` removed keys.
    fn release(&self, keys: usize) {
        self.keys.fetch_sub(keys, Relaxed);
        self.gauge.add(-(keys.cast_signed() as i64));
    }

    /// Sweeps a shard of a full table: true if there may be room.
    ///
    /// After a sweep in vain, as many requests as the shard has counters skip it: constant work per request
    /// under a flood.
    fn sweep_full(&self, shard: &mut SweepResult, now: u64) -> bool {
        if shard.skipped_sweeps > 0 {
            shard.skipped_sweeps -= 1;
            return false;
        }
        let freed = shard.sweep(now);
        self.release(freed);
        shard.skipped_sweeps = if freed == 0 { shard.cells.len() } else { 0 };
        freed > 0
    }

    fn shard(&self, key: u64) -> &Shard {
        // The map inside uses the lowest and the highest bits.
        &self.shards[(key >> 32) as usize & (self.shards.len() - 1)]
    }
}

impl Drop for CounterTable {
    fn drop(&mut self) {
        // The gauge may be reused by another table of the same limit.
        self.release(self.len());
    }
}

/// The counters of one lock, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<SweepResult>);

#[derive(Debug, Default)]
struct SweepResult {
    cells: HashMap<u64, Counter, BuildHasherDefault<PrehashedKey>>,
    /// The number of further requests for which a full table is not swept again.
    skipped_sweeps: usize,
}

impl SweepResult {
    /// Removes the recovered counters; returns their number.
    fn sweep(&mut self, now: u64) -> usize {
        let before = self.cells.len();
        self.cells.retain(|_, cell| cell.until > now);
        before - self.cells.len()
    }
}

/// A hasher for keys that are hashes already.
#[derive(Debug, Default)]
struct PrehashedKey(u64);

impl Hasher for PrehashedKey {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys of this table are u64");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().ignore_poison()
}

/// Few enough that sweeping a shard holds its lock for microseconds.
const KEYS_PER_SHARD: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn a_counter_is_stored_under_its_key_alone() {
        let cells = table(10);

        assert_eq!(count(&cells, 1, 0), (1, Slot::Own));
        assert_eq!(count(&cells, 1, 0), (2, Slot::Own));
        assert_eq!(count(&cells, 2, 0), (1, Slot::Own));
        cells.with(3, 0, |cell, _| assert_eq!(*cell, Counter::default()));

        assert_eq!(cells.len(), 2);
    }

    #[test]
    fn keys_beyond_the_bound_share_one_counter() {
        let cells = table(2);
        (1..=2).for_each(|key| _ = count(&cells, key, 0));

        assert_eq!(count(&cells, 3, 0), (1, Slot::Overflow));
        assert_eq!(count(&cells, 4, 0), (2, Slot::Overflow));
        assert_eq!(count(&cells, 1, 0), (2, Slot::Own));
        assert_eq!(cells.len(), 2);
    }

    #[test]
    fn a_recovered_counter_makes_room_in_its_shard() {
        let cells = table(2);
        (1..=2).for_each(|key| _ = count(&cells, key, 0));

        assert_eq!(count(&cells, 3, LIFE), (1, Slot::Own));
        assert_eq!(cells.len(), 1);
    }

    #[test]
    fn a_recovered_counter_is_the_default() {
        let cells = table(1);
        count(&cells, 1, 0);

        assert_eq!(count(&cells, 1, LIFE - 1), (2, Slot::Own));
        assert_eq!(count(&cells, 1, LIFE), (1, Slot::Own));
    }

    #[test]
    fn a_sweep_removes_recovered_counters_only() {
        let cells = table(1_000);
        (0..500).for_each(|key| _ = count(&cells, spread(key), 0));
        (500..800).for_each(|key| _ = count(&cells, spread(key), 50));

        cells.sweep(LIFE);
        assert_eq!(cells.len(), 300);
        cells.sweep(50 + LIFE);
        assert_eq!(cells.len(), 0);
    }

    #[test]
    fn a_million_keys_take_no_more_memory_than_the_bound() {
        const MAX_KEYS: usize = 10_000;
        let cells = table(MAX_KEYS);
        (0..1_000_000).for_each(|key| _ = count(&cells, spread(key), 0));

        assert_eq!(cells.len(), MAX_KEYS);
        assert_eq!(held(&cells), MAX_KEYS);
        // A map doubles, so its capacity may be twice its length, and an eighth of slots stays free.
        assert!(room(&cells) <= 3 * MAX_KEYS, "room for {} keys", room(&cells));

        cells.sweep(LIFE);
        assert!(room(&cells) <= 64 * cells.shards.len(), "a flood's memory is given back");
    }

    #[test]
    fn searching_a_full_table_costs_a_flood_nothing() {
        let cells = table(1_000);
        (0..1_000).for_each(|key| _ = count(&cells, spread(key), 0));
        let mut searches = 0;
        for key in 1_000..11_000 {
            let shard = lock(&cells.shard(spread(key)).0);
            searches += usize::from(shard.skipped_sweeps == 0) * shard.cells.len();
            drop(shard);
            count(&cells, spread(key), 0);
        }

        assert!(searches <= 10_000 + 1_000, "{searches} counters swept for 10 000 requests");
    }

    #[test]
    fn eight_threads_count_every_request_once() {
        let cells = table(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10_000).for_each(|n| _ = count(&cells, spread(n % 100), 0)));
            }
        });

        let own = |shard: &Shard| lock(&shard.0).cells.values().map(|cell| cell.used).sum::<u64>();
        let overflow = lock(&cells.overflow).used;
        assert_eq!(cells.shards.iter().map(own).sum::<u64>() + overflow, 80_000);
        assert_eq!(cells.len(), 64);
    }

    #[test]
    fn the_gauge_shows_the_keys_and_nothing_when_they_are_gone() {
        let gauge = Metrics::new(&[]).limit_keys("spike");
        let cells = CounterTable::new(10, Arc::clone(&gauge));
        (0..3).for_each(|key| _ = count(&cells, key, 0));
        cells.with(7, 0, |_, _| ());
        assert_eq!(gauge.value(), 3);

        cells.sweep(LIFE);
        assert_eq!(gauge.value(), 0);

        count(&cells, 1, 0);
        drop(cells);
        assert_eq!(gauge.value(), 0);
    }

    const LIFE: u64 = 100;

    fn table(most: usize) -> CounterTable {
        CounterTable::new(most, Metrics::new(&[]).limit_keys("spike"))
    }

    fn count(cells: &CounterTable, key: u64, now: u64) -> (u64, Slot) {
        cells.with(key, now, |cell, place| {
            if cell.until == 0 {
                cell.until = now + LIFE;
            }
            cell.used += 1;
            (cell.used, place)
        })
    }

    /// Spreads keys as a hash would.
    fn spread(key: u64) -> u64 {
        (key + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn held(cells: &CounterTable) -> usize {
        cells.shards.iter().map(|shard| lock(&shard.0).cells.len()).sum()
    }

    fn room(cells: &CounterTable) -> usize {
        cells.shards.iter().map(|shard| lock(&shard.0).cells.capacity()).sum()
    }
}
