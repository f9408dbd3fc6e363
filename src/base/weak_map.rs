//! A map of shared values that are dropped with their last user.
//!
//! A reload compiles a whole new snapshot. State that must outlive it, such as a
//! limiter's counters or an issuer's keys, is in a [`WeakMap`]: the new snapshot
//! finds the existing value under an equal key, and a value that no snapshot uses
//! any more is dropped with the last snapshot that did.

use crate::base::lock::IgnorePoison;
use core::fmt;
use core::hash::Hash;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

/// Shared values by key, each present while an [`Arc`] to it exists.
pub struct WeakMap<K, V>(Mutex<HashMap<K, Weak<V>>>);

impl<K: Eq + Hash, V> WeakMap<K, V> {
    /// Returns the value under `key`, if one is present.
    pub fn get(&self, key: &K) -> Option<Arc<V>> {
        self.0.lock().ignore_poison().get(key).and_then(Weak::upgrade)
    }

    /// Returns the value under `key`, created by `make` if absent.
    pub fn get_or_insert_with(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        match self.get_or_try_insert_with(key, || Ok::<_, core::convert::Infallible>(make())) {
            Ok(value) => value,
        }
    }

    /// Returns the value under `key`, created by `make` if absent.
    ///
    /// # Errors
    ///
    /// The error of `make`; then nothing is stored.
    pub fn get_or_try_insert_with<E>(
        &self,
        key: K,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        let mut values = self.0.lock().ignore_poison();
        if let Some(value) = values.get(&key).and_then(Weak::upgrade) {
            return Ok(value);
        }
        values.retain(|_, value| value.strong_count() > 0);
        let value = Arc::new(make()?);
        values.insert(key, Arc::downgrade(&value));
        Ok(value)
    }

    /// Returns the value under `key`; if absent, inserts the `Arc` that `make` returns.
    pub fn get_or_insert_arc(&self, key: K, make: impl FnOnce() -> Arc<V>) -> Arc<V> {
        let mut values = self.0.lock().ignore_poison();
        if let Some(value) = values.get(&key).and_then(Weak::upgrade) {
            return value;
        }
        values.retain(|_, value| value.strong_count() > 0);
        let value = make();
        values.insert(key, Arc::downgrade(&value));
        value
    }

    /// Forgets all values; those in use live on.
    pub fn clear(&self) {
        self.0.lock().ignore_poison().clear();
    }

    /// Returns every existing value.
    pub fn values(&self) -> Vec<Arc<V>> {
        self.0.lock().ignore_poison().values().filter_map(Weak::upgrade).collect()
    }
}

impl<K, V> Default for WeakMap<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, V> fmt::Debug for WeakMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelf").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_key_finds_the_same_value() {
        let map = WeakMap::default();
        let first = map.get_or_insert_with("a", || 1);

        assert!(Arc::ptr_eq(&first, &map.get_or_insert_with("a", || 2)));
        assert_eq!(*map.get_or_insert_with("b", || 3), 3);
    }

    #[test]
    fn a_value_is_dropped_with_its_last_user() {
        let map = WeakMap::default();
        drop(map.get_or_insert_with("a", || 1));

        assert_eq!(*map.get_or_insert_with("a", || 2), 2);
        assert!(map.values().is_empty());
    }
}
