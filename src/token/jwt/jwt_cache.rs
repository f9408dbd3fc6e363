//! Verdicts on signed tokens, kept as long as what made them holds.
//!
//! A verdict dies with the token's `exp`, with the signing key that made it
//! (a key that left its issuer's set is retired), and with a revocation. Only
//! good tokens are kept, so that a stream of bad ones evicts nothing.
//!
//! Nearly every request asks here, and with many clients most of what it
//! touches has left the processor's caches. So a token's hash names one short
//! row, two cache lines, and there is nothing else to look at or to keep in
//! order: no list of who was asked last, no second thread. The hash is fast and
//! keyed, and the token is compared whole: a third of what SHA-256 would cost,
//! and exact.

use core::fmt;
use core::hash::BuildHasher;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;

use crate::base::clock::Timestamp;
use crate::issuer::Key;
use crate::observe::metrics::Gauge;
use crate::token::principal::Principal;
use crate::token::revocation::list::{RevocationFeed, RevocationListener};

/// Verdicts by token.
pub(crate) struct JwtCache {
    rows: Box<[Bucket]>,
    hash: RandomState,
    /// The row that is looked through next for what has ended.
    next: AtomicUsize,
    entries: Arc<Gauge>,
}

/// The places that a token may be in, and their lock.
#[derive(Default)]
#[repr(align(128))]
struct Bucket(Mutex<Entries>);

type Entries = [Option<Slot>; ENTRIES_PER_BUCKET];

struct Slot {
    /// Half of the token's hash: others are told apart without a look at them.
    hash: u32,
    /// When it was asked for last, in seconds.
    asked: u32,
    verdict: Box<CachedJwt>,
}

struct CachedJwt {
    token: Box<str>,
    principal: Arc<Principal>,
    key: Arc<Key>,
    expires: Timestamp,
    /// How many places it counts for.
    weight: usize,
}

impl JwtCache {
    /// Keeps at most `most` verdicts, rounded up to whole rows, and fewer if tokens are large.
    /// `entries` shows how many there are.
    pub(crate) fn new(most: u64, entries: Arc<Gauge>) -> Self {
        let rows = usize::try_from(most).unwrap_or(usize::MAX).div_ceil(ENTRIES_PER_BUCKET).max(1);
        let rows = (0..rows).map(|_| Bucket::default()).collect();
        Self { rows, hash: RandomState::default(), next: AtomicUsize::new(0), entries }
    }

    /// Who `token` speaks for, if that is known and still holds.
    pub(crate) fn find(&self, token: &[u8], now: Timestamp) -> Option<Arc<Principal>> {
        let hash = self.hash.hash_one(token);
        let mut row = self.row(hash).lock();
        let found = row.iter_mut().find(|place| is_of(place.as_ref(), hash, token))?;
        match found {
            Some(Slot { asked, verdict, .. }) if verdict.holds(now) => {
                *asked = seconds(now);
                Some(Arc::clone(&verdict.principal))
            }
            _ => {
                self.clear(found);
                None
            }
        }
    }

    /// Keeps what was verified with `key`, until the token ends.
    pub(crate) fn keep(
        &self,
        token: &str,
        principal: Arc<Principal>,
        key: Arc<Key>,
        now: Timestamp,
    ) {
        // Whoever comes makes room for one more: what has ended leaves as fast as what is new comes.
        let next = self.next.fetch_add(1, Relaxed) % self.rows.len();
        self.clear_all(&mut self.rows[next].lock(), |verdict| !verdict.holds(now));

        let expires = principal.expires;
        let weight = (capacity(token.len() + principal.size()) as usize).min(ENTRIES_PER_BUCKET);
        let verdict = Box::new(CachedJwt { token: token.into(), principal, key, expires, weight });
        if !verdict.holds(now) {
            return;
        }
        let hash = self.hash.hash_one(token.as_bytes());
        let mut row = self.row(hash).lock();
        self.clear_all(&mut row, |kept| !kept.holds(now) || *kept.token == *token);
        self.make_room(&mut row, weight);
        if let Some(free) = row.iter_mut().find(|place| place.is_none()) {
            *free = Some(Slot { hash: hash as u32, asked: seconds(now), verdict });
            self.entries.inc();
        }
    }

    /// Forgets one token.
    pub(crate) fn drop_token(&self, token: &str) {
        let mut row = self.row(self.hash.hash_one(token.as_bytes())).lock();
        self.clear_all(&mut row, |kept| *kept.token == *token);
    }

    /// Takes out what was not asked for the longest, until `weight` more fits in.
    fn make_room(&self, row: &mut Entries, weight: usize) {
        while taken(row) + weight > ENTRIES_PER_BUCKET {
            let held = row.iter_mut().filter(|place| place.is_some());
            let asked = |place: &&mut Option<Slot>| place.as_ref().map(|place| place.asked);
            let Some(last) = held.min_by_key(asked) else { return };
            self.clear(last);
        }
    }

    /// Takes out every verdict that `is_over`; returns how many.
    fn clear_all(&self, row: &mut Entries, is_over: impl Fn(&CachedJwt) -> bool) -> usize {
        let over =
            row.iter_mut().filter(|place| place.as_ref().is_some_and(|p| is_over(&p.verdict)));
        over.map(|place| self.clear(place)).count()
    }

    fn clear(&self, place: &mut Option<Slot>) {
        *place = None;
        self.entries.dec();
    }

    /// The row that the upper half of a hash names; the lower one names the place in it.
    fn row(&self, hash: u64) -> &Bucket {
        let rows = self.rows.len() as u64;
        &self.rows[(((hash >> 32) * rows) >> 32) as usize]
    }
}

impl CachedJwt {
    fn holds(&self, now: Timestamp) -> bool {
        now < self.expires && !self.key.is_retired()
    }
}

impl Bucket {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a place is that of `token`.
fn is_of(place: Option<&Slot>, hash: u64, token: &[u8]) -> bool {
    place
        .is_some_and(|place| place.hash == hash as u32 && *place.verdict.token.as_bytes() == *token)
}

/// How many of a row's places are taken; a large verdict counts for several.
fn taken(row: &Entries) -> usize {
    row.iter().flatten().map(|place| place.verdict.weight).sum()
}

/// Enough to tell who was asked last.
const fn seconds(now: Timestamp) -> u32 {
    now.as_secs() as u32
}

impl RevocationListener for JwtCache {
    fn forget(&self, news: &RevocationFeed, revoked: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.is_of_a_visit() {
            return 0;
        }
        let over = |verdict: &CachedJwt| revoked(&verdict.principal);
        self.rows.iter().map(|row| self.clear_all(&mut row.lock(), over)).sum()
    }
}

impl Drop for JwtCache {
    fn drop(&mut self) {
        // The gauge counts what several hold.
        for row in &self.rows {
            self.clear_all(&mut row.lock(), |_| true);
        }
    }
}

impl fmt::Debug for JwtCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdicts").field("entries", &self.entries.value()).finish_non_exhaustive()
    }
}

/// Places that something of this many bytes takes in a cache, so that what is
/// large cannot fill the memory although entries are counted.
pub(crate) fn capacity(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(ENTRY_BYTES)).unwrap_or(u32::MAX).max(1)
}

/// What a usual token with its principal fits into, in bytes.
const ENTRY_BYTES: usize = 8 * 1024;
/// As many as two cache lines hold.
const ENTRIES_PER_BUCKET: usize = 7;
const _: () = assert!(size_of::<Bucket>() == 128, "a row is two cache lines");
