//! Failed logins: how many an address or a user name has had lately at one authorization server.
//!
//! Every way in counts there together, a session's login and Basic credentials: who guesses at one after the other has
//! no more guesses than at one alone. Each refuses by its own limit, and where a name has logged in by one of them it
//! is exempt at all.
//!
//! Both are counted, because each alone is easily walked around: one address
//! trying many names, many addresses trying one. A name counts whether it
//! exists or not. A name gets far more failures than an address, and addresses
//! from which it has logged in lately are exempt from its limit: otherwise any
//! stranger could lock out a chosen person.
//!
//! An attempt takes a place before the authorization server is called, and
//! gives it back unless the credentials were refused; of a name, also if they were not taken for whatever
//! reason: some servers answer a wrong password as if it were their own trouble. While all places are
//! taken, others wait for what becomes of those: of twenty guesses sent at once
//! only the allowed number is tried, and a crowd that logs in rightly at the same
//! moment is not refused. An answer from memory waits in the same way
//! ([`LoginThrottle::admit`]), so that it tells no more than the authorization server would.

use core::fmt;
use core::hash::BuildHasher;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use aws_lc_rs::digest;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::user_name::folded;
use crate::base::clock::{Clock, Timestamp};
use crate::session::settings;

/// One way in to an authorization server, with the failures that it allows.
pub(crate) struct LoginThrottle {
    allowed: settings::Failures,
    counts: Arc<Counts>,
}

/// Counts of failures at one authorization server, by address and by name; bounded.
pub(crate) struct Counts {
    clock: Clock,
    /// What any way in allows, or did before a reload.
    rules: RwLock<Vec<settings::Failures>>,
    /// By a keyed hash: two names share a count once in 2⁶⁴, and nobody can choose which.
    by_key: Cache<u64, Arc<FailureCount>>,
    /// Names with addresses from which they have logged in lately, by the whole of both: what exempts must be exact.
    familiar: Cache<KnownPair, ()>,
    hash: RandomState,
    /// Attempts under way.
    under_way: AtomicUsize,
    /// When the latest attempt failed, in nanoseconds.
    failed_at: AtomicU64,
}

impl Counts {
    pub(crate) fn new(clock: Clock) -> Self {
        let by_key = Cache::builder()
            .max_capacity(MAX_COUNTS)
            // The latest count is the one that matters: never refuse to keep it.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let familiar = Cache::builder()
            .max_capacity(MAX_KNOWN_PAIRS)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(KNOWN_PAIR_RETENTION)
            .build();
        Self {
            clock,
            rules: RwLock::default(),
            by_key,
            familiar,
            hash: RandomState::new(),
            under_way: AtomicUsize::new(0),
            failed_at: AtomicU64::new(0),
        }
    }

    fn rules(&self) -> RwLockReadGuard<'_, Vec<settings::Failures>> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LoginThrottle {
    /// A way in that allows so many, counted in `counts`.
    pub(crate) fn new(allowed: settings::Failures, counts: Arc<Counts>) -> Self {
        let mut rules = counts.rules.write().unwrap_or_else(PoisonError::into_inner);
        if !rules.contains(&allowed) {
            rules.push(allowed);
        }
        drop(rules);
        Self { allowed, counts }
    }

    /// Waits until an attempt of `user` from `address` would get a place, without taking one. To be asked before
    /// anything that is remembered about credentials is answered.
    ///
    /// # Errors
    ///
    /// [`TooMany`] if either has used up its failures.
    pub(crate) async fn admit(&self, user: &str, address: IpAddr) -> Result<(), TooMany> {
        let failed_at = Timestamp::from_nanos(self.counts.failed_at.load(SeqCst));
        if self.counts.under_way.load(SeqCst) == 0
            && self.counts.clock.now().since(failed_at) >= self.allowed.window
        {
            return Ok(());
        }
        for (key, allowed) in self.keys(user, address).asked(self) {
            let Some(count) = self.counts.by_key.get(&key) else { continue };
            count.wait(|state| state.look(allowed, self)).await?;
            // The place that was waited for is still free.
            count.freed.notify_one();
        }
        Ok(())
    }

    /// Begins an attempt of `user` from `address`, as soon as there are places for it.
    ///
    /// # Errors
    ///
    /// [`TooMany`] if either has used up its failures.
    pub(crate) async fn begin(&self, user: &str, address: IpAddr) -> Result<LoginAttempt, TooMany> {
        self.counts.under_way.fetch_add(1, SeqCst);
        let keys = self.keys(user, address);
        let mut attempt = LoginAttempt {
            counts: Arc::clone(&self.counts),
            familiar: keys.familiar,
            places: Vec::new(),
        };
        for (key, allowed) in keys.asked(self) {
            let count = self.counts.by_key.get_with(key, Arc::default);
            count.wait(|state| state.take(allowed, self)).await?;
            attempt.places.push(AttemptPermit { count, kept: false });
        }
        Ok(attempt)
    }

    /// `user` has proved to be who they are from `address`.
    pub(crate) fn recognized(&self, user: &str, address: IpAddr) {
        self.counts.familiar.insert(self.keys(user, address).familiar, ());
    }

    fn keys(&self, user: &str, address: IpAddr) -> CounterKeys {
        let (name, network) = (folded(user), network(address));
        let hash = &self.counts.hash;
        CounterKeys {
            address: hash.hash_one(("address", network)),
            name: hash.hash_one(("name", &name)),
            familiar: familiar(&name, network),
        }
    }
}

/// Under what an attempt is counted.
struct CounterKeys {
    address: u64,
    name: u64,
    familiar: KnownPair,
}

/// SHA-256 of a network and a name.
type KnownPair = [u8; 32];

fn familiar(name: &str, network: u64) -> KnownPair {
    let mut whole = digest::Context::new(&digest::SHA256);
    whole.update(&network.to_be_bytes());
    whole.update(name.as_bytes());
    let mut familiar = [0; 32];
    familiar.copy_from_slice(whole.finish().as_ref());
    familiar
}

impl CounterKeys {
    /// The counts that an attempt needs a place of, always in this order, and how many failures each is allowed.
    fn asked(&self, failures: &LoginThrottle) -> impl Iterator<Item = (u64, u32)> {
        let by_address = failures.allowed.count;
        let by_name = by_address.saturating_mul(NAME_FACTOR);
        let name = failures.counts.familiar.get(&self.familiar).is_none();
        [(self.address, by_address)].into_iter().chain(name.then_some((self.name, by_name)))
    }
}

/// The failures of one address or name, and the attempts under way.
#[derive(Default)]
struct FailureCount {
    state: Mutex<State>,
    /// Told of each place that is given back, and when there will be none.
    freed: Notify,
}

#[derive(Default)]
struct State {
    /// For each length of window that some way in has.
    windows: Vec<Window>,
    under_way: u32,
}

struct Window {
    length: Duration,
    since: Timestamp,
    failed: u32,
}

impl Window {
    fn has_passed(&self, now: Timestamp) -> bool {
        now.since(self.since) >= self.length
    }
}

/// Why there is no place.
enum LimitReached {
    /// As many have failed as are allowed.
    Failed(TooMany),
    /// All places are taken by attempts under way.
    UnderWay,
}

impl FailureCount {
    /// Waits until `ask` finds a place.
    async fn wait(
        &self,
        ask: impl Fn(&mut State) -> Result<(), LimitReached>,
    ) -> Result<(), TooMany> {
        let mut deadline = None;
        loop {
            // Before the look: what is given back after it is told.
            let freed = self.freed.notified();
            match ask(&mut self.state()) {
                Ok(()) => return Ok(()),
                Err(LimitReached::Failed(too_many)) => return Err(too_many),
                Err(LimitReached::UnderWay) => {}
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + ADMISSION_TIMEOUT);
            if timeout_at(deadline, freed).await.is_err() {
                return Err(TooMany { retry_after: 1 });
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether there is a place.
    fn look(&self, allowed: u32, failures: &LoginThrottle) -> Result<(), LimitReached> {
        let (length, now) = (failures.allowed.window, failures.counts.clock.now());
        let window = self.windows.iter().find(|window| window.length == length);
        let window = window.filter(|window| !window.has_passed(now));
        let failed = window.map_or(0, |window| window.failed);
        if let Some(window) = window.filter(|window| window.failed >= allowed) {
            let left = length.saturating_sub(now.since(window.since));
            let retry_after = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            return Err(LimitReached::Failed(TooMany { retry_after }));
        }
        if failed.saturating_add(self.under_way) >= allowed {
            return Err(LimitReached::UnderWay);
        }
        Ok(())
    }

    /// Takes a place.
    fn take(&mut self, allowed: u32, failures: &LoginThrottle) -> Result<(), LimitReached> {
        self.look(allowed, failures)?;
        self.under_way += 1;
        Ok(())
    }

    /// Counts a failure in the window of each of `rules`.
    fn fail(&mut self, rules: &[settings::Failures], now: Timestamp) {
        self.windows.retain(|window| !window.has_passed(now));
        for rule in rules {
            if self.windows.iter().all(|window| window.length != rule.window) {
                self.windows.push(Window { length: rule.window, since: now, failed: 0 });
            }
        }
        for window in &mut self.windows {
            window.failed = window.failed.saturating_add(1);
        }
    }
}

/// One attempt to log in, of which only failure leaves a trace. Dropped, it gives its places back.
pub(crate) struct LoginAttempt {
    counts: Arc<Counts>,
    familiar: KnownPair,
    /// The address's, and the name's if it needs one.
    places: Vec<AttemptPermit>,
}

impl LoginAttempt {
    /// The credentials were refused: by the authorization server, or by an answer that says as much.
    pub(crate) fn failed(mut self) {
        self.count(0);
    }

    /// The authorization server neither took nor refused the credentials. It counts for the name alone: of one address
    /// many may find the server in trouble.
    pub(crate) fn undecided(mut self) {
        self.count(1);
    }

    /// Counts it in all places but the first so many.
    fn count(&mut self, but: usize) {
        let (rules, now) = (self.counts.rules(), self.counts.clock.now());
        self.counts.failed_at.store(now.as_nanos(), SeqCst);
        for place in self.places.iter_mut().skip(but) {
            place.kept = true;
            place.count.state().fail(&rules, now);
        }
    }

    /// The authorization server took the credentials.
    pub(crate) fn passed(self) {
        self.counts.familiar.insert(self.familiar, ());
    }
}

impl Drop for LoginAttempt {
    fn drop(&mut self) {
        // Who waits by a stricter limit may not take the place that another waits for.
        let differ = self.counts.rules().len() > 1;
        for place in self.places.drain(..) {
            place.give_back(differ);
        }
        self.counts.under_way.fetch_sub(1, SeqCst);
    }
}

impl fmt::Debug for LoginAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").finish_non_exhaustive()
    }
}

/// A place among the attempts of an address or name.
struct AttemptPermit {
    count: Arc<FailureCount>,
    /// Whether a failure has taken it for the rest of the window.
    kept: bool,
}

impl AttemptPermit {
    /// Tells one of those who wait for it, or `all`.
    fn give_back(self, all: bool) {
        self.count.state().under_way -= 1;
        if self.kept || all {
            // There may be no place any more: all who wait look again.
            self.count.freed.notify_waiters();
        } else {
            self.count.freed.notify_one();
        }
    }
}

impl fmt::Debug for LoginThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failures").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

/// A name or an address has used up its failures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many failed logins")]
pub(crate) struct TooMany {
    /// Seconds until the next attempt is heard, at least 1.
    pub(crate) retry_after: u64,
}

/// What one customer of a provider gets: an IPv4 address, or an IPv6 network of 64 bits.
pub(crate) fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => (u128::from(address) >> 64) as u64 | 1 << 63,
    }
}

/// Waits until a multiple of [`RESPONSE_TIME_STEP`] has passed: how long an issuer thinks about a name tells nothing.
pub(crate) async fn pad_response_time(took: Duration) {
    let over = took.as_nanos() % RESPONSE_TIME_STEP.as_nanos();
    let over = Duration::from_nanos(u64::try_from(over).unwrap_or(0));
    tokio::time::sleep(RESPONSE_TIME_STEP.saturating_sub(over)).await;
}

/// Names and addresses counted at once, each some hundred bytes.
const MAX_COUNTS: u64 = 100_000;
/// Names with addresses that are exempt from the limit by name.
const MAX_KNOWN_PAIRS: u64 = 200_000;
/// How long a name that comes no more from an address is exempt there.
const KNOWN_PAIR_RETENTION: Duration = Duration::from_secs(30 * 86_400);
/// How many times the failures of an address a name has.
const NAME_FACTOR: u32 = 20;
/// How long an attempt waits for those that have taken all places.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The least time after which a refused login is answered, and a multiple of
/// which it takes: how long an issuer thinks about a name tells nothing.
const RESPONSE_TIME_STEP: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
