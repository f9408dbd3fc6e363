//! Failed logins: how many a user name or an address has had lately.
//!
//! Both are counted, because each alone is easily walked around: one address
//! trying many names, many addresses trying one. A name counts whether it
//! exists or not. Nothing is counted before the issuer has answered, so a
//! crowd behind one address logs in undisturbed; in return
//! [`Attempt::failed`] and [`Attempt::passed`] look once more, so that of a
//! hundred guesses sent at the same time only the allowed number is told
//! whether it was right.

use core::fmt;
use core::hash::BuildHasher;
use core::net::IpAddr;
use core::time::Duration;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, PoisonError};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::settings;
use crate::base::clock::{Clock, Timestamp};

/// Counts of failures, by name and by address; bounded.
pub(super) struct Failures {
    allowed: settings::Failures,
    clock: Clock,
    /// By a keyed hash: two names share a count once in 2⁶⁴, and nobody can choose which.
    counts: Cache<u64, Arc<Mutex<Count>>>,
    hash: RandomState,
}

#[derive(Default)]
struct Count {
    since: Timestamp,
    failed: u32,
}

impl Failures {
    pub(super) fn new(allowed: settings::Failures, clock: Clock) -> Self {
        let counts = Cache::builder()
            .max_capacity(MAX_COUNTS)
            // The latest count is the one that matters: never refuse to keep it.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_idle(allowed.window)
            .build();
        Self { allowed, clock, counts, hash: RandomState::new() }
    }

    /// Begins an attempt of `user` from `address`.
    ///
    /// # Errors
    ///
    /// [`TooMany`] if either has used up its failures.
    pub(super) fn begin(self: &Arc<Self>, user: &str, address: IpAddr) -> Result<Attempt, TooMany> {
        let user = self.hash.hash_one(("user", folded(user)));
        let address = self.hash.hash_one(("address", network(address)));
        let attempt = Attempt { failures: Arc::clone(self), user, address };
        attempt.look().map(|()| attempt)
    }

    fn left(&self, key: u64, now: Timestamp) -> Result<(), TooMany> {
        let Some(count) = self.counts.get(&key) else { return Ok(()) };
        let count = count.lock().unwrap_or_else(PoisonError::into_inner);
        let age = now.since(count.since);
        if age >= self.allowed.window || count.failed < self.allowed.count {
            return Ok(());
        }
        let left = self.allowed.window.saturating_sub(age);
        Err(TooMany { retry_after: left.as_secs() + u64::from(left.subsec_nanos() > 0) })
    }

    fn count(&self, key: u64, now: Timestamp) {
        let count = self.counts.get_with(key, Arc::default);
        let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
        if now.since(count.since) >= self.allowed.window {
            *count = Count { since: now, failed: 0 };
        }
        count.failed += 1;
    }
}

/// One attempt to log in, of which only failure leaves a trace.
#[derive(Debug)]
pub(super) struct Attempt {
    failures: Arc<Failures>,
    user: u64,
    address: u64,
}

impl Attempt {
    /// The issuer refused the credentials.
    ///
    /// # Errors
    ///
    /// [`TooMany`] if others failed meanwhile and this one may no longer be told.
    pub(super) fn failed(self) -> Result<(), TooMany> {
        let told = self.look();
        let now = self.failures.clock.now();
        self.failures.count(self.user, now);
        self.failures.count(self.address, now);
        told
    }

    /// The issuer took the credentials.
    ///
    /// # Errors
    ///
    /// [`TooMany`] if others failed meanwhile: a right guess among many is not told either.
    pub(super) fn passed(self) -> Result<(), TooMany> {
        self.look()
    }

    fn look(&self) -> Result<(), TooMany> {
        let now = self.failures.clock.now();
        self.failures.left(self.user, now).and(self.failures.left(self.address, now))
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

/// The name as a lenient issuer reads it: `ALICE`, ` alice` and full-width `ａｌｉｃｅ` are one person
/// to many, and so get the guesses of one. Where they are three, these share a count.
fn folded(name: &str) -> String {
    let narrow = |letter: char| match letter {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(letter as u32 - 0xfee0).unwrap_or(letter),
        other => other,
    };
    // What is not seen counts for nothing: spaces, joiners, marks of direction, variation and composition.
    let unseen = |letter: &char| {
        letter.is_whitespace()
            || matches!(letter,
                '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}')
    };
    let letters = name.chars().filter(|letter| !unseen(letter)).map(narrow);
    // By way of upper case, where `ß` is `SS` and `ſ` is `S`.
    letters.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

/// What one customer of a provider gets: an IPv4 address, or an IPv6 network of 64 bits.
fn network(address: IpAddr) -> u64 {
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

/// The least time after which a refused login is answered, and a multiple of
/// which it takes: how long an issuer thinks about a name tells nothing.
const STEP: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    const HOME: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 0, 2, 1));
    const WINDOW: Duration = Duration::from_secs(60);

    fn two_a_minute() -> (Arc<Failures>, Clock) {
        let clock = Clock::manual(Timestamp::from_secs(1_700_000_000));
        let allowed = settings::Failures { count: 2, window: WINDOW };
        (Arc::new(Failures::new(allowed, clock.clone())), clock)
    }

    fn fail(failures: &Arc<Failures>, user: &str, address: IpAddr) -> Result<(), TooMany> {
        failures.begin(user, address)?.failed()
    }

    #[test]
    fn a_name_is_refused_wherever_it_is_tried_from() {
        let (failures, clock) = two_a_minute();
        let from = |n: u8| IpAddr::from([192, 0, 2, n]);

        assert_eq!(fail(&failures, "alice", from(1)), Ok(()));
        clock.advance(Duration::from_millis(19_500));
        assert_eq!(fail(&failures, "alice", from(2)), Ok(()));
        assert_eq!(fail(&failures, "alice", from(3)), Err(TooMany { retry_after: 41 }));
        assert!(failures.begin("bob", from(3)).is_ok());
    }

    #[test]
    fn another_spelling_of_a_name_gets_no_guesses_of_its_own() {
        for spelling in [
            "ALICE",
            "aLiCe",
            " alice ",
            "alice\u{a0}",
            "al\u{200b}ice",
            "alice\u{fe0f}",
            "\u{feff}alice",
            "ａｌｉｃｅ",
            "Ａlice",
        ] {
            let (failures, _) = two_a_minute();
            let from = |n: u8| IpAddr::from([192, 0, 2, n]);
            fail(&failures, "alice", from(1)).unwrap();
            fail(&failures, spelling, from(2)).unwrap();

            assert!(fail(&failures, "Alice", from(3)).is_err(), "{spelling:?}");
            assert!(failures.begin("alicia", from(3)).is_ok());
        }
        assert_eq!(folded("STRASSE"), folded("straße"));
    }

    #[test]
    fn an_address_is_refused_whatever_name_it_tries() {
        let (failures, _) = two_a_minute();

        assert_eq!(fail(&failures, "a", HOME), Ok(()));
        assert_eq!(fail(&failures, "b", HOME), Ok(()));
        assert!(fail(&failures, "c", HOME).is_err());
    }

    #[test]
    fn it_is_heard_again_when_the_window_is_over() {
        let (failures, clock) = two_a_minute();
        for _ in 0..2 {
            fail(&failures, "alice", HOME).unwrap();
        }

        clock.advance(WINDOW);

        assert_eq!(fail(&failures, "alice", HOME), Ok(()));
        assert_eq!(fail(&failures, "alice", HOME), Ok(()));
        assert!(fail(&failures, "alice", HOME).is_err());
    }

    #[test]
    fn success_is_not_counted() {
        let (failures, _) = two_a_minute();
        for _ in 0..10 {
            failures.begin("alice", HOME).unwrap().passed().unwrap();
        }
        assert!(failures.begin("alice", HOME).is_ok());
    }

    #[test]
    fn of_many_guesses_at_once_only_the_allowed_ones_are_told() {
        let (failures, _) = two_a_minute();
        let mut attempts: Vec<_> =
            (0..10).map(|_| failures.begin("alice", HOME).unwrap()).collect();
        let right = attempts.pop().unwrap();

        let told = attempts.into_iter().filter_map(|attempt| attempt.failed().ok()).count();

        assert_eq!(told, 2);
        assert!(right.passed().is_err());
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
            failures.count(n, Timestamp::from_secs(1_700_000_000));
        }
        failures.counts.run_pending_tasks();

        assert!(failures.counts.entry_count() <= MAX_COUNTS);
        assert!(failures.counts.contains_key(&(MAX_COUNTS + 4_999)));
    }
}
