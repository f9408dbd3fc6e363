//! Login throttling: limits on failed logins per client address and per user name, at one authorization server.
//!
//! The login page of sessions and Basic credentials have one budget of failures. Each refuses by its own limit; a user
//! name that has logged in through one of them is exempt at both.
//!
//! Both keys are needed, because each alone is easily evaded: one address trying many names, many addresses trying one.
//! Names count whether they exist or not. A name may have far more failures than an address, and addresses from which
//! it has logged in recently are exempt from its limit: otherwise a stranger could lock out a chosen user. There the
//! pair of both has a count of its own, and the address may have as many failures as a name: otherwise one client that
//! guesses, or repeats an old password, would lock out all users behind the same address translation.
//!
//! An attempt takes permits before the authorization server is called, and releases them unless the credentials were
//! refused. An unclear outcome counts against the name too: some servers report a wrong password as a server error.
//! While attempts under way hold all permits, others wait for their outcome: of twenty simultaneous guesses only the
//! allowed number is tried, and many users who log in correctly at the same moment are not refused. A cached response
//! waits in the same way ([`LoginThrottle::admit`]), so that it reveals no more than the authorization server would.

use core::fmt;
use core::hash::BuildHasher;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use aws_lc_rs::digest;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::user_name::folded;
use crate::base::clock::{Clock, Timestamp};
use crate::base::lock::IgnorePoison;

/// A number of failures in a window of time.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Failures {
    /// At least 1.
    pub count: u32,
    /// Counted from the first failure. At least 1 second.
    pub window: Duration,
}

/// The limit of one login method (a session's login page, or Basic credentials) at one authorization server.
pub(crate) struct LoginThrottle {
    allowed: Failures,
    counts: Arc<Counts>,
}

/// Counts of failures at one authorization server, by address and by name; bounded.
pub(crate) struct Counts {
    clock: Clock,
    /// The limits of all login methods, including those from before a reload.
    rules: RwLock<Vec<Failures>>,
    /// By a keyed hash: two names share a count with a probability of 2⁻⁶⁴, and no client can choose which.
    by_key: Cache<u64, Arc<FailureCount>>,
    /// Pairs of a name and an address from which it has logged in recently. By SHA-256 of the name as it was accepted,
    /// because an exemption must be exact: a name that merely folds alike may be another user's.
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
            // The latest count is the one that matters: never refuse to store it.
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

    fn rules(&self) -> RwLockReadGuard<'_, Vec<Failures>> {
        self.rules.read().ignore_poison()
    }
}

impl LoginThrottle {
    /// Returns a login method that allows this many failures, counted in `counts`.
    pub(crate) fn new(allowed: Failures, counts: Arc<Counts>) -> Self {
        let mut rules = counts.rules.write().ignore_poison();
        if !rules.contains(&allowed) {
            rules.push(allowed);
        }
        drop(rules);
        Self { allowed, counts }
    }

    /// Waits until an attempt of `user` from `address` would get its permits, without taking any. Called before a cached
    /// result of checking credentials is used.
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
        for (key, allowed) in self.keys(user, address).limits(self) {
            let Some(count) = self.counts.by_key.get(&key) else { continue };
            count.wait(|state| state.check(allowed, self)).await?;
            // The permit that was waited for is still free.
            count.freed.notify_one();
        }
        Ok(())
    }

    /// Begins an attempt of `user` from `address`, as soon as permits are free.
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
            is_familiar: keys.is_familiar,
            permits: Vec::new(),
        };
        for (key, allowed) in keys.limits(self) {
            let count = self.counts.by_key.get_with(key, Arc::default);
            count.wait(|state| state.take(allowed, self)).await?;
            attempt.permits.push(AttemptPermit { count, consumed: false });
        }
        Ok(attempt)
    }

    /// Records that `user` has authenticated from `address`.
    pub(crate) fn recognized(&self, user: &str, address: IpAddr) {
        self.counts.familiar.insert(self.keys(user, address).familiar, ());
    }

    fn keys(&self, user: &str, address: IpAddr) -> CounterKeys {
        let (name, network) = (folded(user), network(address));
        let hash = &self.counts.hash;
        // Who may log in as `alicé` is not known as `alice`: an exemption goes by the name to the byte.
        let familiar = familiar(user, network);
        let is_familiar = self.counts.familiar.get(&familiar).is_some();
        CounterKeys {
            address: hash.hash_one(("address", network)),
            name: if is_familiar {
                hash.hash_one(("pair", network, &name))
            } else {
                hash.hash_one(("name", &name))
            },
            familiar,
            is_familiar,
        }
    }
}

/// The keys that an attempt is counted under.
struct CounterKeys {
    address: u64,
    /// The name's, or that of the familiar pair.
    name: u64,
    familiar: KnownPair,
    is_familiar: bool,
}

/// SHA-256 of a network and a name, which is not folded.
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
    /// The counts that an attempt needs a permit of, always in this order, and how many failures each is allowed.
    fn limits(&self, throttle: &LoginThrottle) -> [(u64, u32); 2] {
        let few = throttle.allowed.count;
        let many = few.saturating_mul(NAME_FACTOR);
        let (by_address, by_name) = if self.is_familiar { (many, few) } else { (few, many) };
        [(self.address, by_address), (self.name, by_name)]
    }
}

/// The failures of one address or name, and the attempts under way.
#[derive(Default)]
struct FailureCount {
    state: Mutex<State>,
    /// Notified of each released permit, and when a failure leaves none.
    freed: Notify,
}

#[derive(Default)]
struct State {
    /// One for each length of window among the login methods.
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

/// The reason why no permit is free.
enum LimitReached {
    /// The allowed number of attempts has failed.
    Failed(TooMany),
    /// Attempts under way hold all permits.
    UnderWay,
}

impl FailureCount {
    /// Waits until `ask` succeeds.
    async fn wait(
        &self,
        ask: impl Fn(&mut State) -> Result<(), LimitReached>,
    ) -> Result<(), TooMany> {
        let mut deadline = None;
        loop {
            // Registered before the check, so that a release in between is not missed.
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
        self.state.lock().ignore_poison()
    }
}

impl State {
    /// Checks that a permit is free.
    fn check(&self, allowed: u32, throttle: &LoginThrottle) -> Result<(), LimitReached> {
        let (length, now) = (throttle.allowed.window, throttle.counts.clock.now());
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

    /// Takes a permit.
    fn take(&mut self, allowed: u32, throttle: &LoginThrottle) -> Result<(), LimitReached> {
        self.check(allowed, throttle)?;
        self.under_way += 1;
        Ok(())
    }

    /// Counts a failure in the window of each of `rules`.
    fn fail(&mut self, rules: &[Failures], now: Timestamp) {
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

/// One attempt to log in. Only a failure is counted; releases its permits on drop.
pub(crate) struct LoginAttempt {
    counts: Arc<Counts>,
    familiar: KnownPair,
    is_familiar: bool,
    /// The address's, and the name's or that of the familiar pair.
    permits: Vec<AttemptPermit>,
}

impl LoginAttempt {
    /// Counts a failure: the credentials were refused, by the authorization server or by a cached response.
    pub(crate) fn failed(mut self) {
        self.count(0);
    }

    /// Counts an unclear outcome, against the name only: if the server is in trouble, many users of one address see
    /// that.
    pub(crate) fn undecided(mut self) {
        self.count(if self.is_familiar { 2 } else { 1 });
    }

    /// Counts a failure against all permits but the first `but`.
    fn count(&mut self, but: usize) {
        let (rules, now) = (self.counts.rules(), self.counts.clock.now());
        self.counts.failed_at.store(now.as_nanos(), SeqCst);
        for permit in self.permits.iter_mut().skip(but) {
            permit.consumed = true;
            permit.count.state().fail(&rules, now);
        }
    }

    /// Records that the authorization server accepted the credentials.
    pub(crate) fn passed(self) {
        self.counts.familiar.insert(self.familiar, ());
    }
}

impl Drop for LoginAttempt {
    fn drop(&mut self) {
        // A waiter with a stricter limit must not consume the notification that another waits for.
        let differ = self.counts.rules().len() > 1;
        for permit in self.permits.drain(..) {
            permit.release(differ);
        }
        self.counts.under_way.fetch_sub(1, SeqCst);
    }
}

impl fmt::Debug for LoginAttempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginAttempt").finish_non_exhaustive()
    }
}

/// A permit of an address or a name.
struct AttemptPermit {
    count: Arc<FailureCount>,
    /// Whether a failure has used it up for the rest of the window.
    consumed: bool,
}

impl AttemptPermit {
    /// Releases the permit and notifies one waiter, or `all`.
    fn release(self, all: bool) {
        self.count.state().under_way -= 1;
        if self.consumed || all {
            // Possibly none is free any more: all waiters check again.
            self.count.freed.notify_waiters();
        } else {
            self.count.freed.notify_one();
        }
    }
}

impl fmt::Debug for LoginThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginThrottle").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}

/// A name or an address has reached its limit of failed logins.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many failed logins")]
pub(crate) struct TooMany {
    /// Seconds until the next attempt is allowed, at least 1.
    pub(crate) retry_after: u64,
}

/// The network of one customer of a provider: an IPv4 address, or an IPv6 prefix of 64 bits.
pub(crate) fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => (u128::from(address) >> 64) as u64 | 1 << 63,
    }
}

/// Waits until a multiple of [`RESPONSE_TIME_STEP`] has passed, so that the issuer's timing reveals nothing about a name.
pub(crate) async fn pad_response_time(took: Duration) {
    let over = took.as_nanos() % RESPONSE_TIME_STEP.as_nanos();
    let over = Duration::from_nanos(u64::try_from(over).unwrap_or(0));
    tokio::time::sleep(RESPONSE_TIME_STEP.saturating_sub(over)).await;
}

/// Names and addresses counted at once, some hundred bytes each.
const MAX_COUNTS: u64 = 100_000;
/// Names with addresses that are exempt from the limit by name.
const MAX_KNOWN_PAIRS: u64 = 200_000;
/// The time after its last login for which a name stays exempt at an address.
const KNOWN_PAIR_RETENTION: Duration = Duration::from_secs(30 * 86_400);
/// A name may have this many times the failures of an address, and so may an address for names that it is familiar with.
const NAME_FACTOR: u32 = 20;
/// The time an attempt waits for permits.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The response time of a refused login is a multiple of this, so that the
/// issuer's timing reveals nothing about a name.
const RESPONSE_TIME_STEP: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests;
