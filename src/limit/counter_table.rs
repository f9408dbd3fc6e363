//! Counts by key, bounded: the one table under every limit.
//!
//! Whoever sends a flood of fresh keys must not get memory for each, nor a
//! fresh count for each. The table holds at most so many keys, every further
//! one shares a single *overflow* count, and keys whose count has recovered
//! are swept. It is cut into shards, each with a lock of its own that is held
//! for nanoseconds, so that workers do not wait for one another.
//!
//! What a count means is up to the caller; the table knows only from when on
//! it is as good as none.

use core::hash::{BuildHasherDefault, Hasher};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::observe::metrics::LabeledGauge;

/// One key's count. The default is no count at all, and takes no memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counter {
    /// From this moment on, in nanoseconds of the limit's own time, it is as good as none.
    pub(super) until: u64,
    /// What has been used, where `until` alone does not say it.
    pub(super) used: u64,
}

impl Counter {
    /// The cell as of `now`: none, if it has recovered.
    fn at(self, now: u64) -> Self {
        if self.until > now { self } else { Self::default() }
    }
}

/// Which cell a key was given.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Slot {
    /// Its own.
    Own,
    /// The one that all keys share for which there was no room.
    Overflow,
}

/// Cells by key.
#[derive(Debug)]
pub(super) struct CounterTable {
    shards: Box<[Shard]>,
    overflow: Mutex<Counter>,
    keys: AtomicUsize,
    most: AtomicUsize,
    /// How many keys there are, for all to see.
    gauge: Arc<LabeledGauge>,
}

impl CounterTable {
    /// A table of at most `most` keys, which `gauge` counts.
    pub(super) fn new(most: usize, gauge: Arc<LabeledGauge>) -> Self {
        let shards = (most / KEYS_PER_SHARD).next_power_of_two().clamp(8, 4_096);
        Self {
            shards: (0..shards).map(|_| Shard::default()).collect(),
            overflow: Mutex::default(),
            keys: AtomicUsize::new(0),
            most: AtomicUsize::new(most),
            gauge,
        }
    }

    /// How many keys have a cell of their own.
    pub(super) fn len(&self) -> usize {
        self.keys.load(Relaxed)
    }

    /// Allows another number of keys from now on; those beyond it leave by sweeping.
    pub(super) fn allow(&self, most: usize) {
        self.most.store(most, Relaxed);
    }

    /// Lends `change` the key's cell as of `now`, which is the default if there is none or it has recovered.
    ///
    /// The cell is locked until `change` returns.
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

    /// Lends `change` a cell that is known to be there, and forgets it if it is none afterwards.
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

    /// Forgets every cell that is as good as none, one shard after the other.
    pub(super) fn sweep(&self, now: u64) {
        for shard in &self.shards {
            let mut shard = lock(&shard.0);
            self.release(shard.sweep(now));
            // What a flood left behind goes back to the system.
            let roomy = 4 * shard.cells.len() + 64;
            if shard.cells.capacity() > roomy {
                shard.cells.shrink_to(roomy / 2);
            }
        }
        let mut overflow = lock(&self.overflow);
        *overflow = overflow.at(now);
    }

    /// The overflow cell, and every key's, as of `now`; not of one instant, but each of its own.
    pub(super) fn all(&self, now: u64) -> (Counter, Vec<(u64, Counter)>) {
        let mut all = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = lock(&shard.0);
            let live = shard.cells.iter().filter(|(_, cell)| cell.until > now);
            all.extend(live.map(|(key, cell)| (*key, *cell)));
        }
        (lock(&self.overflow).at(now), all)
    }

    /// Takes over what another table has held; keys beyond the bound are left out.
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

    /// Makes room for one key, if there is any.
    fn reserve(&self) -> bool {
        let most = self.most.load(Relaxed);
        self.keys.fetch_update(Relaxed, Relaxed, |keys| (keys < most).then_some(keys + 1)).is_ok()
    }

    /// Counts out `keys` that have left.
    fn release(&self, keys: usize) {
        self.keys.fetch_sub(keys, Relaxed);
        self.gauge.add(-(keys.cast_signed() as i64));
    }

    /// Looks for room in a full table: true if there may be some.
    ///
    /// After a search in vain, as many requests as the shard has cells go without: constant work for each of them,
    /// however many come.
    fn sweep_full(&self, shard: &mut SweepResult, now: u64) -> bool {
        if shard.patience > 0 {
            shard.patience -= 1;
            return false;
        }
        let freed = shard.sweep(now);
        self.release(freed);
        shard.patience = if freed == 0 { shard.cells.len() } else { 0 };
        freed > 0
    }

    fn shard(&self, key: u64) -> &Shard {
        // The map inside looks at the lowest and at the highest bits.
        &self.shards[(key >> 32) as usize & (self.shards.len() - 1)]
    }
}

impl Drop for CounterTable {
    fn drop(&mut self) {
        // The gauge may go on for another table of the same limit.
        self.release(self.len());
    }
}

/// One lock's cells, on a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Shard(Mutex<SweepResult>);

#[derive(Debug, Default)]
struct SweepResult {
    cells: HashMap<u64, Counter, BuildHasherDefault<PrehashedKey>>,
    /// Requests for which a full table is not searched for room again.
    patience: usize,
}

impl SweepResult {
    /// Forgets the cells that are as good as none; returns how many.
    fn sweep(&mut self, now: u64) -> usize {
        let before = self.cells.len();
        self.cells.retain(|_, cell| cell.until > now);
        before - self.cells.len()
    }
}

/// The keys are hashes already.
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
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Few enough that sweeping a shard holds its lock for some microseconds.
const KEYS_PER_SHARD: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn keeps_what_it_is_given_and_nothing_else() {
        let cells = table(10);

        assert_eq!(count(&cells, 1, 0), (1, Slot::Own));
        assert_eq!(count(&cells, 1, 0), (2, Slot::Own));
        assert_eq!(count(&cells, 2, 0), (1, Slot::Own));
        cells.with(3, 0, |cell, _| assert_eq!(*cell, Counter::default()));

        assert_eq!(cells.len(), 2);
    }

    #[test]
    fn shares_one_cell_among_all_keys_beyond_the_bound() {
        let cells = table(2);
        (1..=2).for_each(|key| _ = count(&cells, key, 0));

        assert_eq!(count(&cells, 3, 0), (1, Slot::Overflow));
        assert_eq!(count(&cells, 4, 0), (2, Slot::Overflow));
        assert_eq!(count(&cells, 1, 0), (2, Slot::Own));
        assert_eq!(cells.len(), 2);
    }

    #[test]
    fn finds_room_where_a_cell_of_the_same_shard_has_recovered() {
        let cells = table(2);
        (1..=2).for_each(|key| _ = count(&cells, key, 0));

        assert_eq!(count(&cells, 3, LIFE), (1, Slot::Own));
        assert_eq!(cells.len(), 1);
    }

    #[test]
    fn a_recovered_cell_is_none() {
        let cells = table(1);
        count(&cells, 1, 0);

        assert_eq!(count(&cells, 1, LIFE - 1), (2, Slot::Own));
        assert_eq!(count(&cells, 1, LIFE), (1, Slot::Own));
    }

    #[test]
    fn sweeping_forgets_the_recovered_alone() {
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
        const MOST: usize = 10_000;
        let cells = table(MOST);
        (0..1_000_000).for_each(|key| _ = count(&cells, spread(key), 0));

        assert_eq!(cells.len(), MOST);
        assert_eq!(held(&cells), MOST);
        // A map doubles, so it may have room for twice what it holds, and an eighth of slots stays free.
        assert!(room(&cells) <= 3 * MOST, "room for {} keys", room(&cells));

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
            searches += usize::from(shard.patience == 0) * shard.cells.len();
            drop(shard);
            count(&cells, spread(key), 0);
        }

        assert!(searches <= 10_000 + 1_000, "{searches} cells looked at for 10 000 requests");
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

    /// As a hash would.
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
