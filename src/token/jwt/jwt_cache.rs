//! The cache of verified JWTs.
//!
//! An entry ends with the token's `exp`, with the signing key that verified it
//! (a key removed from its issuer's set is retired), and with a revocation. Only
//! valid tokens are cached, so that a stream of bad ones evicts none.
//!
//! Nearly every request looks here, and with many clients most of the memory it
//! touches has left the processor's caches. So a token's hash selects one short
//! bucket of two cache lines, and there is nothing else to read or maintain: no
//! usage list, no second thread. The hash is fast and keyed, and the token is
//! compared whole: a third of the cost of SHA-256, and exact.

use core::fmt;
use core::hash::BuildHasher;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use foldhash::fast::RandomState;

use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;
use crate::issuer::Key;
use crate::observe::metrics::Gauge;
use crate::token::principal::Principal;
use crate::token::revocation::event::{RevocationEvent, RevocationListener};

/// Verified JWTs.
pub(crate) struct JwtCache {
    buckets: Box<[Bucket]>,
    hash: RandomState,
    /// The next bucket to be searched for ended entries.
    next: AtomicUsize,
    entries: Arc<Gauge>,
}

/// The slots that a token may be in, and their lock.
#[derive(Default)]
#[repr(align(128))]
struct Bucket(Mutex<Entries>);

type Entries = [Option<Slot>; ENTRIES_PER_BUCKET];

struct Slot {
    /// Half of the token's hash, compared first: most other tokens differ here.
    hash: u32,
    /// The time of last use, in seconds.
    last_used: u32,
    entry: Box<CachedJwt>,
}

struct CachedJwt {
    token: Box<str>,
    principal: Arc<Principal>,
    key: Arc<Key>,
    expires: Timestamp,
    /// The number of slots that the entry counts for.
    weight: usize,
}

impl JwtCache {
    /// Returns a cache of `max` entries, rounded up to whole buckets, and fewer if tokens are large.
    /// `entries` is set to their number.
    pub(crate) fn new(max: u64, entries: Arc<Gauge>) -> Self {
        let buckets =
            usize::try_from(max).unwrap_or(usize::MAX).div_ceil(ENTRIES_PER_BUCKET).max(1);
        let buckets = (0..buckets).map(|_| Bucket::default()).collect();
        Self { buckets, hash: RandomState::default(), next: AtomicUsize::new(0), entries }
    }

    /// Returns the principal of `token`, if it is cached and still valid.
    pub(crate) fn find(&self, token: &[u8], now: Timestamp) -> Option<Arc<Principal>> {
        let hash = self.hash.hash_one(token);
        let mut bucket = self.bucket(hash).lock();
        let found = bucket.iter_mut().find(|slot| is_of(slot.as_ref(), hash, token))?;
        match found {
            Some(Slot { last_used, entry, .. }) if entry.is_valid(now) => {
                *last_used = seconds(now);
                Some(Arc::clone(&entry.principal))
            }
            _ => {
                self.clear(found);
                None
            }
        }
    }

    /// Caches the principal of a token verified with `key`, until the token expires.
    pub(crate) fn keep(
        &self,
        token: &str,
        principal: Arc<Principal>,
        key: Arc<Key>,
        now: Timestamp,
    ) {
        // Each insertion makes room for one more: ended entries leave as fast as new ones come.
        let next = self.next.fetch_add(1, Relaxed) % self.buckets.len();
        self.clear_all(&mut self.buckets[next].lock(), |entry| !entry.is_valid(now));

        let expires = principal.expires;
        let weight = (capacity(token.len() + principal.size()) as usize).min(ENTRIES_PER_BUCKET);
        let entry = Box::new(CachedJwt { token: token.into(), principal, key, expires, weight });
        if !entry.is_valid(now) {
            return;
        }
        let hash = self.hash.hash_one(token.as_bytes());
        let mut bucket = self.bucket(hash).lock();
        self.clear_all(&mut bucket, |kept| !kept.is_valid(now) || *kept.token == *token);
        self.make_room(&mut bucket, weight);
        if let Some(free) = bucket.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(Slot { hash: hash as u32, last_used: seconds(now), entry });
            self.entries.inc();
        }
    }

    /// Removes one token.
    pub(crate) fn drop_token(&self, token: &str) {
        let mut bucket = self.bucket(self.hash.hash_one(token.as_bytes())).lock();
        self.clear_all(&mut bucket, |kept| *kept.token == *token);
    }

    /// Evicts the least recently used entries until `weight` more fits.
    fn make_room(&self, bucket: &mut Entries, weight: usize) {
        while occupied(bucket) + weight > ENTRIES_PER_BUCKET {
            let held = bucket.iter_mut().filter(|slot| slot.is_some());
            let last_used = |slot: &&mut Option<Slot>| slot.as_ref().map(|slot| slot.last_used);
            let Some(last) = held.min_by_key(last_used) else { return };
            self.clear(last);
        }
    }

    /// Removes every entry that `is_over`; returns their number.
    fn clear_all(&self, bucket: &mut Entries, is_over: impl Fn(&CachedJwt) -> bool) -> usize {
        let ended =
            bucket.iter_mut().filter(|slot| slot.as_ref().is_some_and(|p| is_over(&p.entry)));
        ended.map(|slot| self.clear(slot)).count()
    }

    fn clear(&self, slot: &mut Option<Slot>) {
        *slot = None;
        self.entries.dec();
    }

    /// The bucket that the upper half of a hash selects; the lower one is stored in the slot.
    fn bucket(&self, hash: u64) -> &Bucket {
        let buckets = self.buckets.len() as u64;
        &self.buckets[(((hash >> 32) * buckets) >> 32) as usize]
    }
}

impl CachedJwt {
    fn is_valid(&self, now: Timestamp) -> bool {
        now < self.expires && !self.key.is_retired()
    }
}

impl Bucket {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().ignore_poison()
    }
}

/// Whether a slot holds `token`.
fn is_of(slot: Option<&Slot>, hash: u64, token: &[u8]) -> bool {
    slot.is_some_and(|slot| slot.hash == hash as u32 && *slot.entry.token.as_bytes() == *token)
}

/// The number of occupied slots; a large entry counts for several.
fn occupied(bucket: &Entries) -> usize {
    bucket.iter().flatten().map(|slot| slot.entry.weight).sum()
}

/// Whole seconds, enough to order uses.
const fn seconds(now: Timestamp) -> u32 {
    now.as_secs() as u32
}

impl RevocationListener for JwtCache {
    fn forget(&self, news: &RevocationEvent, revoked: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.is_of_gateway_session() {
            return 0;
        }
        let ended = |entry: &CachedJwt| revoked(&entry.principal);
        self.buckets.iter().map(|bucket| self.clear_all(&mut bucket.lock(), ended)).sum()
    }
}

impl Drop for JwtCache {
    fn drop(&mut self) {
        // Several caches share the gauge.
        for bucket in &self.buckets {
            self.clear_all(&mut bucket.lock(), |_| true);
        }
    }
}

impl fmt::Debug for JwtCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtCache").field("entries", &self.entries.value()).finish_non_exhaustive()
    }
}

/// Returns the number of slots that an entry of this many bytes counts for, so that
/// large entries cannot fill the memory although entries are counted.
pub(crate) fn capacity(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(ENTRY_BYTES)).unwrap_or(u32::MAX).max(1)
}

/// Bytes of a typical token with its principal.
const ENTRY_BYTES: usize = 8 * 1024;
/// As many as two cache lines hold.
const ENTRIES_PER_BUCKET: usize = 7;
const _: () = assert!(size_of::<Bucket>() == 128, "a bucket is two cache lines");
