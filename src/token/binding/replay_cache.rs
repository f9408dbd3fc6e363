//! Which `DPoP` proofs have been used, for as long as they could be used again (RFC 9449 §11.1).
//!
//! Exact, where a cache would not be: what a cache evicts can be used a second
//! time. Two generations take turns, so that forgetting costs nothing, and when
//! both are full new proofs are refused rather than old ones forgotten. One key
//! gets a quarter of the places, so that no client uses up those of all others.

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::dpop::MAX_AGE;
use crate::base::clock::{Clock, Timestamp};
use crate::disk::journal::Kind;
use crate::disk::{Directory, Journal, OpenError, Record, WriteFailed};

/// The proofs that have been used. Shared by all threads, and kept across reloads.
pub struct ReplayCache {
    shards: [Mutex<Generations>; SHARDS],
    /// Proofs that one shard remembers at once.
    most: usize,
    /// Where they are kept for the next process, if they are.
    journal: OnceLock<Journal>,
}

/// Those of the last while, and those of the while before.
#[derive(Default)]
struct Generations {
    now: Generation,
    before: Generation,
}

#[derive(Default)]
struct Generation {
    began: Timestamp,
    /// How many seconds after that each proof was used: fewer than a generation has.
    proofs: HashMap<Half, u8>,
    /// How many of them each key has signed, by half of its thumbprint: only refuses.
    by_key: HashMap<Half, usize>,
}

impl Generation {
    fn of(&self, key: Half) -> usize {
        self.by_key.get(&key).copied().unwrap_or(0)
    }

    /// When each proof was used, at the earliest.
    fn used(&self) -> impl Iterator<Item = (&Half, Timestamp)> {
        let at = |seconds: u8| self.began.plus_secs(seconds.into());
        self.proofs.iter().map(move |(proof, seconds)| (proof, at(*seconds)))
    }
}

/// Half of a SHA-256 tells any two proofs of other people's keys apart.
type Half = [u8; 16];

impl ReplayCache {
    /// Remembers `most` proofs at once.
    fn of(most: usize) -> Self {
        Self { shards: Default::default(), most: most.div_ceil(SHARDS), journal: OnceLock::new() }
    }

    /// Keeps what is used from now on in `directory`, and remembers what the processes before have kept there.
    ///
    /// # Errors
    ///
    /// If that cannot be read.
    pub fn keep_in(self: &Arc<Self>, directory: &Directory, clock: Clock) -> Result<(), OpenError> {
        let this: Weak<Self> = Arc::downgrade(self);
        let heard = Box::new(move |records: &[Record]| {
            if let Some(this) = this.upgrade() {
                this.remember(records);
            }
        });
        let (journal, records) = Journal::open(directory.clone(), JOURNAL_KIND, clock, heard)?;
        self.remember(&records);
        // Only a test opens it twice.
        let _ = self.journal.set(journal);
        Ok(())
    }

    /// Waits until it is on disk that the proof known by `id` was used at `now`, where that is kept at all.
    ///
    /// # Errors
    ///
    /// [`NotKept`] if it could be used again after a restart.
    pub(crate) async fn keep(&self, id: &[u8; 32], now: Timestamp) -> Result<(), WriteFailed> {
        let Some(journal) = self.journal.get() else { return Ok(()) };
        let record = Record::new([(PROOF, written(id))], now, now.plus(MAX_AGE));
        let place = journal.append(record);
        journal.wait(place).await
    }

    fn remember(&self, records: &[Record]) {
        for record in records {
            let name = record.fields().next().filter(|(kind, _)| kind == PROOF);
            let Some(id) = name.and_then(|(_, name)| read(&name)) else {
                tracing::error!("A record of a used proof is of no kind known here.");
                continue;
            };
            if self.insert(&id, None, record.at) == Err(ReplayError::Full) {
                tracing::error!("Too many proofs were used before the start to remember them all.");
                return;
            }
        }
    }

    /// Remembers that the proof known by `id`, which `key` has signed, is used now.
    ///
    /// # Errors
    ///
    /// [`ReplayError::Again`] if it has been used before, [`ReplayError::Full`] if
    /// there is no place to remember it, or none for this key.
    pub(crate) fn check_and_record(
        &self,
        id: &[u8; 32],
        key: &[u8; 32],
        now: Timestamp,
    ) -> Result<(), ReplayError> {
        self.insert(id, Some(half(key)), now)
    }

    /// The proofs of each shard that were used less than `life` before `now`, by their [names](name_of), and how much of
    /// that is left of each; as long as they are remembered here.
    pub(crate) fn standing(
        &self,
        life: Duration,
        now: Timestamp,
    ) -> impl Iterator<Item = Vec<(String, Duration)>> {
        self.shards.iter().map(move |shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let used = shard.now.used().chain(shard.before.used());
            let left = used.map(|(proof, at)| (proof, life.saturating_sub(now.since(at))));
            let standing = left.filter(|(_, left)| !left.is_zero());
            standing.map(|(proof, left)| (URL_SAFE_NO_PAD.encode(proof), left)).collect()
        })
    }

    fn insert(
        &self,
        id: &[u8; 32],
        key: Option<Half>,
        used_at: Timestamp,
    ) -> Result<(), ReplayError> {
        let [shard, ..] = *id;
        let id = half(id);
        let shard = &self.shards[usize::from(shard) % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.turn(used_at);
        let Generations { now, before, .. } = &mut *shard;
        if now.proofs.contains_key(&id) || before.proofs.contains_key(&id) {
            return Err(ReplayError::Again);
        }
        let most_of_a_key = self.most.div_ceil(HASHES_PER_PROOF);
        let is_greedy = key.is_some_and(|key| now.of(key) + before.of(key) >= most_of_a_key);
        if is_greedy || now.proofs.len() + before.proofs.len() >= self.most {
            return Err(ReplayError::Full);
        }
        let seconds = used_at.since(now.began).as_secs();
        now.proofs.insert(id, u8::try_from(seconds).unwrap_or(u8::MAX));
        if let Some(key) = key {
            *now.by_key.entry(key).or_default() += 1;
        }
        Ok(())
    }
}

/// The second half of a SHA-256.
fn half(sum: &[u8; 32]) -> Half {
    core::array::from_fn(|index| sum[16 + index])
}

/// What gateways that share a Redis call the proof known by `id`: all that each of them remembers of it.
pub(crate) fn name_of(id: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(half(id))
}

impl Default for ReplayCache {
    /// Remembers a million proofs at once: 8 000 a second, for as long as each could be used again.
    fn default() -> Self {
        Self::of(MAX_PROOFS)
    }
}

impl Generations {
    /// Forgets what cannot be used any more. A clock that steps back forgets nothing.
    fn turn(&mut self, now: Timestamp) {
        let age = now.since(self.now.began);
        if age < GENERATION {
            return;
        }
        self.before = core::mem::take(&mut self.now);
        if age >= GENERATION * 2 {
            self.before = Generation::default();
        }
        self.now.began = now;
    }
}

impl fmt::Debug for ReplayCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spent").finish_non_exhaustive()
    }
}

/// What of `id` is remembered: its first byte, and its second half.
fn written(id: &[u8; 32]) -> String {
    let mut known = [0; DIGEST_BYTES];
    known[0] = id[0];
    known[1..].copy_from_slice(&id[16..]);
    URL_SAFE_NO_PAD.encode(known)
}

fn read(name: &str) -> Option<[u8; 32]> {
    let known: [u8; DIGEST_BYTES] = URL_SAFE_NO_PAD.decode(name).ok()?.try_into().ok()?;
    let mut id = [0; 32];
    id[0] = known[0];
    id[16..].copy_from_slice(&known[1..]);
    Some(id)
}

/// Why a proof was not spent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ReplayError {
    /// It has been used before.
    Again,
    /// There is no place to remember it.
    Full,
}

const JOURNAL_KIND: Kind = Kind { name: "proofs", most: 2 * MAX_PROOFS };
const PROOF: &str = "proof";
/// Bytes of what a proof is known by.
const DIGEST_BYTES: usize = 17;
const SHARDS: usize = 16;
/// How many keys must come together to use up all places.
const HASHES_PER_PROOF: usize = 4;
const MAX_PROOFS: usize = 1_000_000;
/// As long as any proof could be used again: what is in the generation before was not good any more when that began.
const GENERATION: Duration = MAX_AGE;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [5; 32];

    #[test]
    fn a_proof_is_remembered_for_as_long_as_it_could_be_used_again() {
        // Wherever in a generation it comes: at its beginning, in its middle, at its end.
        for offset in [0, 1, 60, 119] {
            let spent = ReplayCache::default();
            let at = |seconds: u64| Timestamp::from_secs(1_700_000_000 + seconds);
            spent.check_and_record(&id(1, 9), &KEY, at(0)).unwrap();
            spent.check_and_record(&id(1, 1), &KEY, at(offset)).unwrap();

            for later in 0..120 {
                let again = spent.check_and_record(&id(1, 1), &KEY, at(offset + later));
                assert_eq!(again, Err(ReplayError::Again), "{offset} + {later}");
            }
        }
    }

    #[test]
    fn it_is_forgotten_afterwards_and_makes_room() {
        let spent = ReplayCache::of(SHARDS);
        let at = Timestamp::from_secs;
        spent.check_and_record(&[1; 32], &KEY, at(1_000)).unwrap();
        assert_eq!(spent.check_and_record(&id(1, 2), &KEY, at(1_000)), Err(ReplayError::Full));

        assert_eq!(spent.check_and_record(&id(1, 2), &KEY, at(1_119)), Err(ReplayError::Full));
        assert_eq!(spent.check_and_record(&id(1, 2), &KEY, at(1_241)), Ok(()));
    }

    #[test]
    fn a_full_memory_refuses_new_proofs_and_forgets_no_old_ones() {
        let spent = ReplayCache::of(4 * SHARDS);
        let now = Timestamp::from_secs(1_000);
        let outcomes: Vec<_> =
            (0..6).map(|n| spent.check_and_record(&id(7, n), &[n; 32], now).is_ok()).collect();

        assert_eq!(outcomes, [true, true, true, true, false, false]);
        assert_eq!(spent.check_and_record(&id(7, 0), &KEY, now), Err(ReplayError::Again));
        assert_eq!(spent.check_and_record(&id(8, 0), &KEY, now), Ok(()), "another shard has room");
    }

    #[tokio::test]
    async fn a_proof_is_used_up_for_the_next_process_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let directory = Directory::at(directory.path());
        let now = Timestamp::from_secs(1_700_000_000);
        let (before, after) = (Arc::new(ReplayCache::default()), Arc::new(ReplayCache::default()));
        before.keep_in(&directory, Clock::manual(now)).unwrap();
        for proof in [id(1, 1), id(2, 9)] {
            before.check_and_record(&proof, &KEY, now).unwrap();
            before.keep(&proof, now).await.unwrap();
        }

        after.keep_in(&directory, Clock::manual(now.plus_secs(100))).unwrap();

        let later = now.plus_secs(100);
        assert_eq!(after.check_and_record(&id(1, 1), &KEY, later), Err(ReplayError::Again));
        assert_eq!(after.check_and_record(&id(2, 9), &KEY, later), Err(ReplayError::Again));
        assert_eq!(after.check_and_record(&id(2, 1), &KEY, later), Ok(()));
    }

    #[test]
    fn what_stands_is_named_with_the_rest_of_its_life() {
        let spent = ReplayCache::default();
        let at = |seconds: u64| Timestamp::from_secs(1_700_000_000 + seconds);
        let standing = |now| {
            let mut all: Vec<_> =
                spent.standing(Duration::from_secs(150), at(now)).flatten().collect();
            all.sort_by_key(|(_, left)| *left);
            all.into_iter().map(|(name, left)| (name, left.as_secs())).collect::<Vec<_>>()
        };
        for (second, proof) in [(0, id(1, 1)), (100, id(1, 2)), (130, id(1, 3))] {
            spent.check_and_record(&proof, &KEY, at(second)).unwrap();
        }

        let [first, second, third] = [1, 2, 3].map(|number| name_of(&id(1, number)));
        let all = [(first, 10), (second.clone(), 110), (third.clone(), 140)];
        assert_eq!(standing(140), all);
        assert_eq!(standing(160), [(second, 90), (third, 120)]);
        assert_eq!(standing(400), []);
    }

    #[test]
    fn a_clock_that_steps_back_forgets_nothing() {
        let spent = ReplayCache::default();
        spent.check_and_record(&[1; 32], &KEY, Timestamp::from_secs(10_000)).unwrap();

        assert_eq!(
            spent.check_and_record(&[1; 32], &KEY, Timestamp::from_secs(500)),
            Err(ReplayError::Again)
        );
    }

    #[test]
    fn one_key_does_not_use_up_the_places_of_all_others() {
        let spent = ReplayCache::of(16 * SHARDS);
        let now = Timestamp::from_secs(1_000);
        let spend = |key: u8, n: u8, now| spent.check_and_record(&id(7, n), &[key; 32], now);

        let greedy = (0..20).filter(|n| spend(1, *n, now).is_ok()).count();
        assert_eq!(greedy, 4);
        assert_eq!(spend(1, 0, now), Err(ReplayError::Again));
        for key in 2..4 {
            let others = (0..4).map(|n| spend(key, 20 + 4 * key + n, now));
            assert!(others.into_iter().all(|spent| spent.is_ok()), "{key}");
        }

        // In the generation before it counts as well, and is forgotten with that.
        assert_eq!(spend(1, 100, Timestamp::from_secs(1_119)), Err(ReplayError::Full));
        assert_eq!(spend(1, 100, Timestamp::from_secs(1_241)), Ok(()));
    }

    fn id(shard: u8, number: u8) -> [u8; 32] {
        let mut id = [number; 32];
        id[0] = shard;
        id
    }
}
