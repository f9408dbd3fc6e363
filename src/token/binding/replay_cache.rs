//! The replay cache: `DPoP` proofs that were used, for as long as they could be used again (RFC 9449 §11.1).
//!
//! Exact, unlike a cache that evicts: an evicted proof could be used a second
//! time. Two generations alternate, so that expiry costs nothing, and when both
//! are full new proofs are refused rather than old ones evicted. One key gets a
//! quarter of the capacity, so that one client cannot exhaust it.

use core::fmt;
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::base::clock::{Clock, Timestamp};
use crate::base::lock::IgnorePoison;
use crate::disk::record::Kind;
use crate::disk::{Directory, Journal, OpenError, Record, WriteFailed};

/// The used proofs. Shared by all threads; survives reloads.
pub struct ReplayCache {
    shards: [Mutex<Generations>; SHARDS],
    /// The capacity of one shard, in proofs.
    max_proofs: usize,
    /// The journal for the next process, with a state directory.
    journal: OnceLock<Journal>,
}

/// The current and the previous generation.
#[derive(Default)]
struct Generations {
    now: Generation,
    before: Generation,
}

#[derive(Default)]
struct Generation {
    began: Timestamp,
    /// The second of the generation in which each proof was used.
    proofs: HashMap<Half, u8>,
    /// The number of proofs per key, by half of its thumbprint; only used to refuse.
    by_key: HashMap<Half, usize>,
}

impl Generation {
    fn of(&self, key: Half) -> usize {
        self.by_key.get(&key).copied().unwrap_or(0)
    }

    /// The earliest time at which each proof was used.
    fn used(&self) -> impl Iterator<Item = (&Half, Timestamp)> {
        let at = |seconds: u8| self.began.plus_secs(seconds.into());
        self.proofs.iter().map(move |(proof, seconds)| (proof, at(*seconds)))
    }
}

/// Half of a SHA-256 distinguishes proofs of keys that an attacker cannot choose.
type Half = [u8; 16];

impl ReplayCache {
    /// Returns a cache with a capacity of `max_proofs`.
    fn with_capacity(max_proofs: usize) -> Self {
        Self {
            shards: Default::default(),
            max_proofs: max_proofs.div_ceil(SHARDS),
            journal: OnceLock::new(),
        }
    }

    /// Persists used proofs in `directory` from now on, and loads those of earlier processes.
    ///
    /// # Errors
    ///
    /// `OpenError` if the journal cannot be read.
    pub fn keep_in(self: &Arc<Self>, directory: &Directory, clock: Clock) -> Result<(), OpenError> {
        let this: Weak<Self> = Arc::downgrade(self);
        let on_records = Box::new(move |records: &[Record]| {
            if let Some(this) = this.upgrade() {
                this.load(records);
            }
        });
        let (journal, records) = Journal::open(directory.clone(), JOURNAL_KIND, clock, on_records)?;
        self.load(&records);
        // Only a test opens it twice.
        let _ = self.journal.set(journal);
        Ok(())
    }

    /// Waits until the use of the proof `id` at `now` is on disk, with a state directory.
    ///
    /// # Errors
    ///
    /// [`WriteFailed`] if the proof could be used again after a restart.
    pub(crate) async fn keep(&self, id: &[u8; 32], now: Timestamp) -> Result<(), WriteFailed> {
        let Some(journal) = self.journal.get() else { return Ok(()) };
        let record = Record::new([(PROOF, encode(id))], now, now.plus(MAX_AGE));
        let position = journal.append(record);
        journal.wait(position).await
    }

    fn load(&self, records: &[Record]) {
        for record in records {
            let name = record.fields().next().filter(|(kind, _)| kind == PROOF);
            let Some(id) = name.and_then(|(_, name)| decode(&name)) else {
                tracing::error!(
                    "Ignored a record of unknown kind in the journal of used DPoP proofs."
                );
                continue;
            };
            if self.insert(&id, None, record.at) == Err(ReplayError::Full) {
                tracing::error!(
                    "The journal has more used DPoP proofs than fit; some could be used again."
                );
                return;
            }
        }
    }

    /// Records that the proof `id`, signed by `key`, is used now.
    ///
    /// # Errors
    ///
    /// [`ReplayError::Again`] if it was used before, [`ReplayError::Full`] if
    /// the capacity, or that of this key, is exhausted.
    pub(crate) fn check_and_record(
        &self,
        id: &[u8; 32],
        key: &[u8; 32],
        now: Timestamp,
    ) -> Result<(), ReplayError> {
        self.insert(id, Some(half(key)), now)
    }

    /// Returns the proofs of each shard that were used less than `life` before `now`, by [`name_of`], and the rest of
    /// that time for each.
    pub(crate) fn recent(
        &self,
        life: Duration,
        now: Timestamp,
    ) -> impl Iterator<Item = Vec<(String, Duration)>> {
        self.shards.iter().map(move |shard| {
            let shard = shard.lock().ignore_poison();
            let used = shard.now.used().chain(shard.before.used());
            let left = used.map(|(proof, at)| (proof, life.saturating_sub(now.since(at))));
            let recent = left.filter(|(_, left)| !left.is_zero());
            recent.map(|(proof, left)| (URL_SAFE_NO_PAD.encode(proof), left)).collect()
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
        let mut shard = shard.lock().ignore_poison();
        shard.advance(used_at);
        let Generations { now, before, .. } = &mut *shard;
        if now.proofs.contains_key(&id) || before.proofs.contains_key(&id) {
            return Err(ReplayError::Again);
        }
        let max_per_key = self.max_proofs.div_ceil(HASHES_PER_PROOF);
        let key_is_full = key.is_some_and(|key| now.of(key) + before.of(key) >= max_per_key);
        if key_is_full || now.proofs.len() + before.proofs.len() >= self.max_proofs {
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

/// Returns the name under which instances share the proof `id` in Redis: all that each of them stores of it.
pub(crate) fn name_of(id: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(half(id))
}

impl Default for ReplayCache {
    /// Returns a cache of a million proofs: 8 000 a second, for as long as each could be used again.
    fn default() -> Self {
        Self::with_capacity(MAX_PROOFS)
    }
}

impl Generations {
    /// Drops an expired generation. A clock that steps back drops none.
    fn advance(&mut self, now: Timestamp) {
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
        f.debug_struct("ReplayCache").finish_non_exhaustive()
    }
}

/// The stored part of `id`: its first byte, and its second half.
fn encode(id: &[u8; 32]) -> String {
    let mut bytes = [0; DIGEST_BYTES];
    bytes[0] = id[0];
    bytes[1..].copy_from_slice(&id[16..]);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(name: &str) -> Option<[u8; 32]> {
    let bytes: [u8; DIGEST_BYTES] = URL_SAFE_NO_PAD.decode(name).ok()?.try_into().ok()?;
    let mut id = [0; 32];
    id[0] = bytes[0];
    id[16..].copy_from_slice(&bytes[1..]);
    Some(id)
}

/// The reason why a proof was not recorded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ReplayError {
    /// It was used before.
    Again,
    /// The capacity is exhausted.
    Full,
}

const JOURNAL_KIND: Kind = Kind {
    name: "proofs",
    title: "used_proofs",
    max_records: 2 * MAX_PROOFS,
    loss: "DPoP proofs that were used may be accepted once more",
};
const PROOF: &str = "proof";
/// Bytes of a stored digest.
const DIGEST_BYTES: usize = 17;
const SHARDS: usize = 16;
/// The number of keys that it takes to exhaust the capacity.
const HASHES_PER_PROOF: usize = 4;
const MAX_PROOFS: usize = 1_000_000;
/// Longer than any proof can be valid: proofs of the previous generation had expired when it began.
const GENERATION: Duration = MAX_AGE;

/// The maximum age of a proof by its `iat`: proofs are made for one request, at once.
pub(super) const LIFETIME: Duration = Duration::from_secs(60);

/// The allowed clock skew.
pub(super) const LEEWAY: Duration = Duration::from_secs(30);

/// The longest time for which a proof can be valid after its first use.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(LIFETIME.as_secs() + 2 * LEEWAY.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [5; 32];

    #[test]
    fn a_used_proof_is_stored_for_as_long_as_it_could_be_used_again() {
        // Used at the beginning, in the middle, and at the end of a generation.
        for offset in [0, 1, 60, 119] {
            let cache = ReplayCache::default();
            let at = |seconds: u64| Timestamp::from_secs(1_700_000_000 + seconds);
            cache.check_and_record(&id(1, 9), &KEY, at(0)).unwrap();
            cache.check_and_record(&id(1, 1), &KEY, at(offset)).unwrap();

            for later in 0..120 {
                let again = cache.check_and_record(&id(1, 1), &KEY, at(offset + later));
                assert_eq!(again, Err(ReplayError::Again), "{offset} + {later}");
            }
        }
    }

    #[test]
    fn expired_proofs_are_dropped_and_make_room() {
        let cache = ReplayCache::with_capacity(SHARDS);
        let at = Timestamp::from_secs;
        cache.check_and_record(&[1; 32], &KEY, at(1_000)).unwrap();
        assert_eq!(cache.check_and_record(&id(1, 2), &KEY, at(1_000)), Err(ReplayError::Full));

        assert_eq!(cache.check_and_record(&id(1, 2), &KEY, at(1_119)), Err(ReplayError::Full));
        assert_eq!(cache.check_and_record(&id(1, 2), &KEY, at(1_241)), Ok(()));
    }

    #[test]
    fn a_full_cache_refuses_new_proofs_and_drops_none() {
        let cache = ReplayCache::with_capacity(4 * SHARDS);
        let now = Timestamp::from_secs(1_000);
        let outcomes: Vec<_> =
            (0..6).map(|n| cache.check_and_record(&id(7, n), &[n; 32], now).is_ok()).collect();

        assert_eq!(outcomes, [true, true, true, true, false, false]);
        assert_eq!(cache.check_and_record(&id(7, 0), &KEY, now), Err(ReplayError::Again));
        assert_eq!(cache.check_and_record(&id(8, 0), &KEY, now), Ok(()), "another shard has room");
    }

    #[tokio::test]
    async fn the_next_process_knows_used_proofs() {
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
    fn recent_proofs_are_listed_with_their_remaining_time() {
        let cache = ReplayCache::default();
        let at = |seconds: u64| Timestamp::from_secs(1_700_000_000 + seconds);
        let recent = |now| {
            let mut all: Vec<_> =
                cache.recent(Duration::from_secs(150), at(now)).flatten().collect();
            all.sort_by_key(|(_, left)| *left);
            all.into_iter().map(|(name, left)| (name, left.as_secs())).collect::<Vec<_>>()
        };
        for (second, proof) in [(0, id(1, 1)), (100, id(1, 2)), (130, id(1, 3))] {
            cache.check_and_record(&proof, &KEY, at(second)).unwrap();
        }

        let [first, second, third] = [1, 2, 3].map(|number| name_of(&id(1, number)));
        let all = [(first, 10), (second.clone(), 110), (third.clone(), 140)];
        assert_eq!(recent(140), all);
        assert_eq!(recent(160), [(second, 90), (third, 120)]);
        assert_eq!(recent(400), []);
    }

    #[test]
    fn a_clock_that_steps_back_drops_no_proof() {
        let cache = ReplayCache::default();
        cache.check_and_record(&[1; 32], &KEY, Timestamp::from_secs(10_000)).unwrap();

        assert_eq!(
            cache.check_and_record(&[1; 32], &KEY, Timestamp::from_secs(500)),
            Err(ReplayError::Again)
        );
    }

    #[test]
    fn one_key_cannot_exhaust_the_capacity() {
        let cache = ReplayCache::with_capacity(16 * SHARDS);
        let now = Timestamp::from_secs(1_000);
        let spend = |key: u8, n: u8, now| cache.check_and_record(&id(7, n), &[key; 32], now);

        let greedy = (0..20).filter(|n| spend(1, *n, now).is_ok()).count();
        assert_eq!(greedy, 4);
        assert_eq!(spend(1, 0, now), Err(ReplayError::Again));
        for key in 2..4 {
            let others = (0..4).map(|n| spend(key, 20 + 4 * key + n, now));
            assert!(others.into_iter().all(|cache| cache.is_ok()), "{key}");
        }

        // In the previous generation it counts as well, and is dropped with it.
        assert_eq!(spend(1, 100, Timestamp::from_secs(1_119)), Err(ReplayError::Full));
        assert_eq!(spend(1, 100, Timestamp::from_secs(1_241)), Ok(()));
    }

    fn id(shard: u8, number: u8) -> [u8; 32] {
        let mut id = [number; 32];
        id[0] = shard;
        id
    }
}
