//! A map that forgets its oldest entry when it is full.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// At most so many entries, the oldest of which makes room.
#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    most: usize,
    entries: HashMap<K, V>,
    /// The keys as they came. Some may be gone from `entries`: the queue bounds the map all the same.
    order: VecDeque<K>,
}

impl<K: Clone + Eq + Hash, V> Bounded<K, V> {
    /// An empty map for `most` entries.
    pub(super) fn new(most: usize) -> Self {
        Self { most, entries: HashMap::new(), order: VecDeque::new() }
    }

    /// Keeps `value`; what was under `key` comes back.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.order.len() == self.most
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

    pub(super) fn find(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values()
    }

    pub(super) fn retain(&mut self, keeps: impl Fn(&V) -> bool) {
        self.entries.retain(|_, value| keeps(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_makes_room() {
        let mut map = Bounded::new(2);

        map.insert("a", 1);
        map.insert("b", 2);
        map.insert("c", 3);

        assert_eq!(map.find(&"a"), None);
        assert_eq!(map.find(&"b"), Some(&mut 2));
        assert_eq!(map.find(&"c"), Some(&mut 3));
    }

    #[test]
    fn a_removed_entry_never_lets_the_map_grow() {
        let mut map = Bounded::new(2);
        for key in 0..10 {
            map.insert(key, ());
            map.remove(&key);
        }

        assert!(map.order.len() <= 2);
    }
}
