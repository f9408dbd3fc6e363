//! The counter that all keys beyond `max_keys` share, and which keys have used it.
//!
//! A key that gets a counter of its own later continues with what the shared one had counted: otherwise a flood would
//! renew its allowance. A key that never used the shared counter does not pay for the flood. Which keys have used it is
//! a set of bits by hash: a false positive is possible, a false negative is not.

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use super::counter::Counter;
use crate::base::lock::IgnorePoison;

/// The shared counter with its members.
#[derive(Debug, Default)]
pub(in crate::limit) struct Overflow {
    state: Mutex<State>,
    /// Whether the counter may count something: spares new keys the lock.
    is_used: AtomicBool,
}

/// The state under the lock.
#[derive(Debug, Default)]
pub(in crate::limit) struct State {
    pub(in crate::limit) counter: Counter,
    /// Empty until the first member.
    members: Vec<u64>,
}

impl Overflow {
    /// Passes `change` the shared counter as of `now`, on behalf of `key`; `max_keys` sizes the set of members.
    pub(in crate::limit) fn with<R>(
        &self,
        key: u64,
        now: u64,
        max_keys: usize,
        change: impl FnOnce(&mut Counter) -> R,
    ) -> R {
        let mut state = self.lock(now);
        let before = state.counter;
        let result = change(&mut state.counter);
        // A refused key has used nothing.
        if state.counter != before {
            state.join(key, max_keys);
            self.is_used.store(true, Relaxed);
        }
        result
    }

    /// Returns the count that `key` brings along when it gets a counter of its own, if it has used this one.
    pub(in crate::limit) fn count_of(&self, key: u64, now: u64) -> Option<Counter> {
        if !self.is_used.load(Relaxed) {
            return None;
        }
        let state = self.lock(now);
        (state.counter != Counter::default() && state.has(key)).then_some(state.counter)
    }

    /// Passes `change` the counter as it is.
    pub(in crate::limit) fn give_back(&self, change: impl FnOnce(&mut Counter)) {
        change(&mut self.state.lock().ignore_poison().counter);
    }

    /// Forgets the members of a counter that has recovered.
    pub(in crate::limit) fn sweep(&self, now: u64) {
        drop(self.lock(now));
    }

    /// Returns the counter as of `now` and its members, to be saved.
    pub(in crate::limit) fn save(&self, now: u64) -> (Counter, Vec<u64>) {
        let state = self.lock(now);
        (state.counter, state.members.clone())
    }

    /// Restores what was saved. Members of an unknown number mean that every key may be one.
    pub(in crate::limit) fn restore(&self, counter: Counter, members: Vec<u64>) {
        let mut state = self.state.lock().ignore_poison();
        let is_known = counter == Counter::default() || members.len().is_power_of_two();
        let members = if is_known { members } else { vec![u64::MAX] };
        *state = State { counter, members };
        self.is_used.store(counter != Counter::default(), Relaxed);
    }

    fn lock(&self, now: u64) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().ignore_poison();
        state.counter = state.counter.at(now);
        if state.counter == Counter::default() {
            state.members = Vec::new();
            self.is_used.store(false, Relaxed);
        }
        state
    }
}

impl State {
    fn join(&mut self, key: u64, max_keys: usize) {
        if self.members.is_empty() {
            let words = (max_keys / 8).next_power_of_two().clamp(16, MAX_WORDS);
            self.members = vec![0; words];
        }
        for (word, bit) in self.bits(key) {
            self.members[word] |= bit;
        }
    }

    fn has(&self, key: u64) -> bool {
        !self.members.is_empty()
            && self.bits(key).iter().all(|(word, bit)| self.members[*word] & bit != 0)
    }

    /// Returns the bits of a key, whose parts are independent hashes.
    fn bits(&self, key: u64) -> [(usize, u64); 2] {
        let mask = self.members.len() - 1;
        [key, key.rotate_right(32)].map(|part| ((part >> 6) as usize & mask, 1 << (part & 63)))
    }
}

/// One mebibyte of bits.
const MAX_WORDS: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_brings_its_count_along_and_a_newcomer_does_not() {
        let overflow = Overflow::default();
        let count =
            |counter: &mut Counter| *counter = Counter { until: 100, used: counter.used + 1 };
        (0..3).for_each(|_| overflow.with(7 << 40, 0, 1_000, count));

        assert_eq!(overflow.count_of(7 << 40, 0), Some(Counter { until: 100, used: 3 }));
        assert_eq!(overflow.count_of(9 << 40, 0), None);
        assert_eq!(overflow.count_of(7 << 40, 100), None, "recovered");
    }

    #[test]
    fn members_are_restored_with_the_count() {
        let overflow = Overflow::default();
        overflow.with(7 << 40, 0, 10, |counter| *counter = Counter { until: 100, used: 3 });
        let (counter, members) = overflow.save(0);

        let restored = Overflow::default();
        restored.restore(counter, members);
        assert_eq!(restored.count_of(7 << 40, 0), Some(counter));
        assert_eq!(restored.count_of(9 << 40, 0), None);
    }
}
