//! Revocation: what ends before its time, ends everywhere at once.
//!
//! A logout, an event from the issuer or an operator names a token, a session
//! or a person. Every cache forgets what it has of it, whoever holds streams
//! open is told, and the name is remembered, so that a signed token which
//! still verifies stays dead until it would have expired.
//!
//! Everything goes through one door, [`RevocationList::revoke`]. What comes out
//! of it, [`RevocationFeed`], is all that another gateway has to [learn](Revocations::learn)
//! to do the same. [`RevocationList::active`] is all that one has to know which
//! starts later.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::broadcast;

use super::journal::{EndedRecord, Ends, UsedLogoutTokens};
use super::token_ages::{Coverage, TokenAges};
use crate::base::clock::{Clock, Timestamp};
use crate::disk::{Directory, OpenError, Record, WriteFailed};
use crate::token::jwt::verify::unverified_expiry;
use crate::token::principal::Principal;
use crate::token::token_digests::{token_digest, unsigned_digest};

/// What has been revoked. Clones are the same memory; it outlives reloads.
#[derive(Clone)]
pub struct RevocationList(Arc<Remembered>);

struct Remembered {
    clock: Clock,
    /// Revocations of tokens.
    revoked: Mutex<HashMap<Revocation, Revoked>>,
    /// How many there are, read without the lock: usually none.
    count: AtomicUsize,
    /// Visits that are over. Their sessions know it for themselves; this is for other gateways, and
    /// apart, because many logouts must displace no revocation of a token.
    over: Mutex<HashMap<Revocation, Revoked>>,
    /// The longest that a session can last, in seconds.
    visits_last: AtomicU64,
    /// Tokens that may be heeded once, and were.
    heeded: UsedLogoutTokens,
    /// By which clock a token is older than a revocation.
    dating: TokenAges,
    /// Where all of it is kept for the next process, if it is.
    journal: OnceLock<Ends>,
    caches: Mutex<Vec<Weak<dyn RevocationListener>>>,
    news: broadcast::Sender<RevocationFeed>,
}

#[derive(Clone, Copy)]
struct Revoked {
    at: Timestamp,
    until: Timestamp,
}

/// Something that was revoked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RevocationFeed {
    /// What.
    pub revocation: Revocation,
    /// When: what was issued to its subject later is good.
    pub at: Timestamp,
    /// How long it is remembered.
    pub until: Timestamp,
    /// Whether other gateways need not be told: it was learned from one, or is nothing to them.
    pub learned: bool,
}

/// What a revocation names.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Revocation {
    /// The configured name of the issuer whose tokens are meant; `None` means every issuer's.
    pub issuer: Option<Arc<str>>,
    /// Which of them.
    pub what: RevocationTarget,
}

/// Which tokens are revoked, or which visit is over.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum RevocationTarget {
    /// The one of this `jti`.
    Id(Arc<str>),
    /// Those of this session, `sid`.
    Session(Arc<str>),
    /// The same, as its issuer has ended it: those issued so far. What is issued later is of another login.
    LoggedOut(Arc<str>),
    /// Those issued to this subject so far; later ones are good.
    Subject(Arc<str>),
    /// The visits of this subject that began so far, but only those which no `sid` of the issuer names. Access
    /// tokens are left: many name no session although they belong to one.
    Sessionless(Arc<str>),
    /// This one, by the digest of the whole token or, for a JWT, of all but its signature: see
    /// [`RevocationTarget::token`].
    Token([u8; 32]),
    /// One visit to a session of the gateway's own, by its name in limits and the log. Its
    /// tokens are named for themselves; the session remembers that it is over.
    Visit(Arc<str>),
    /// The same, of a visit that is over because another has taken its place at the browser.
    Replaced(Arc<str>),
}

impl RevocationList {
    /// Nothing revoked yet.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Remembered {
            clock,
            revoked: Mutex::default(),
            count: AtomicUsize::new(0),
            over: Mutex::default(),
            visits_last: AtomicU64::new(0),
            heeded: UsedLogoutTokens::new(),
            dating: TokenAges::new(),
            journal: OnceLock::new(),
            caches: Mutex::default(),
            news: broadcast::Sender::new(FEED_CAPACITY),
        }))
    }

    /// Keeps what ends from now on in `directory`, and remembers what the processes before have kept there.
    ///
    /// # Errors
    ///
    /// If that cannot be read.
    pub fn persist_in(&self, directory: &Directory) -> Result<(), OpenError> {
        let memory = Arc::downgrade(&self.0);
        let heard = move |records: &[Record]| {
            if let Some(memory) = memory.upgrade() {
                Self(memory).remember_kept(records);
            }
        };
        let journal = Ends::open(directory, &self.0.clock, heard)?;
        // Only a test opens it twice.
        let _ = self.0.journal.set(journal);
        Ok(())
    }

    /// Whether what ends is kept for the next process.
    pub fn is_kept(&self) -> bool {
        self.0.journal.get().is_some()
    }

    /// Waits until all that has ended so far is on disk, where it is kept at all. Before it is answered that something
    /// has ended, this is waited for.
    ///
    /// # Errors
    ///
    /// [`NotKept`] if something would live again after a restart.
    pub async fn kept(&self) -> Result<(), WriteFailed> {
        match self.0.journal.get() {
            Some(journal) => journal.wait().await,
            None => Ok(()),
        }
    }

    fn keep(&self, ended: impl FnOnce() -> EndedRecord) {
        if let Some(journal) = self.0.journal.get() {
            journal.append(&ended());
        }
    }

    /// Keeps for the next process that `revocation` holds from now on. This one sees to it by itself.
    pub(crate) fn keep_for_later(&self, revocation: Revocation) {
        let at = self.0.clock.now();
        let until = at.plus(self.remembered(&revocation.what));
        self.keep(|| {
            EndedRecord::Revoked(RevocationFeed { revocation, at, until, learned: false })
        });
    }

    /// Does as other processes have done that share the directory.
    fn remember_kept(&self, records: &[Record]) {
        for record in records {
            match EndedRecord::read(record) {
                Some(EndedRecord::Revoked(news)) => {
                    self.remember(&news.revocation, Revoked { at: news.at, until: news.until });
                    self.distribute(news);
                }
                Some(EndedRecord::Heeded { by, id, .. }) => _ = self.0.heeded.is_new(&by, &id),
                None => tracing::error!("A record of what was ended is of no kind known here."),
            }
        }
    }

    /// Whether the token called `id`, which may be heeded once, comes to `by` for the first time.
    pub(crate) fn apply_local(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        let is_new = self.0.heeded.is_new(by, id);
        if is_new {
            let at = self.0.clock.now();
            self.keep(|| EndedRecord::Heeded { by: Arc::clone(by), id: Arc::clone(id), at });
        }
        is_new
    }

    /// What was heeded came to nothing: it may come again.
    pub(crate) fn restore(&self, by: &Arc<str>, id: &Arc<str>) {
        self.0.heeded.forget(by, id);
    }

    /// Dates `token` by when the gateway has received it from its issuer, whatever that says of its age.
    /// Whether something was revoked at all.
    pub(crate) fn receive(&self, token: &str, at: Timestamp) -> bool {
        let counts = self.0.count.load(Relaxed) > 0;
        if counts {
            self.0.dating.receive(token_digest(token), at);
        }
        counts
    }

    /// Revokes: remembered from now on, gone from every cache when this
    /// returns, and told to all who [listen](Self::listen).
    ///
    /// Remembered until `until`, else for a day, or as long as a session can last if it ends
    /// sessions, and in any case until the last token that a cache had of it would have expired.
    /// Returns how many things were forgotten: verdicts, credentials, visits.
    pub fn revoke(&self, revocation: Revocation, until: Option<Timestamp>) -> usize {
        let now = self.0.clock.now();
        self.revoke_before(revocation, now, until)
    }

    /// The same, of what was issued, or began, before `at` that time.
    pub(crate) fn revoke_before(
        &self,
        revocation: Revocation,
        at: Timestamp,
        until: Option<Timestamp>,
    ) -> usize {
        let now = self.0.clock.now();
        let until = until.unwrap_or_else(|| now.plus(self.remembered(&revocation.what)));
        self.relay(RevocationFeed { revocation, at, until, learned: false })
    }

    /// Revokes one token of `issuer`. What it says of its own end is believed, up to a year.
    ///
    /// With `any_signature` also the same JWT under another signature. That is for tokens whose
    /// signature has been verified: else whoever knows all but the signature could end a token that
    /// they do not have.
    pub(crate) fn revoke_token(&self, issuer: &Arc<str>, token: &str, any_signature: bool) {
        let longest = self.0.clock.now().plus(MAX_TOKEN_LIFETIME);
        let until = unverified_expiry(token).map(|end| end.plus(LEEWAY).min(longest));
        let unsigned = unsigned_digest(token).filter(|_| any_signature);
        for digest in [Some(token_digest(token)), unsigned].into_iter().flatten() {
            let (issuer, what) = (Some(Arc::clone(issuer)), RevocationTarget::Token(digest));
            self.revoke(Revocation { issuer, what }, until);
        }
    }

    /// Revokes what another gateway has revoked, as [`RevocationList::revoke`] does here.
    pub fn apply(&self, news: RevocationFeed) -> usize {
        // A clock that runs ahead over there ends no login that is still to come here.
        let at = news.at.min(self.0.clock.now());
        self.relay(RevocationFeed { learned: true, at, ..news })
    }

    /// Whether there is nothing new in `news`.
    pub fn contains(&self, news: &RevocationFeed) -> bool {
        let at = news.at.min(self.0.clock.now());
        let kept = self.place_of(&news.revocation).get(&news.revocation).copied();
        kept.is_some_and(|kept| at <= kept.at && news.until <= kept.until)
    }

    /// Every revocation that has not ended, visits that are over included.
    pub fn active(&self) -> Vec<RevocationFeed> {
        let now = self.0.clock.now();
        let news = |(revocation, &Revoked { at, until }): (&Revocation, &Revoked)| {
            let revocation = revocation.clone();
            (now < until).then_some(RevocationFeed { revocation, at, until, learned: false })
        };
        let of_tokens: Vec<_> = self.revoked().iter().filter_map(news).collect();
        let of_visits: Vec<_> = lock(&self.0.over).iter().filter_map(news).collect();
        [of_tokens, of_visits].concat()
    }

    /// Sessions can last as long as `longest`: what ends them is remembered for that long at least.
    pub(crate) fn retain_at_least(&self, longest: Duration) {
        self.0.visits_last.fetch_max(longest.as_secs(), Relaxed);
    }

    fn remembered(&self, what: &RevocationTarget) -> Duration {
        match what {
            RevocationTarget::Id(_) | RevocationTarget::Token(_) => RETENTION,
            RevocationTarget::Session(_)
            | RevocationTarget::LoggedOut(_)
            | RevocationTarget::Subject(_)
            | RevocationTarget::Sessionless(_)
            | RevocationTarget::Visit(_)
            | RevocationTarget::Replaced(_) => {
                RETENTION.max(Duration::from_secs(self.0.visits_last.load(Relaxed)))
            }
        }
    }

    /// The door that every revocation goes through.
    fn relay(&self, news: RevocationFeed) -> usize {
        // First the memory, then the caches: a verdict made in between is checked after it is kept.
        self.remember(&news.revocation, Revoked { at: news.at, until: news.until });
        let (forgotten, until) = self.distribute(news.clone());
        self.keep(|| EndedRecord::Revoked(RevocationFeed { until, ..news }));
        forgotten
    }

    /// Tells every cache, and everybody who listens. How much was forgotten, and how long it is remembered.
    fn distribute(&self, mut news: RevocationFeed) -> (usize, Timestamp) {
        let RevocationFeed { until, .. } = news;
        let now = self.0.clock.now();
        let last = Mutex::new(until);
        let covered = |principal: &Principal| {
            let covers = self.ends(&news, principal, now);
            if covers && principal.expires != Timestamp::MAX {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                *last = principal.expires.plus(LEEWAY).max(*last);
            }
            covers
        };
        let caches: Vec<_> = {
            let mut caches = self.0.caches.lock().unwrap_or_else(PoisonError::into_inner);
            caches.retain(|cache| cache.strong_count() > 0);
            caches.iter().filter_map(Weak::upgrade).collect()
        };
        let forgotten = caches.iter().map(|cache| cache.forget(&news, &covered)).sum();
        let last = last.into_inner().unwrap_or_else(PoisonError::into_inner);
        if last > until {
            self.remember(&news.revocation, Revoked { at: news.at, until: last });
            news.until = last;
        }
        // Nobody listening is no failure.
        let _ = self.0.news.send(news);
        (forgotten, last)
    }

    /// Whether `principal`'s token, which was seen here before, ends by `news`.
    fn ends(&self, news: &RevocationFeed, principal: &Principal, now: Timestamp) -> bool {
        let ends = news.revocation.names(principal);
        let dated = || self.0.dating.covers(principal, news.at, now) != Coverage::No;
        ends && (!news.revocation.is_dated() || dated())
    }

    /// Whether `principal`'s token has been revoked.
    pub fn is_revoked(&self, principal: &Principal) -> bool {
        let now = self.0.clock.now();
        let covered = self.0.count.load(Relaxed) > 0 && self.find(principal, now);
        // Afterwards: what it says of its issuer's clock itself counts for those that come later.
        self.0.dating.observe(principal, now);
        covered
    }

    fn find(&self, principal: &Principal, now: Timestamp) -> bool {
        let mut revoked = self.revoked();
        let subject = principal.subject.as_ref();
        let names = [
            principal.id.clone().map(RevocationTarget::Id),
            principal.session.clone().map(RevocationTarget::Session),
            principal.session.clone().map(RevocationTarget::LoggedOut),
            subject.cloned().map(RevocationTarget::Subject),
            Some(RevocationTarget::Token(principal.digest)),
            principal.unsigned_digest.map(RevocationTarget::Token),
        ];
        let issuers = [None, Some(Arc::clone(&principal.issuer))];
        let mut moved = None;
        let found = names.into_iter().flatten().any(|what| {
            issuers.iter().any(|issuer| {
                let revocation = Revocation { issuer: issuer.clone(), what: what.clone() };
                let Some(kept) = revoked.get_mut(&revocation) else { return false };
                if !revocation.is_dated() {
                    return true;
                }
                // Of a token without `iat` nothing says that it is younger, as long as the mark stands.
                if principal.issued.is_none() && kept.until <= now {
                    return false;
                }
                match self.0.dating.covers(principal, kept.at, now) {
                    Coverage::No => false,
                    Coverage::Yes => true,
                    Coverage::IfMovedTo(at) => {
                        kept.at = at;
                        let until = kept.until;
                        moved = Some(RevocationFeed { revocation, at, until, learned: true });
                        true
                    }
                }
            })
        });
        if let Some(news) = moved {
            self.keep(|| EndedRecord::Revoked(news));
        }
        found
    }

    /// Revocations from now on. Who lags behind asks [`RevocationList::is_revoked`] about what they hold.
    pub fn listen(&self) -> broadcast::Receiver<RevocationFeed> {
        self.0.news.subscribe()
    }

    /// Tells `jwt_cache` of revocations as long as it lives.
    pub(crate) fn subscribe(&self, cache: Weak<dyn RevocationListener>) {
        self.0.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
    }

    /// The same, of a cache that has to know what has ended before it was made.
    pub(crate) fn tell_all(&self, cache: &Arc<dyn RevocationListener>) {
        self.subscribe(Arc::downgrade(cache));
        for news in self.active() {
            cache.forget(&news, &|_| false);
        }
    }

    fn remember(&self, revocation: &Revocation, new: Revoked) {
        let now = self.0.clock.now();
        let mut revoked = self.place_of(revocation);
        if revoked.len() >= MAX_REVOCATIONS && !revoked.contains_key(revocation) {
            revoked.retain(|_, revoked| now < revoked.until);
            if revoked.len() >= MAX_REVOCATIONS {
                tracing::error!(
                    most = MAX_REVOCATIONS,
                    "Too many revocations to remember: those that end first are forgotten."
                );
                // Some at once: looking for one costs as much.
                let mut ends: Vec<_> = revoked.values().map(|revoked| revoked.until).collect();
                let (_, last, _) = ends.select_nth_unstable(MAX_REVOCATIONS / 100);
                let last = *last;
                let mut places = MAX_REVOCATIONS / 100 + 1;
                revoked.retain(|_, revoked| {
                    let stays = last < revoked.until || places == 0;
                    places -= usize::from(!stays);
                    stays
                });
            }
        }
        let kept = revoked.entry(revocation.clone()).or_insert(new);
        *kept = Revoked { at: kept.at.max(new.at), until: kept.until.max(new.until) };
        if !revocation.is_of_a_visit() {
            self.0.count.store(revoked.len(), Relaxed);
        }
    }

    /// Where `revocation` is remembered.
    fn place_of(&self, revocation: &Revocation) -> MutexGuard<'_, HashMap<Revocation, Revoked>> {
        if revocation.is_of_a_visit() { lock(&self.0.over) } else { self.revoked() }
    }

    fn revoked(&self) -> MutexGuard<'_, HashMap<Revocation, Revoked>> {
        lock(&self.0.revoked)
    }
}

fn lock<T>(memory: &Mutex<T>) -> MutexGuard<'_, T> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RevocationTarget {
    /// One token, by all its names: itself, and if it is a JWT, itself under another signature.
    pub fn token(token: &str) -> impl Iterator<Item = Self> {
        let names = [Some(token_digest(token)), unsigned_digest(token)];
        names.into_iter().flatten().map(Self::Token)
    }
}

impl Revocation {
    /// Whether `principal`'s token is one of those it names, whenever that was issued.
    fn names(&self, principal: &Principal) -> bool {
        if self.issuer.as_ref().is_some_and(|issuer| *issuer != principal.issuer) {
            return false;
        }
        match &self.what {
            RevocationTarget::Id(id) => principal.id.as_ref() == Some(id),
            RevocationTarget::Session(session) | RevocationTarget::LoggedOut(session) => {
                principal.session.as_ref() == Some(session)
            }
            RevocationTarget::Token(digest) => {
                principal.digest == *digest || principal.unsigned_digest == Some(*digest)
            }
            RevocationTarget::Visit(_)
            | RevocationTarget::Replaced(_)
            | RevocationTarget::Sessionless(_) => false,
            RevocationTarget::Subject(subject) => principal.subject.as_ref() == Some(subject),
        }
    }

    /// Whether it ends only what was issued before.
    const fn is_dated(&self) -> bool {
        matches!(self.what, RevocationTarget::Subject(_) | RevocationTarget::LoggedOut(_))
    }

    /// Whether it names no token at all: nothing for those who know only tokens.
    pub(crate) const fn is_of_a_visit(&self) -> bool {
        matches!(
            self.what,
            RevocationTarget::Visit(_)
                | RevocationTarget::Replaced(_)
                | RevocationTarget::Sessionless(_)
        )
    }
}

impl RevocationFeed {
    /// Whether it may end `principal`'s token: [`RevocationList::is_revoked`] says whether it does.
    pub fn names(&self, principal: &Principal) -> bool {
        self.revocation.names(principal)
    }
}

/// What remembers somebody, and can forget them.
pub(crate) trait RevocationListener: Send + Sync {
    /// Forgets what `news` ends, which for a principal `revocation` tells, and says how much there was.
    fn forget(&self, news: &RevocationFeed, revoked: &dyn Fn(&Principal) -> bool) -> usize;
}

impl fmt::Debug for RevocationList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").finish_non_exhaustive()
    }
}

/// How long a revocation is remembered if nobody knows when its tokens end.
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
/// Tokens that say they live for longer are not waited for.
const MAX_TOKEN_LIFETIME: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The largest leeway that can be configured: a token may be good that long after its `exp`.
const LEEWAY: Duration = Duration::from_secs(5 * 60);
/// Revocations remembered at once; some 20 MiB.
const MAX_REVOCATIONS: usize = if cfg!(test) { 1_000 } else { 100_000 };
/// News that a slow listener may leave unread.
const FEED_CAPACITY: usize = 1024;
