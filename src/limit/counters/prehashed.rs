//! Maps by keys that are hashes already.

use core::hash::{BuildHasherDefault, Hasher};
use std::collections::HashMap;

/// A map by a limit's keys, which are seeded hashes: they are not hashed again.
pub(in crate::limit) type PrehashedMap<V> = HashMap<u64, V, BuildHasherDefault<PrehashedKey>>;

/// A hasher for keys that are hashes already.
#[derive(Debug, Default)]
pub(in crate::limit) struct PrehashedKey(u64);

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

/// Returns the least of `all`, a sixteenth of them or one: what makes room in a full table, so that a flood searches for room
/// once in many requests.
pub(in crate::limit) fn least<T: Ord>(all: &mut [T]) -> &[T] {
    let batch = (all.len() / 16).max(1).min(all.len());
    if batch < all.len() {
        all.select_nth_unstable(batch - 1);
    }
    &all[..batch]
}
