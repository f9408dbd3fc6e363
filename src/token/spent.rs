//! Which `DPoP` proofs have been used, for as long as they could be used again (RFC 9449 §11.1).
//!
//! Exact, where a cache would not be: what a cache evicts can be used a second
//! time. Two generations take turns, so that forgetting costs nothing, and when
//! both are full new proofs are refused rather than old ones forgotten.

use core::fmt;
use core::time::Duration;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use super::dpop::LONGEST;
use crate::base::clock::Timestamp;

/// The proofs that have been used. Shared by all threads, and kept across reloads.
pub struct Spent {
    shards: [Mutex<Generations>; SHARDS],
    /// Proofs that one shard remembers at once.
    most: usize,
}

/// Those of the last while, and those of the while before.
#[derive(Default)]
struct Generations {
    began: Timestamp,
    now: HashSet<u128>,
    before: HashSet<u128>,
}

impl Spent {
    /// Remembers `most` proofs at once.
    fn of(most: usize) -> Self {
        Self { shards: Default::default(), most: most.div_ceil(SHARDS) }
    }

    /// Remembers that the proof known by `id` is used now.
    ///
    /// # Errors
    ///
    /// [`NotSpent::Again`] if it has been used before, [`NotSpent::Full`] if
    /// there is no place to remember it.
    pub(super) fn spend(&self, id: &[u8; 32], now: Timestamp) -> Result<(), NotSpent> {
        // Half of a SHA-256 still tells any two proofs of other people's keys apart.
        let [shard, ..] = *id;
        let id = u128::from_be_bytes(core::array::from_fn(|index| id[16 + index]));
        let shard = &self.shards[usize::from(shard) % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.turn(now);
        if shard.now.contains(&id) || shard.before.contains(&id) {
            return Err(NotSpent::Again);
        }
        if shard.now.len() + shard.before.len() >= self.most {
            return Err(NotSpent::Full);
        }
        shard.now.insert(id);
        Ok(())
    }
}

impl Default for Spent {
    /// Remembers a million proofs at once: 8 000 a second, for as long as each could be used again.
    fn default() -> Self {
        Self::of(MOST)
    }
}

impl Generations {
    /// Forgets what cannot be used any more. A clock that steps back forgets nothing.
    fn turn(&mut self, now: Timestamp) {
        let age = now.since(self.began);
        if age < GENERATION {
            return;
        }
        self.before = core::mem::take(&mut self.now);
        if age >= GENERATION * 2 {
            self.before = HashSet::new();
        }
        self.began = now;
    }
}

impl fmt::Debug for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spent").finish_non_exhaustive()
    }
}

/// Why a proof was not spent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NotSpent {
    /// It has been used before.
    Again,
    /// There is no place to remember it.
    Full,
}

const SHARDS: usize = 16;
const MOST: usize = 1_000_000;
/// As long as any proof could be used again: what is in the generation before was not good any more when that began.
const GENERATION: Duration = LONGEST;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_remembered_for_as_long_as_it_could_be_used_again() {
        // Wherever in a generation it comes: at its beginning, in its middle, at its end.
        for offset in [0, 1, 60, 119] {
            let spent = Spent::default();
            let at = |seconds: u64| Timestamp::from_secs(1_700_000_000 + seconds);
            spent.spend(&id(1, 9), at(0)).unwrap();
            spent.spend(&id(1, 1), at(offset)).unwrap();

            for later in 0..120 {
                let again = spent.spend(&id(1, 1), at(offset + later));
                assert_eq!(again, Err(NotSpent::Again), "{offset} + {later}");
            }
        }
    }

    #[test]
    fn it_is_forgotten_afterwards_and_makes_room() {
        let spent = Spent::of(SHARDS);
        let at = Timestamp::from_secs;
        spent.spend(&[1; 32], at(1_000)).unwrap();
        assert_eq!(spent.spend(&id(1, 2), at(1_000)), Err(NotSpent::Full));

        assert_eq!(spent.spend(&id(1, 2), at(1_119)), Err(NotSpent::Full));
        assert_eq!(spent.spend(&id(1, 2), at(1_241)), Ok(()));
    }

    #[test]
    fn a_full_memory_refuses_new_proofs_and_forgets_no_old_ones() {
        let spent = Spent::of(4 * SHARDS);
        let now = Timestamp::from_secs(1_000);
        let outcomes: Vec<_> = (0..6).map(|n| spent.spend(&id(7, n), now).is_ok()).collect();

        assert_eq!(outcomes, [true, true, true, true, false, false]);
        assert_eq!(spent.spend(&id(7, 0), now), Err(NotSpent::Again));
        assert_eq!(spent.spend(&id(8, 0), now), Ok(()), "another shard has room");
    }

    #[test]
    fn a_clock_that_steps_back_forgets_nothing() {
        let spent = Spent::default();
        spent.spend(&[1; 32], Timestamp::from_secs(10_000)).unwrap();

        assert_eq!(spent.spend(&[1; 32], Timestamp::from_secs(500)), Err(NotSpent::Again));
    }

    fn id(shard: u8, number: u8) -> [u8; 32] {
        let mut id = [number; 32];
        id[0] = shard;
        id
    }
}
