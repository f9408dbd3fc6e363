//! The revocation list: tokens and sessions that end before their time.
//!
//! A logout, an event from the issuer or an operator names a token, a session
//! or a subject. Every cache removes matching entries, open streams are
//! notified, and the revocation is stored, so that a signed token which still
//! verifies is refused until it would have expired.
//!
//! All revocations pass through [`RevocationList::revoke`]. Each becomes a
//! [`RevocationEvent`], which another instance [applies](RevocationList::apply)
//! to do the same. [`RevocationList::active`] lists all that an instance which
//! starts later needs.

use super::event::RevocationTarget;
use super::event::{Revocation, RevocationEvent, RevocationListener};
use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use tokio::sync::broadcast;

use super::journal::{EndedRecord, Ends, UsedLogoutTokens};
use super::publication::{NotLasting, PublicationRequests, Publisher};
use super::token_ages::{Coverage, TokenAges};
use crate::base::clock::{Clock, Timestamp};
use crate::base::lock::IgnorePoison;
use crate::disk::{Directory, OpenError, Record, WriteFailed};
use crate::token::jwt::unverified_claims::unverified_expiry;
use crate::token::principal::Principal;
use crate::token::token_digests::{token_digest, unsigned_digest};
use crate::token::validation::TokenHolder;

/// All revocations. Clones share the same list; it outlives reloads.
#[derive(Clone)]
pub struct RevocationList(Arc<Inner>);

struct Inner {
    clock: Clock,
    /// Revocations of tokens.
    revoked: Mutex<HashMap<Revocation, Revoked>>,
    /// Their number, read without the lock: usually zero.
    count: AtomicUsize,
    /// Ended sessions of the gateway, and clocks of issuers. The sessions and `token_ages` know them; this list is for other
    /// instances, and separate, because many logouts must evict no revocation of a token.
    ended: Mutex<HashMap<Revocation, Revoked>>,
    /// The longest configured lifetime of a session, in seconds.
    max_session_secs: AtomicU64,
    /// Logout tokens that were used.
    used_logout_tokens: UsedLogoutTokens,
    /// Decides whether a token is older than a revocation.
    token_ages: TokenAges,
    /// The journal for the next process, with a state directory.
    journal: OnceLock<Ends>,
    /// The task that publishes revocations to other instances.
    publisher: Publisher,
    caches: Mutex<Vec<(Weak<dyn RevocationListener>, TokenHolder)>>,
    events: broadcast::Sender<RevocationEvent>,
}

#[derive(Clone, Copy)]
struct Revoked {
    at: Timestamp,
    until: Timestamp,
}

impl RevocationList {
    /// Returns an empty list.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner {
            clock,
            revoked: Mutex::default(),
            count: AtomicUsize::new(0),
            ended: Mutex::default(),
            max_session_secs: AtomicU64::new(0),
            used_logout_tokens: UsedLogoutTokens::new(),
            token_ages: TokenAges::new(),
            journal: OnceLock::new(),
            publisher: Publisher::default(),
            caches: Mutex::default(),
            events: broadcast::Sender::new(FEED_CAPACITY),
        }))
    }

    /// Persists revocations in `directory` from now on, and loads those of earlier processes.
    ///
    /// # Errors
    ///
    /// `OpenError` if the journal cannot be read.
    pub fn persist_in(&self, directory: &Directory) -> Result<(), OpenError> {
        let map = Arc::downgrade(&self.0);
        let on_records = move |records: &[Record]| {
            if let Some(map) = map.upgrade() {
                Self(map).apply_records(records);
            }
        };
        let journal = Ends::open(directory, &self.0.clock, on_records)?;
        // Only a test opens it twice.
        let _ = self.0.journal.set(journal);
        Ok(())
    }

    /// Whether revocations are persisted.
    pub fn is_kept(&self) -> bool {
        self.0.journal.get().is_some()
    }

    /// Waits until all revocations so far are on disk, with a state directory.
    ///
    /// # Errors
    ///
    /// `WriteFailed` if a restart would undo a revocation.
    pub async fn kept(&self) -> Result<(), WriteFailed> {
        match self.0.journal.get() {
            Some(journal) => journal.wait().await,
            None => Ok(()),
        }
    }

    /// Waits until no revocation so far is undone by the end of this process: on disk with a state directory, at Redis
    /// without one, if there is one. To be awaited before a response confirms a revocation.
    ///
    /// # Errors
    ///
    /// `NotLasting` if this process alone knows a revocation.
    pub(crate) async fn lasting(&self) -> Result<(), NotLasting> {
        if self.is_kept() {
            return Ok(self.kept().await?);
        }
        if self.0.publisher.has_published().await { Ok(()) } else { Err(NotLasting::NotPublished) }
    }

    /// Returns the requests that the task which publishes revocations answers from now on.
    pub(crate) fn publication_requests(&self) -> PublicationRequests {
        self.0.publisher.replace()
    }

    fn keep(&self, ended: impl FnOnce() -> EndedRecord) {
        if let Some(journal) = self.0.journal.get() {
            journal.append(&ended());
        }
    }

    /// Persists `revocation` for the next process; this one handles it separately.
    pub(crate) fn persist(&self, revocation: Revocation) {
        let at = self.0.clock.now();
        let until = at.plus(self.retention_of(&revocation.what));
        self.keep(|| {
            EndedRecord::Revoked(RevocationEvent { revocation, at, until, learned: false })
        });
    }

    /// Applies revocations of other processes that share the directory.
    fn apply_records(&self, records: &[Record]) {
        for record in records {
            match EndedRecord::read(record) {
                Some(EndedRecord::Revoked(event)) => {
                    self.store(&event.revocation, Revoked { at: event.at, until: event.until });
                    self.distribute(event);
                }
                Some(EndedRecord::LogoutTokenUsed { by, id, .. }) => {
                    _ = self.0.used_logout_tokens.is_new(&by, &id);
                }
                None => {
                    tracing::error!("Ignored a record of unknown kind in the revocation journal.");
                }
            }
        }
    }

    /// Records the use of the logout token `id` by the session `by`; returns whether it is the first.
    pub(crate) fn record_logout_token(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        let is_new = self.0.used_logout_tokens.is_new(by, id);
        if is_new {
            let at = self.0.clock.now();
            self.keep(|| EndedRecord::LogoutTokenUsed {
                by: Arc::clone(by),
                id: Arc::clone(id),
                at,
            });
        }
        is_new
    }

    /// Lets a logout token be used again, because it had no effect.
    pub(crate) fn restore_logout_token(&self, by: &Arc<str>, id: &Arc<str>) {
        self.0.used_logout_tokens.remove(by, id);
    }

    /// Dates `token` by the time at which the gateway received it from its issuer, whatever its `iat`.
    /// Returns whether there are any revocations.
    pub(crate) fn receive(&self, token: &str, at: Timestamp) -> bool {
        let counts = self.0.count.load(Relaxed) > 0;
        if counts {
            self.0.token_ages.receive(token_digest(token), at);
        }
        counts
    }

    /// Revokes: stores the revocation, removes matching entries from every cache before it
    /// returns, and notifies all [listeners](Self::listen).
    ///
    /// Stored until `until`, else for a day, or for the lifetime of a session if it ends
    /// sessions, and in any case until the last matching cached token would have expired.
    /// Returns the number of removed entries: cached results, credentials, sessions.
    pub fn revoke(&self, revocation: Revocation, until: Option<Timestamp>) -> usize {
        let now = self.0.clock.now();
        self.revoke_before(revocation, now, until)
    }

    /// Revokes what was issued, or began, before `at`.
    pub(crate) fn revoke_before(
        &self,
        revocation: Revocation,
        at: Timestamp,
        until: Option<Timestamp>,
    ) -> usize {
        let now = self.0.clock.now();
        let until = until.unwrap_or_else(|| now.plus(self.retention_of(&revocation.what)));
        self.revoke_everywhere(RevocationEvent { revocation, at, until, learned: false })
    }

    /// Withdraws the token of a session that has ended: clients cannot present it any more. As
    /// [`RevocationList::revoke_token`] otherwise.
    pub(crate) fn withdraw_token(&self, token: &str, any_signature: bool) {
        self.revoke_as(token, any_signature, RevocationTarget::Withdrawn);
    }

    /// Whether a session with this `token` has ended.
    pub(crate) fn is_withdrawn(&self, token: &str) -> bool {
        let what = RevocationTarget::Withdrawn(token_digest(token));
        self.revoked().contains_key(&Revocation { issuer: None, what })
    }

    /// Revokes one token, until its unverified `exp`, at most for a year. A digest means one token, whichever issuer's it is:
    /// several may have the same `iss`, and each would accept it.
    ///
    /// `any_signature` covers the same JWT under another signature. Only for tokens whose
    /// signature has been verified: otherwise a client that knows all but the signature could revoke a token that
    /// it does not have.
    pub(crate) fn revoke_token(&self, token: &str, any_signature: bool) {
        self.revoke_as(token, any_signature, RevocationTarget::Token);
    }

    fn revoke_as(&self, token: &str, any_signature: bool, what: fn([u8; 32]) -> RevocationTarget) {
        let longest = self.0.clock.now().plus(MAX_TOKEN_LIFETIME);
        let until = unverified_expiry(token).map(|end| end.plus(LEEWAY).min(longest));
        let unsigned = unsigned_digest(token).filter(|_| any_signature);
        for digest in [Some(token_digest(token)), unsigned].into_iter().flatten() {
            self.revoke(Revocation { issuer: None, what: what(digest) }, until);
        }
    }

    /// Applies a revocation of another instance, as [`RevocationList::revoke`] does.
    pub fn apply(&self, event: RevocationEvent) -> usize {
        // An instance whose clock runs ahead must not end a later login here.
        let at = event.at.min(self.0.clock.now());
        self.revoke_everywhere(RevocationEvent { learned: true, at, ..event })
    }

    /// Whether `event` is covered by a stored revocation.
    pub fn contains(&self, event: &RevocationEvent) -> bool {
        let at = event.at.min(self.0.clock.now());
        let stored = self.map_of(&event.revocation).get(&event.revocation).copied();
        stored.is_some_and(|stored| at <= stored.at && event.until <= stored.until)
    }

    /// Returns every revocation that has not expired, ended sessions included.
    pub fn active(&self) -> Vec<RevocationEvent> {
        let now = self.0.clock.now();
        let event = |(revocation, &Revoked { at, until }): (&Revocation, &Revoked)| {
            let revocation = revocation.clone();
            (now < until).then_some(RevocationEvent { revocation, at, until, learned: false })
        };
        let of_tokens: Vec<_> = self.revoked().iter().filter_map(event).collect();
        let of_sessions: Vec<_> = lock(&self.0.ended).iter().filter_map(event).collect();
        [of_tokens, of_sessions].concat()
    }

    /// Sets a lower bound for storing revocations that end sessions: the longest lifetime of a session.
    pub(crate) fn retain_at_least(&self, longest: Duration) {
        self.0.max_session_secs.fetch_max(longest.as_secs(), Relaxed);
    }

    fn retention_of(&self, what: &RevocationTarget) -> Duration {
        match what {
            RevocationTarget::Id(_)
            | RevocationTarget::Token(_)
            | RevocationTarget::Withdrawn(_) => RETENTION,
            RevocationTarget::Session(_)
            | RevocationTarget::LoggedOut(_)
            | RevocationTarget::Subject(_)
            | RevocationTarget::Sessionless(_)
            | RevocationTarget::GatewaySession(_)
            | RevocationTarget::Replaced(_)
            | RevocationTarget::ClockAhead(_) => {
                RETENTION.max(Duration::from_secs(self.0.max_session_secs.load(Relaxed)))
            }
        }
    }

    /// Stores and distributes a revocation.
    fn revoke_everywhere(&self, event: RevocationEvent) -> usize {
        // First the list, then the caches: a result verified in between is checked after it is cached.
        self.store(&event.revocation, Revoked { at: event.at, until: event.until });
        let (forgotten, until) = self.distribute(event.clone());
        let is_dated = event.revocation.is_dated();
        self.keep(|| EndedRecord::Revoked(RevocationEvent { until, ..event }));
        if is_dated {
            self.retain_clocks(until);
        }
        forgotten
    }

    /// Retains the known clocks of issuers for as long as a revocation that is dated by them, `until` then.
    fn retain_clocks(&self, until: Timestamp) {
        for (issuer, ahead) in self.0.token_ages.known_for_less_than(until) {
            // Longer, so that the next revocations need not do the same.
            self.record_clock(issuer, ahead, until.plus(RETENTION));
        }
    }

    fn record_clock(&self, issuer: Arc<str>, ahead: u64, until: Timestamp) {
        let what = RevocationTarget::ClockAhead(ahead);
        self.revoke(Revocation { issuer: Some(issuer), what }, Some(until));
    }

    /// Notifies caches and listeners; returns the number of removed entries and the time until which to store the revocation.
    fn distribute(&self, mut event: RevocationEvent) -> (usize, Timestamp) {
        let RevocationEvent { until, .. } = event;
        let now = self.0.clock.now();
        let last = Mutex::new(until);
        let covered = |principal: &Principal| {
            let covers = self.ends(&event, principal, now);
            if covers && principal.expires != Timestamp::MAX {
                let mut last = last.lock().ignore_poison();
                *last = principal.expires.plus(LEEWAY).max(*last);
            }
            covers
        };
        let caches: Vec<_> = {
            let mut caches = self.0.caches.lock().ignore_poison();
            caches.retain(|(cache, _)| cache.strong_count() > 0);
            let is_withdrawal = matches!(event.revocation.what, RevocationTarget::Withdrawn(_));
            let hears = |holder| !is_withdrawal || holder == TokenHolder::Client;
            let heard = caches.iter().filter(|(_, holder)| hears(*holder));
            heard.filter_map(|(cache, _)| cache.upgrade()).collect()
        };
        let forgotten = caches.iter().map(|cache| cache.forget(&event, &covered)).sum();
        let last = last.into_inner().ignore_poison();
        if last > until {
            self.store(&event.revocation, Revoked { at: event.at, until: last });
            event.until = last;
        }
        // Without listeners the send fails, which is no failure.
        let _ = self.0.events.send(event);
        (forgotten, last)
    }

    /// Whether the revocation ends `principal`'s token, which a cache has.
    fn ends(&self, event: &RevocationEvent, principal: &Principal, now: Timestamp) -> bool {
        let ends = event.revocation.names(principal);
        if matches!(event.revocation.what, RevocationTarget::ClockAhead(_)) {
            return ends && self.find(principal, TokenHolder::Client, now) != Found::No;
        }
        let is_older = || self.0.token_ages.covers(principal, event.at, now) != Coverage::No;
        ends && (!event.revocation.is_dated() || is_older())
    }

    /// Whether `principal`'s token, which `holder` presents, has been revoked.
    pub fn is_revoked(&self, principal: &Principal, holder: TokenHolder) -> bool {
        let now = self.0.clock.now();
        let has_any = self.0.count.load(Relaxed) > 0;
        let found = if has_any { self.find(principal, holder, now) } else { Found::No };
        if found == Found::AsOld {
            // Another instance, and the next process, compare the `iat`, by which the token is younger.
            let until = Some(principal.expires).filter(|end| *end != Timestamp::MAX);
            let digests = [Some(principal.digest), principal.unsigned_digest];
            for what in digests.into_iter().flatten().map(RevocationTarget::Token) {
                self.revoke(Revocation { issuer: None, what }, until.map(|end| end.plus(LEEWAY)));
            }
        }
        // Afterwards: what the token reveals of its issuer's clock counts for later ones.
        if let Some(ahead) = self.0.token_ages.observe(principal, now) {
            let until = now.plus(self.retention_of(&RevocationTarget::ClockAhead(ahead)));
            self.record_clock(Arc::clone(&principal.issuer), ahead, until);
        }
        found != Found::No
    }

    fn find(&self, principal: &Principal, holder: TokenHolder, now: Timestamp) -> Found {
        let mut revoked = self.revoked();
        let digests = [Some(principal.digest), principal.unsigned_digest].into_iter().flatten();
        let withdrawn = digests.filter(|_| holder == TokenHolder::Client);
        let subject = principal.subject.as_ref();
        let names = [
            principal.id.clone().map(RevocationTarget::Id),
            principal.session.clone().map(RevocationTarget::Session),
            principal.session.clone().map(RevocationTarget::LoggedOut),
            subject.cloned().map(RevocationTarget::Subject),
            Some(RevocationTarget::Token(principal.digest)),
            principal.unsigned_digest.map(RevocationTarget::Token),
        ];
        let Principal { issuer, namespace, .. } = principal;
        let iss = principal.iss().map(Arc::from);
        let issuers = [None, Some(Arc::clone(issuer)), Some(Arc::clone(namespace)), iss];
        let mut moved_event = None;
        let withdrawn = withdrawn.map(RevocationTarget::Withdrawn);
        let found = names.into_iter().flatten().chain(withdrawn).any(|what| {
            issuers.iter().any(|issuer| {
                let revocation = Revocation { issuer: issuer.clone(), what: what.clone() };
                let Some(stored) = revoked.get_mut(&revocation) else { return false };
                if !revocation.is_dated() {
                    return true;
                }
                // A token without `iat` counts as older while the revocation is stored.
                if principal.issued.is_none() && stored.until <= now {
                    return false;
                }
                match self.0.token_ages.covers(principal, stored.at, now) {
                    Coverage::No => false,
                    Coverage::Yes => true,
                    Coverage::IfMovedTo(at) => {
                        stored.at = at;
                        let until = stored.until;
                        moved_event =
                            Some(RevocationEvent { revocation, at, until, learned: true });
                        true
                    }
                }
            })
        });
        match moved_event {
            Some(event) => {
                self.keep(|| EndedRecord::Revoked(event));
                Found::AsOld
            }
            None if found => Found::Yes,
            None => Found::No,
        }
    }

    /// Returns a receiver of revocations from now on. A lagging one must check its tokens by [`RevocationList::is_revoked`].
    pub fn listen(&self) -> broadcast::Receiver<RevocationEvent> {
        self.0.events.subscribe()
    }

    /// Notifies `cache`, which is about the tokens of `holder`, of revocations for as long as it lives.
    pub(crate) fn subscribe(&self, cache: Weak<dyn RevocationListener>, holder: TokenHolder) {
        self.0.caches.lock().ignore_poison().push((cache, holder));
    }

    /// Notifies `cache` of stored and later revocations.
    pub(crate) fn subscribe_with_backlog(&self, cache: &Arc<dyn RevocationListener>) {
        self.subscribe(Arc::downgrade(cache), TokenHolder::Gateway);
        for event in self.active() {
            cache.forget(&event, &|_| false);
        }
    }

    fn store(&self, revocation: &Revocation, new: Revoked) {
        let now = self.0.clock.now();
        if let (RevocationTarget::ClockAhead(ahead), Some(issuer)) =
            (&revocation.what, &revocation.issuer)
        {
            self.0.token_ages.record(issuer, *ahead, new.until, now);
        }
        let mut revoked = self.map_of(revocation);
        if revoked.len() >= MAX_REVOCATIONS && !revoked.contains_key(revocation) {
            revoked.retain(|_, revoked| now < revoked.until);
            if revoked.len() >= MAX_REVOCATIONS {
                tracing::error!(
                    max_revocations = MAX_REVOCATIONS,
                    "Too many revocations; those that expire first were dropped, and their tokens may be accepted again."
                );
                // Several at once: finding one costs as much.
                let mut ends: Vec<_> = revoked.values().map(|revoked| revoked.until).collect();
                let (_, last, _) = ends.select_nth_unstable(MAX_REVOCATIONS / 100);
                let last = *last;
                let mut excess = MAX_REVOCATIONS / 100 + 1;
                revoked.retain(|_, revoked| {
                    let stays = last < revoked.until || excess == 0;
                    excess -= usize::from(!stays);
                    stays
                });
            }
        }
        let stored = revoked.entry(revocation.clone()).or_insert(new);
        *stored = Revoked { at: stored.at.max(new.at), until: stored.until.max(new.until) };
        if is_of_tokens(revocation) {
            self.0.count.store(revoked.len(), Relaxed);
        }
    }

    /// The map that stores `revocation`.
    fn map_of(&self, revocation: &Revocation) -> MutexGuard<'_, HashMap<Revocation, Revoked>> {
        if is_of_tokens(revocation) { self.revoked() } else { lock(&self.0.ended) }
    }

    fn revoked(&self) -> MutexGuard<'_, HashMap<Revocation, Revoked>> {
        lock(&self.0.revoked)
    }
}

/// Whether a revocation covers a token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    No,
    Yes,
    /// As one that may be older by the clock of its issuer, which was not known.
    AsOld,
}

/// Whether `revocation` is one of tokens.
const fn is_of_tokens(revocation: &Revocation) -> bool {
    !revocation.is_of_gateway_session()
        && !matches!(revocation.what, RevocationTarget::ClockAhead(_))
}

fn lock<T>(map: &Mutex<T>) -> MutexGuard<'_, T> {
    map.lock().ignore_poison()
}

impl fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevocationList").finish_non_exhaustive()
    }
}

/// The time for which a revocation is stored if the expiry of its tokens is unknown.
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// The longest lifetime of a token that is taken into account.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The largest configurable leeway: a token may be accepted that long after its `exp`.
const LEEWAY: Duration = Duration::from_secs(5 * 60);
/// Revocations stored at once; some 20 MiB.
const MAX_REVOCATIONS: usize = if cfg!(test) { 1_000 } else { 100_000 };
/// Revocations that a slow listener may leave unread.
const FEED_CAPACITY: usize = 1024;
