//! Failed logins: how many an address or a user name has had lately.
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
//! ([`Failures::admit`]), so that it tells no more than the authorization server would.

use core::fmt;
use core::hash::BuildHasher;
use core::net::IpAddr;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_lc_rs::digest;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::settings;
use super::spelling::folded;
use crate::base::clock::{Clock, Timestamp};

/// Counts of failures, by address and by name; bounded.
pub(super) struct Failures {
    allowed: settings::Failures,
    clock: Clock,
    /// By a keyed hash: two names share a count once in 2⁶⁴, and nobody can choose which.
    counts: Cache<u64, Arc<Count>>,
    /// Names with addresses from which they have logged in lately, by the whole of both: what exempts must be exact.
    familiar: Cache<Familiar, ()>,
    hash: RandomState,
    /// Attempts under way.
    under_way: AtomicUsize,
    /// When the latest attempt failed, in nanoseconds.
    failed_at: AtomicU64,
}

impl Failures {
    pub(super) fn new(allowed: settings::Failures, clock: Clock) -> Self {
        let counts = Cache::builder()
            .max_capacity(MAX_COUNTS)
            // The latest count is the one that matters: never refuse to keep it.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(allowed.window)
            .build();
        let familiar = Cache::builder()
            .max_capacity(MAX_FAMILIAR)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(FAMILIAR_FOR)
            .build();
        Self {
            allowed,
            clock,
            counts,
            familiar,
            hash: RandomState::new(),
            under_way: AtomicUsize::new(0),
            failed_at: AtomicU64::new(0),
        }
    }

    /// Waits until an attempt of `user` from `address` would get a place, without taking one. To be asked before
    /// anything that is remembered about credentials is answered.
    ///
    /// # Errors
    ///
    /// [`TooMany`] if either has used up its failures.
    pub(super) async fn admit(&self, user: &str, address: IpAddr) -> Result<(), TooMany> {
        let failed_at = Timestamp::from_nanos(self.failed_at.load(SeqCst));
        if self.under_way.load(SeqCst) == 0
            && self.clock.now().since(failed_at) >= self.allowed.window
        {
            return Ok(());
        }
        for (key, allowed) in self.keys(user, address).asked(self) {
            let Some(count) = self.counts.get(&key) else { continue };
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
    pub(super) async fn begin(
        self: &Arc<Self>,
        user: &str,
        address: IpAddr,
    ) -> Result<Attempt, TooMany> {
        self.under_way.fetch_add(1, SeqCst);
        let keys = self.keys(user, address);
        let mut attempt =
            Attempt { failures: Arc::clone(self), familiar: keys.familiar, places: Vec::new() };
        for (key, allowed) in keys.asked(self) {
            let count = self.counts.get_with(key, Arc::default);
            count.wait(|state| state.take(allowed, self)).await?;
            attempt.places.push(Place { count, kept: false });
        }
        Ok(attempt)
    }

    /// `user` has proved to be who they are from `address`.
    pub(super) fn recognized(&self, user: &str, address: IpAddr) {
        self.familiar.insert(self.keys(user, address).familiar, ());
    }

    fn keys(&self, user: &str, address: IpAddr) -> Keys {
        let (name, network) = (folded(user), network(address));
        Keys {
            address: self.hash.hash_one(("address", network)),
            name: self.hash.hash_one(("name", &name)),
            familiar: familiar(&name, network),
        }
    }
}

/// Under what an attempt is counted.
struct Keys {
    address: u64,
    name: u64,
    familiar: Familiar,
}

/// SHA-256 of a network and a name.
type Familiar = [u8; 32];

fn familiar(name: &str, network: u64) -> Familiar {
    let mut whole = digest::Context::new(&digest::SHA256);
    whole.update(&network.to_be_bytes());
    whole.update(name.as_bytes());
    let mut familiar = [0; 32];
    familiar.copy_from_slice(whole.finish().as_ref());
    familiar
}

impl Keys {
    /// The counts that an attempt needs a place of, always in this order, and how many failures each is allowed.
    fn asked(&self, failures: &Failures) -> impl Iterator<Item = (u64, u32)> {
        let by_address = failures.allowed.count;
        let by_name = by_address.saturating_mul(NAME_FACTOR);
        let name = failures.familiar.get(&self.familiar).is_none();
        [(self.address, by_address)].into_iter().chain(name.then_some((self.name, by_name)))
    }
}

/// The failures of one address or name, and the attempts under way.
#[derive(Default)]
struct Count {
    state: Mutex<State>,
    /// Told of each place that is given back, and when there will be none.
    freed: Notify,
}

#[derive(Default)]
struct State {
    since: Timestamp,
    failed: u32,
    under_way: u32,
}

/// Why there is no place.
enum Full {
    /// As many have failed as are allowed.
    Failed(TooMany),
    /// All places are taken by attempts under way.
    UnderWay,
}

impl Count {
    /// Waits until `ask` finds a place.
    async fn wait(&self, ask: impl Fn(&mut State) -> Result<(), Full>) -> Result<(), TooMany> {
        let mut deadline = None;
        loop {
            // Before the look: what is given back after it is told.
            let freed = self.freed.notified();
            match ask(&mut self.state()) {
                Ok(()) => return Ok(()),
                Err(Full::Failed(too_many)) => return Err(too_many),
                Err(Full::UnderWay) => {}
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + PATIENCE);
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
    fn look(&self, allowed: u32, failures: &Failures) -> Result<(), Full> {
        let window = failures.allowed.window;
        let age = failures.clock.now().since(self.since);
        let failed = if age < window { self.failed } else { 0 };
        if failed >= allowed {
            let left = window.saturating_sub(age);
            let retry_after = left.as_secs() + u64::from(left.subsec_nanos() > 0);
            return Err(Full::Failed(TooMany { retry_after }));
        }
        if failed.saturating_add(self.under_way) >= allowed {
            return Err(Full::UnderWay);
        }
        Ok(())
    }

    /// Takes a place.
    fn take(&mut self, allowed: u32, failures: &Failures) -> Result<(), Full> {
        self.look(allowed, failures)?;
        self.under_way += 1;
        Ok(())
    }

    fn fail(&mut self, failures: &Failures) {
        let now = failures.clock.now();
        if now.since(self.since) >= failures.allowed.window {
            (self.since, self.failed) = (now, 0);
        }
        self.failed = self.failed.saturating_add(1);
    }
}

/// One attempt to log in, of which only failure leaves a trace. Dropped, it gives its places back.
pub(super) struct Attempt {
    failures: Arc<Failures>,
    familiar: Familiar,
    /// The address's, and the name's if it needs one.
    places: Vec<Place>,
}

impl Attempt {
    /// The credentials were refused: by the authorization server, or by an answer that says as much.
    pub(super) fn failed(mut self) {
        self.count(0);
    }

    /// The authorization server neither took nor refused the credentials. It counts for the name alone: of one address
    /// many may find the server in trouble.
    pub(super) fn undecided(mut self) {
        self.count(1);
    }

    /// Counts it in all places but the first so many.
    fn count(&mut self, but: usize) {
        let failures = &self.failures;
        failures.failed_at.store(failures.clock.now().as_nanos(), SeqCst);
        for place in self.places.iter_mut().skip(but) {
            place.kept = true;
            place.count.state().fail(failures);
        }
    }

    /// The authorization server took the credentials.
    pub(super) fn passed(self) {
        self.failures.familiar.insert(self.familiar, ());
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.places.clear();
        self.failures.under_way.fetch_sub(1, SeqCst);
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").finish_non_exhaustive()
    }
}

/// A place among the attempts of an address or name.
struct Place {
    count: Arc<Count>,
    /// Whether a failure has taken it for the rest of the window.
    kept: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.count.state().under_way -= 1;
        if self.kept {
            // There may be no place any more: all who wait look again.
            self.count.freed.notify_waiters();
        } else {
            self.count.freed.notify_one();
        }
    }
}

impl fmt::Debug for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failures").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

/// A name or an address has used up its failures.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too many failed logins")]
pub(super) struct TooMany {
    /// Seconds until the next attempt is heard, at least 1.
    pub(super) retry_after: u64,
}

/// What one customer of a provider gets: an IPv4 address, or an IPv6 network of 64 bits.
pub(super) fn network(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(u32::from(address)),
        IpAddr::V6(address) => (u128::from(address) >> 64) as u64 | 1 << 63,
    }
}

/// Waits until a multiple of [`STEP`] has passed: how long an issuer thinks about a name tells nothing.
pub(super) async fn even_out(took: Duration) {
    let over = took.as_nanos() % STEP.as_nanos();
    let over = Duration::from_nanos(u64::try_from(over).unwrap_or(0));
    tokio::time::sleep(STEP.saturating_sub(over)).await;
}

/// Names and addresses counted at once, each some hundred bytes.
const MAX_COUNTS: u64 = 100_000;
/// Names with addresses that are exempt from the limit by name.
const MAX_FAMILIAR: u64 = 200_000;
/// How long a name that comes no more from an address is exempt there.
const FAMILIAR_FOR: Duration = Duration::from_secs(30 * 86_400);
/// How many times the failures of an address a name has.
const NAME_FACTOR: u32 = 20;
/// How long an attempt waits for those that have taken all places.
const PATIENCE: Duration = Duration::from_secs(10);

/// The least time after which a refused login is answered, and a multiple of
/// which it takes: how long an issuer thinks about a name tells nothing.
const STEP: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use core::future::poll_fn;
    use core::task::Poll;

    use futures_util::FutureExt;

    use super::*;

    const HOME: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1));
    const WINDOW: Duration = Duration::from_secs(60);

    fn two_a_minute() -> (Arc<Failures>, Clock) {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let allowed = settings::Failures { count: 2, window: WINDOW };
        (Arc::new(Failures::new(allowed, clock.clone())), clock)
    }

    /// An address of its own for each `n`.
    fn from(n: u32) -> IpAddr {
        IpAddr::from(core::net::Ipv4Addr::from(0x0a00_0000 + n))
    }

    /// An attempt that does not have to wait.
    fn begin(failures: &Arc<Failures>, user: &str, address: IpAddr) -> Result<Attempt, TooMany> {
        failures.begin(user, address).now_or_never().expect("there is a place, or none will be")
    }

    fn fail(failures: &Arc<Failures>, user: &str, address: IpAddr) -> Result<(), TooMany> {
        begin(failures, user, address).map(Attempt::failed)
    }

    fn admitted(failures: &Failures, user: &str, address: IpAddr) -> Option<Result<(), TooMany>> {
        failures.admit(user, address).now_or_never()
    }

    #[test]
    fn an_address_is_refused_whatever_name_it_tries() {
        let (failures, clock) = two_a_minute();

        assert_eq!(fail(&failures, "a", HOME), Ok(()));
        clock.advance(Duration::from_millis(19_500));
        assert_eq!(fail(&failures, "b", HOME), Ok(()));
        assert_eq!(fail(&failures, "c", HOME), Err(TooMany { retry_after: 41 }));
        assert_eq!(admitted(&failures, "d", HOME), Some(Err(TooMany { retry_after: 41 })));
        assert!(begin(&failures, "a", from(1)).is_ok());
    }

    #[test]
    fn a_name_is_refused_only_after_far_more_failures_than_an_address() {
        let (failures, _) = two_a_minute();
        for n in 0..2 * NAME_FACTOR {
            assert_eq!(fail(&failures, "alice", from(n)), Ok(()), "{n}");
        }

        assert!(fail(&failures, "alice", from(1_000)).is_err());
        assert!(matches!(admitted(&failures, "alice", from(1_000)), Some(Err(_))));
        assert!(begin(&failures, "bob", from(1_000)).is_ok());
    }

    #[test]
    fn where_a_name_has_logged_in_lately_the_failures_of_others_lock_nobody_out() {
        let (failures, _) = two_a_minute();
        begin(&failures, "alice", HOME).unwrap().passed();
        failures.recognized("Alice", from(5_000));
        for n in 0..2 * NAME_FACTOR {
            fail(&failures, "alice", from(n)).unwrap();
        }

        for familiar in [HOME, from(5_000)] {
            assert_eq!(admitted(&failures, "ALICE", familiar), Some(Ok(())));
            assert!(begin(&failures, "alice", familiar).is_ok());
        }
        assert!(begin(&failures, "alice", from(5_001)).is_err());
        // There the address's own limit holds all the same.
        fail(&failures, "alice", HOME).unwrap();
        fail(&failures, "alice", HOME).unwrap();
        assert!(begin(&failures, "alice", HOME).is_err());
    }

    #[test]
    fn it_is_heard_again_when_the_window_is_over() {
        let (failures, clock) = two_a_minute();
        for _ in 0..2 {
            fail(&failures, "alice", HOME).unwrap();
        }

        clock.advance(WINDOW);

        assert_eq!(admitted(&failures, "alice", HOME), Some(Ok(())));
        assert_eq!(fail(&failures, "alice", HOME), Ok(()));
        assert_eq!(fail(&failures, "alice", HOME), Ok(()));
        assert!(fail(&failures, "alice", HOME).is_err());
    }

    #[test]
    fn a_name_is_exempt_only_where_exactly_it_has_logged_in() {
        let all: Vec<_> = ["a", "b", "ab", ""]
            .into_iter()
            .flat_map(|name| [1, 2, 1 << 63].map(|network| familiar(name, network)))
            .collect();
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
    }

    #[test]
    fn what_is_neither_taken_nor_refused_counts_for_the_name_alone() {
        let (failures, _) = two_a_minute();
        for n in 0..2 * NAME_FACTOR {
            let attempt = begin(&failures, "alice", HOME);
            attempt.unwrap_or_else(|error| panic!("{n}: {error}")).undecided();
        }

        assert!(begin(&failures, "alice", HOME).is_err());
        assert!(begin(&failures, "ALICE", from(1)).is_err());
        begin(&failures, "bob", HOME).unwrap().passed();
        for _ in 0..=2 * NAME_FACTOR {
            begin(&failures, "bob", HOME).unwrap().undecided();
        }
    }

    #[test]
    fn success_and_what_was_never_answered_give_their_places_back() {
        let (failures, _) = two_a_minute();
        for _ in 0..10 {
            begin(&failures, "alice", HOME).unwrap().passed();
            drop(begin(&failures, "alice", HOME).unwrap());
        }
        assert!(begin(&failures, "alice", HOME).is_ok());
        assert_eq!(failures.under_way.load(SeqCst), 0);
    }

    #[tokio::test]
    async fn of_twenty_guesses_at_once_only_the_allowed_ones_are_tried() {
        let (failures, _) = two_a_minute();
        let tried = Arc::new(AtomicUsize::new(0));
        let guesses = (0..20).map(|_| {
            let (failures, tried) = (Arc::clone(&failures), Arc::clone(&tried));
            async move {
                let attempt = failures.begin("alice", HOME).await?;
                tried.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
                attempt.failed();
                Ok::<_, TooMany>(())
            }
        });

        let told = futures_util::future::join_all(guesses).await;

        assert_eq!(tried.load(SeqCst), 2);
        assert_eq!(told.iter().filter(|told| told.is_ok()).count(), 2);
    }

    #[tokio::test]
    async fn a_crowd_that_logs_in_rightly_is_not_refused() {
        let (failures, _) = two_a_minute();
        let crowd = (0..50).map(|n| {
            let failures = Arc::clone(&failures);
            async move {
                let attempt = failures.begin(&format!("user{n}"), HOME).await?;
                tokio::task::yield_now().await;
                attempt.passed();
                Ok::<_, TooMany>(())
            }
        });

        let told = futures_util::future::join_all(crowd).await;

        assert!(told.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn an_answer_from_memory_waits_for_the_attempts_under_way() {
        let (failures, _) = two_a_minute();
        let one = begin(&failures, "alice", HOME).unwrap();
        let two = begin(&failures, "alice", HOME).unwrap();
        let mut admitted = Box::pin(failures.admit("alice", HOME));
        let mut another = Box::pin(failures.admit("alice", HOME));
        poll_fn(|cx| {
            assert!(admitted.poll_unpin(cx).is_pending() && another.poll_unpin(cx).is_pending());
            Poll::Ready(())
        })
        .await;

        one.passed();
        assert_eq!((admitted.await, another.await), (Ok(()), Ok(())));

        let three = begin(&failures, "alice", HOME).unwrap();
        let admitted = failures.admit("alice", HOME);
        let (told, ()) = futures_util::future::join(admitted, async {
            two.failed();
            three.failed();
        })
        .await;
        assert!(told.is_err());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one() {
        let (failures, _) = two_a_minute();
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();

        fail(&failures, "a", v6("2001:db8::1")).unwrap();
        fail(&failures, "b", v6("2001:db8::2")).unwrap();
        assert!(fail(&failures, "c", v6("2001:db8::3")).is_err());
        assert!(fail(&failures, "c", v6("2001:db8:0:1::3")).is_ok());

        fail(&failures, "d", HOME).unwrap();
        fail(&failures, "e", v6("::ffff:192.0.2.1")).unwrap();
        assert!(fail(&failures, "f", HOME).is_err());
    }

    #[test]
    fn a_flood_of_names_costs_bounded_memory() {
        let (failures, _) = two_a_minute();
        for n in 0..MAX_COUNTS + 5_000 {
            failures.counts.get_with(n, Arc::default);
        }
        failures.counts.run_pending_tasks();

        assert!(failures.counts.entry_count() <= MAX_COUNTS);
        assert!(failures.counts.contains_key(&(MAX_COUNTS + 4_999)));
    }
}
