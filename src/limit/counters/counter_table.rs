//! A bounded table of counters by key, shared by every kind of limit.
//!
//! A flood of fresh keys must not allocate memory for each, nor get a
//! fresh counter for each, nor shut other keys out. The table holds a maximum number of keys. When it is full, counters
//! that have recovered make room, then the least used ones, but never one that is used up: its key would get a fresh
//! allowance. If all are used up, further keys share one *overflow* counter (`overflow`). The table is divided into
//! shards, each with a lock of its own that is held for nanoseconds, so that workers do not wait for one another.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use super::counter::{Counter, CounterKind};
use super::overflow::Overflow;
use super::prehashed::{PrehashedMap, least};
use crate::base::lock::IgnorePoison;
use crate::observe::metrics::LabeledGauge;

/// The counter that a key was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::limit) enum Slot {
    /// The key's own counter.
    Own,
    /// The counter shared by all keys beyond the bound.
    Overflow,
}

/// Counters by key.
#[derive(Debug)]
pub(in crate::limit) struct CounterTable {
    kind: CounterKind,
    shards: Box<[Shard]>,
    overflow: Overflow,
    keys: AtomicUsize,
    max_keys: AtomicUsize,
    /// The used units from which a counter is used up, and never makes room for another.
    used_up: AtomicU64,
    /// Whether a counter may have changed since the last [`CounterTable::take_changed`].
    changed: AtomicBool,
    /// The exported number of keys.
    gauge: Arc<LabeledGauge>,
}

impl CounterTable {
    /// Creates a table of at most `max_keys` keys, which `gauge` exports.
    pub(in crate::limit) fn new(
        kind: CounterKind,
        max_keys: usize,
        gauge: Arc<LabeledGauge>,
    ) -> Self {
        let shards = (max_keys / KEYS_PER_SHARD).next_power_of_two().clamp(MIN_SHARDS, 4_096);
        Self {
            kind,
            shards: (0..shards).map(|_| Shard::default()).collect(),
            overflow: Overflow::default(),
            keys: AtomicUsize::new(0),
            max_keys: AtomicUsize::new(max_keys),
            used_up: AtomicU64::new(u64::MAX),
            changed: AtomicBool::new(false),
            gauge,
        }
    }

    /// Returns the number of keys with a counter of their own.
    pub(in crate::limit) fn len(&self) -> usize {
        self.keys.load(Relaxed)
    }

    /// Changes the maximum number of keys, whose excess is removed by sweeping, and the used units from which a
    /// counter is used up.
    pub(in crate::limit) fn allow(&self, max_keys: usize, used_up: u64) {
        self.max_keys.store(max_keys, Relaxed);
        self.used_up.store(used_up, Relaxed);
    }

    /// Passes `change` the key's counter as of `now`, which is the default if there is none or it has recovered.
    ///
    /// The counter is locked until `change` returns.
    pub(in crate::limit) fn with<R>(
        &self,
        key: u64,
        now: u64,
        change: impl FnOnce(&mut Counter, Slot) -> R,
    ) -> R {
        // Noted under the lock: a save that does not see the change is followed by another.
        let change = |counter: &mut Counter, slot| {
            let result = change(counter, slot);
            self.note_change();
            result
        };
        let mut shard = lock(&self.shard(key).0);
        if let Some(counter) = shard.counters.get_mut(&key) {
            *counter = counter.at(now);
            return change(counter, Slot::Own);
        }
        let brought = self.overflow.count_of(key, now);
        // A request in flight is released where it was counted: its key stays with the shared counter.
        let stays = brought.is_some() && !self.kind.is_evictable();
        let room = !stays && (self.reserve() || (self.make_room(key, &mut shard, now)));
        if !room {
            drop(shard);
            let max_keys = self.max_keys.load(Relaxed);
            return self
                .overflow
                .with(key, now, max_keys, |counter| change(counter, Slot::Overflow));
        }
        let mut counter = brought.unwrap_or_default();
        let result = change(&mut counter, Slot::Own);
        if counter == Counter::default() {
            self.keys.fetch_sub(1, Relaxed);
        } else {
            shard.counters.insert(key, counter);
            self.gauge.inc();
        }
        result
    }

    /// Passes `change` the counter that `key` was given, if it still exists, and removes it if it is the default
    /// afterwards.
    pub(in crate::limit) fn give_back(
        &self,
        key: u64,
        slot: Slot,
        change: impl FnOnce(&mut Counter),
    ) {
        let change = |counter: &mut Counter| {
            change(counter);
            self.note_change();
        };
        if slot == Slot::Overflow {
            return self.overflow.give_back(change);
        }
        let mut shard = lock(&self.shard(key).0);
        let Some(counter) = shard.counters.get_mut(&key) else { return };
        change(counter);
        if *counter == Counter::default() {
            shard.counters.remove(&key);
            self.release(1);
        }
    }

    /// Returns the meaning of the counters.
    pub(in crate::limit) fn kind(&self) -> CounterKind {
        self.kind
    }

    /// Returns the key's own counter as of `now`, if it has one that counts.
    pub(in crate::limit) fn get(&self, key: u64, now: u64) -> Option<Counter> {
        let counter = lock(&self.shard(key).0).counters.get(&key).copied();
        counter.filter(|counter| counter.until > now)
    }

    /// Removes the key's own counter; whether it had one. Its part of the shared counter stays.
    pub(in crate::limit) fn remove(&self, key: u64, now: u64) -> bool {
        let removed = {
            let mut shard = lock(&self.shard(key).0);
            self.note_change();
            shard.counters.remove(&key)
        };
        self.release(usize::from(removed.is_some()));
        removed.is_some_and(|counter| counter.until > now)
    }

    /// Removes every counter, the shared one included; returns the number of keys that had one.
    pub(in crate::limit) fn clear(&self, now: u64) -> usize {
        let mut count = 0;
        for shard in &self.shards {
            let counters = core::mem::take(&mut lock(&shard.0).counters);
            self.release(counters.len());
            count += counters.values().filter(|counter| counter.until > now).count();
        }
        self.overflow.restore(Counter::default(), Vec::new());
        self.note_change();
        count
    }

    /// Removes every counter that has recovered, which equals a new one; one shard after the other.
    pub(in crate::limit) fn sweep(&self, now: u64) {
        for shard in &self.shards {
            let mut shard = lock(&shard.0);
            self.release(shard.sweep(now));
            // Returns the memory of a flood to the system.
            let roomy = 4 * shard.counters.len() + 64;
            if shard.counters.capacity() > roomy {
                shard.counters.shrink_to(roomy / 2);
            }
        }
        self.overflow.sweep(now);
    }

    /// Whether a counter may have changed since the last call.
    pub(in crate::limit) fn take_changed(&self) -> bool {
        self.changed.swap(false, Relaxed)
    }

    /// Whether no key is counted.
    pub(in crate::limit) fn is_empty(&self, now: u64) -> bool {
        self.len() == 0 && self.overflow.save(now).0 == Counter::default()
    }

    /// Returns every key's counter as of `now`; shards are read one after the other.
    pub(in crate::limit) fn all(&self, now: u64) -> Vec<(u64, Counter)> {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = lock(&shard.0);
            let live = shard.counters.iter().filter(|(_, counter)| counter.until > now);
            all.extend(live.map(|(key, counter)| (*key, *counter)));
        }
        all
    }

    /// Returns the counter of all keys beyond the bound.
    pub(in crate::limit) fn overflow(&self) -> &Overflow {
        &self.overflow
    }

    /// Restores the counters of an earlier table; keys beyond the bound are left out, the least used first.
    pub(in crate::limit) fn fill(&self, now: u64, mut counters: Vec<(u64, Counter)>) {
        let max_keys = self.max_keys.load(Relaxed);
        if counters.len() > max_keys {
            counters.sort_unstable_by_key(|(_, counter)| {
                core::cmp::Reverse(self.kind.used(*counter, now))
            });
        }
        for (key, counter) in counters {
            if self.reserve() {
                self.gauge.inc();
                if lock(&self.shard(key).0).counters.insert(key, counter).is_some() {
                    self.release(1);
                }
            }
        }
    }

    /// Has the counters saved. The flag shares a cache line with all threads: it is written only if it changes.
    fn note_change(&self) {
        if !self.changed.load(Relaxed) {
            self.changed.store(true, Relaxed);
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

    /// Makes room in a full table for `key`, whose shard is `own`, and reserves it: true if there is any.
    ///
    /// After a failed search, the next n requests skip it, n being the number of counters of the shard: constant work
    /// per request under a flood.
    fn make_room(&self, key: u64, own: &mut ShardState, now: u64) -> bool {
        if own.skipped_sweeps > 0 {
            own.skipped_sweeps -= 1;
            return false;
        }
        let freed = own.sweep(now);
        self.release(freed);
        // A small table is searched as a whole, however many shards it has had when it was larger: they have few keys each.
        let is_small = self.max_keys.load(Relaxed) / KEYS_PER_SHARD <= MIN_SHARDS;
        let index = self.index(key);
        let mut freed =
            freed + if freed == 0 && !is_small { self.evict(&mut [&mut *own], now) } else { 0 };
        if freed == 0 {
            // Only locks that are free: their owners may wait for this shard.
            let others =
                (1..self.shards.len()).map(|step| (index + step) & (self.shards.len() - 1));
            let mut others: Vec<_> = others
                .take(if is_small { self.shards.len() } else { MIN_SHARDS - 1 })
                .filter_map(|other| self.shards[other].0.try_lock().ignore_poison())
                .collect();
            let mut all: Vec<&mut ShardState> =
                others.iter_mut().map(|shard| &mut **shard).collect();
            all.push(&mut *own);
            freed = all.iter_mut().map(|shard| shard.sweep(now)).sum();
            self.release(freed);
            if freed == 0 {
                freed = self.evict(&mut all, now);
            }
        }
        if freed == 0 {
            own.skipped_sweeps = own.counters.len().max(MIN_SKIPPED_SWEEPS);
        }
        freed > 0 && self.reserve()
    }

    /// Removes the least used counters of these shards, a sixteenth of them or one, so that a flood searches for room
    /// once in many requests; returns their number. Counters that are used up stay.
    fn evict(&self, shards: &mut [&mut ShardState], now: u64) -> usize {
        if !self.kind.is_evictable() {
            return 0;
        }
        let used_up = self.used_up.load(Relaxed);
        let mut candidates = Vec::new();
        for (index, shard) in shards.iter().enumerate() {
            let used = shard
                .counters
                .iter()
                .map(|(key, counter)| (self.kind.used(*counter, now), index, *key));
            candidates.extend(used.filter(|(used, ..)| *used < used_up));
        }
        let least = least(&mut candidates);
        for (_, index, key) in least {
            shards[*index].counters.remove(key);
        }
        self.release(least.len());
        least.len()
    }

    fn shard(&self, key: u64) -> &Shard {
        &self.shards[self.index(key)]
    }

    fn index(&self, key: u64) -> usize {
        // The map inside uses the lowest and the highest bits.
        (key >> 32) as usize & (self.shards.len() - 1)
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
struct Shard(Mutex<ShardState>);

#[derive(Debug, Default)]
struct ShardState {
    counters: PrehashedMap<Counter>,
    /// The number of further requests that skip the search for room in a full table.
    skipped_sweeps: usize,
}

impl ShardState {
    /// Removes the recovered counters; returns their number.
    fn sweep(&mut self, now: u64) -> usize {
        let before = self.counters.len();
        self.counters.retain(|_, counter| counter.until > now);
        before - self.counters.len()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().ignore_poison()
}

/// Few enough that sweeping a shard holds its lock for microseconds.
const KEYS_PER_SHARD: usize = 1_024;
const MIN_SHARDS: usize = 8;
/// The minimum number of requests that skip the search for room after an unsuccessful one.
const MIN_SKIPPED_SWEEPS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn a_counter_is_stored_under_its_key_alone() {
        let counters = table(10);

        assert_eq!(count(&counters, 1, 0), (1, Slot::Own));
        assert_eq!(count(&counters, 1, 0), (2, Slot::Own));
        assert_eq!(count(&counters, 2, 0), (1, Slot::Own));
        counters.with(3, 0, |counter, _| assert_eq!(*counter, Counter::default()));

        assert_eq!(counters.len(), 2);
    }

    #[test]
    fn keys_beyond_the_bound_share_one_counter() {
        let counters = table(2);
        (1..=2).for_each(|key| _ = count(&counters, key, 0));

        assert_eq!(count(&counters, 3, 0), (1, Slot::Overflow));
        assert_eq!(count(&counters, 4, 0), (2, Slot::Overflow));
        assert_eq!(count(&counters, 1, 0), (2, Slot::Own));
        assert_eq!(counters.len(), 2);
    }

    #[test]
    fn a_recovered_counter_makes_room_in_its_shard() {
        let counters = table(2);
        (1..=2).for_each(|key| _ = count(&counters, key, 0));

        assert_eq!(count(&counters, 3, LIFE), (1, Slot::Own));
        assert_eq!(counters.len(), 1);
    }

    #[test]
    fn a_recovered_counter_is_the_default() {
        let counters = table(1);
        count(&counters, 1, 0);

        assert_eq!(count(&counters, 1, LIFE - 1), (2, Slot::Own));
        assert_eq!(count(&counters, 1, LIFE), (1, Slot::Own));
    }

    #[test]
    fn a_full_table_drops_the_least_used_counter_and_none_that_is_used_up() {
        let counters = with_allowance(3, 3);
        for (key, times) in [(1, 3), (2, 1), (3, 2)] {
            (0..times).for_each(|_| _ = count(&counters, spread(key), 0));
        }

        assert_eq!(count(&counters, spread(4), 0), (1, Slot::Own), "2 made room");
        assert_eq!(count(&counters, spread(1), 0), (4, Slot::Own), "used up, and still counted");
        assert_eq!(count(&counters, spread(3), 0), (3, Slot::Own));
        (0..2).for_each(|_| _ = count(&counters, spread(4), 0));
        assert_eq!(count(&counters, spread(5), 0), (1, Slot::Overflow), "all are used up");
    }

    #[test]
    fn a_key_that_leaves_the_overflow_keeps_its_count() {
        let counters = table(1);
        count(&counters, spread(1), 0);
        (0..2).for_each(|_| _ = count(&counters, spread(2), LIFE / 2));
        assert_eq!(count(&counters, spread(3), LIFE / 2), (3, Slot::Overflow));
        counters.sweep(LIFE);

        assert_eq!(count(&counters, spread(2), LIFE), (4, Slot::Own));
    }

    #[test]
    fn a_flood_shuts_no_newcomer_out_of_a_large_table() {
        let counters = with_allowance(20_000, 2);
        let used_up = |key: &u64| key.is_multiple_of(1_000);
        for key in (0..200_000).map(spread) {
            let times = if used_up(&key) { 2 } else { 1 };
            for _ in 0..times {
                assert_eq!(count(&counters, key, 0).1, Slot::Own);
            }
        }

        assert_eq!(counters.len(), held(&counters));
        assert!(counters.len() <= 20_000);
        for key in (0..200_000).map(spread).filter(used_up) {
            assert_eq!(count(&counters, key, 0), (3, Slot::Own), "used up, and never dropped");
        }
    }

    #[test]
    fn a_table_made_smaller_shuts_no_newcomer_out() {
        let counters = with_allowance(100_000, 5);
        counters.allow(20, 5);

        for key in (0..120).map(spread) {
            assert_eq!(count(&counters, key, 0), (1, Slot::Own));
        }
    }

    #[test]
    fn a_sweep_removes_recovered_counters_only() {
        let counters = table(1_000);
        (0..500).for_each(|key| _ = count(&counters, spread(key), 0));
        (500..800).for_each(|key| _ = count(&counters, spread(key), 50));

        counters.sweep(LIFE);
        assert_eq!(counters.len(), 300);
        counters.sweep(50 + LIFE);
        assert_eq!(counters.len(), 0);
    }

    #[test]
    fn a_million_keys_take_no_more_memory_than_the_bound() {
        const MAX_KEYS: usize = 10_000;
        let counters = table(MAX_KEYS);
        (0..1_000_000).for_each(|key| _ = count(&counters, spread(key), 0));

        assert_eq!(counters.len(), MAX_KEYS);
        assert_eq!(held(&counters), MAX_KEYS);
        // A map doubles, so its capacity may be twice its length, and an eighth of slots stays free.
        assert!(room(&counters) <= 3 * MAX_KEYS, "room for {} keys", room(&counters));

        counters.sweep(LIFE);
        assert!(room(&counters) <= 64 * counters.shards.len(), "a flood's memory is given back");
    }

    #[test]
    fn searching_a_full_table_costs_a_flood_nothing() {
        let counters = table(1_000);
        (0..1_000).for_each(|key| _ = count(&counters, spread(key), 0));
        let mut searches = 0;
        for key in 1_000..11_000 {
            let shard = lock(&counters.shard(spread(key)).0);
            searches += usize::from(shard.skipped_sweeps == 0) * shard.counters.len();
            drop(shard);
            count(&counters, spread(key), 0);
        }

        assert!(searches <= 10_000 + 1_000, "{searches} counters swept for 10 000 requests");
    }

    #[test]
    fn eight_threads_count_every_request_once() {
        let counters = table(64);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..10_000).for_each(|n| _ = count(&counters, spread(n % 100), 0)));
            }
        });

        let own = |shard: &Shard| {
            lock(&shard.0).counters.values().map(|counter| counter.used).sum::<u64>()
        };
        let overflow = counters.overflow().save(0).0.used;
        assert_eq!(counters.shards.iter().map(own).sum::<u64>() + overflow, 80_000);
        assert_eq!(counters.len(), 64);
    }

    #[test]
    fn a_change_during_a_save_is_saved_by_the_next() {
        let counters = table(1);
        for key in [1, 1, 2] {
            counters.with(key, 0, |counter, _| {
                counters.take_changed();
                *counter = Counter { until: LIFE, used: counter.used + 1 };
            });
            assert!(counters.take_changed(), "own and shared counters");
        }
        counters.give_back(1, Slot::Own, |counter| {
            counters.take_changed();
            counter.used -= 1;
        });
        assert!(counters.take_changed());
    }

    #[test]
    fn the_gauge_shows_the_keys_and_nothing_when_they_are_gone() {
        let gauge = Metrics::new(&[]).limit_keys("spike");
        let counters = CounterTable::new(CounterKind::Window, 10, Arc::clone(&gauge));
        (0..3).for_each(|key| _ = count(&counters, key, 0));
        counters.with(7, 0, |_, _| ());
        assert_eq!(gauge.value(), 3);

        counters.sweep(LIFE);
        assert_eq!(gauge.value(), 0);

        count(&counters, 1, 0);
        drop(counters);
        assert_eq!(gauge.value(), 0);
    }

    const LIFE: u64 = 100;

    /// A table in which a counter that counts anything is used up.
    fn table(max: usize) -> CounterTable {
        with_allowance(max, 1)
    }

    fn with_allowance(max: usize, used_up: u64) -> CounterTable {
        let table =
            CounterTable::new(CounterKind::Window, max, Metrics::new(&[]).limit_keys("spike"));
        table.allow(max, used_up);
        table
    }

    fn count(counters: &CounterTable, key: u64, now: u64) -> (u64, Slot) {
        counters.with(key, now, |counter, slot| {
            if counter.until == 0 {
                counter.until = now + LIFE;
            }
            counter.used += 1;
            (counter.used, slot)
        })
    }

    /// Spreads keys as a hash would.
    fn spread(key: u64) -> u64 {
        (key + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn held(counters: &CounterTable) -> usize {
        counters.shards.iter().map(|shard| lock(&shard.0).counters.len()).sum()
    }

    fn room(counters: &CounterTable) -> usize {
        counters.shards.iter().map(|shard| lock(&shard.0).counters.capacity()).sum()
    }
}
