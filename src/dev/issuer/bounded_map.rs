//! A map with a capacity that evicts its oldest entry when it is full.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// A map of at most `capacity` entries, evicted in order of insertion.
#[derive(Debug)]
pub(super) struct BoundedMap<K, V> {
    capacity: usize,
    entries: HashMap<K, V>,
    /// The keys in order of insertion. Some may no longer be in `entries`; the queue bounds the map all the same.
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> BoundedMap<K, V> {
    /// Creates an empty map for `capacity` entries.
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new(), order: VecDeque::new() }
    }

    /// Inserts `value`, and returns the previous value of `key`.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.order.len() == self.capacity
            && let Some(oldest) = self.order.pop_front()
        {
            self.entries.remove(&oldest);
        }
        let before = self.entries.insert(key.clone(), value);
        if before.is_none() {
            self.order.push_back(key);
        }
        before
    }

    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values()
    }

    /// Removes every entry whose value `keep` rejects.
    pub(super) fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        self.entries.retain(|_, value| keep(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entry_of_a_full_map_is_evicted() {
        let mut map = BoundedMap::new(2);

        map.insert("a", 1);
        map.insert("b", 2);
        map.insert("c", 3);

        assert_eq!(map.get_mut(&"a"), None);
        assert_eq!(map.get_mut(&"b"), Some(&mut 2));
        assert_eq!(map.get_mut(&"c"), Some(&mut 3));
    }

    #[test]
    fn removed_entries_never_let_the_map_grow() {
        let mut map = BoundedMap::new(2);
        for key in 0..10 {
            map.insert(key, ());
            map.remove(&key);
        }

        assert!(map.order.len() <= 2);
    }
}
