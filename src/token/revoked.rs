//! Revocation: what ends before its time, ends everywhere at once.
//!
//! A logout, an event from the issuer or an operator names a token, a session
//! or a person. Every cache forgets what it has of it, whoever holds streams
//! open is told, and the name is remembered, so that a signed token which
//! still verifies stays dead until it would have expired.
//!
//! Everything goes through one door, [`Revocations::revoke`]. What comes out
//! of it, [`News`], is all that another gateway has to [learn](Revocations::learn)
//! to do the same. [`Revocations::standing`] is all that one has to know which
//! starts later.

use core::fmt;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::broadcast;

use super::ended::{Ended, Ends, Heeded};
use super::jwt::said_expiry;
use super::marks::{Covered, Dating};
use super::names::{token_digest, unsigned_digest};
use super::principal::Principal;
use crate::base::clock::{Clock, Timestamp};
use crate::disk::{Directory, NotKept, OpenError, Record};

/// What has been revoked. Clones are the same memory; it outlives reloads.
#[derive(Clone)]
pub struct Revocations(Arc<Memory>);

struct Memory {
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
    heeded: Heeded,
    /// By which clock a token is older than a revocation.
    dating: Dating,
    /// Where all of it is kept for the next process, if it is.
    journal: OnceLock<Ends>,
    caches: Mutex<Vec<Weak<dyn Forget>>>,
    news: broadcast::Sender<News>,
}

#[derive(Clone, Copy)]
struct Revoked {
    at: Timestamp,
    until: Timestamp,
}

/// Something that was revoked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct News {
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
    pub what: What,
}

/// Which tokens are revoked, or which visit is over.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum What {
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
    /// [`What::token`].
    Token([u8; 32]),
    /// One visit to a session of the gateway's own, by its name in limits and the log. Its
    /// tokens are named for themselves; the session remembers that it is over.
    Visit(Arc<str>),
    /// The same, of a visit that is over because another has taken its place at the browser.
    Replaced(Arc<str>),
}

impl Revocations {
    /// Nothing revoked yet.
    pub fn new(clock: Clock) -> Self {
        Self(Arc::new(Memory {
            clock,
            revoked: Mutex::default(),
            count: AtomicUsize::new(0),
            over: Mutex::default(),
            visits_last: AtomicU64::new(0),
            heeded: Heeded::new(),
            dating: Dating::new(),
            journal: OnceLock::new(),
            caches: Mutex::default(),
            news: broadcast::Sender::new(NEWS),
        }))
    }

    /// Keeps what ends from now on in `directory`, and remembers what the processes before have kept there.
    ///
    /// # Errors
    ///
    /// If that cannot be read.
    pub fn keep_in(&self, directory: &Directory) -> Result<(), OpenError> {
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
    pub async fn kept(&self) -> Result<(), NotKept> {
        match self.0.journal.get() {
            Some(journal) => journal.wait().await,
            None => Ok(()),
        }
    }

    fn keep(&self, ended: impl FnOnce() -> Ended) {
        if let Some(journal) = self.0.journal.get() {
            journal.append(&ended());
        }
    }

    /// Keeps for the next process that `revocation` holds from now on. This one sees to it by itself.
    pub(crate) fn keep_for_later(&self, revocation: Revocation) {
        let at = self.0.clock.now();
        let until = at.plus(self.remembered(&revocation.what));
        self.keep(|| Ended::Revoked(News { revocation, at, until, learned: false }));
    }

    /// Does as other processes have done that share the directory.
    fn remember_kept(&self, records: &[Record]) {
        for record in records {
            match Ended::read(record) {
                Some(Ended::Revoked(news)) => {
                    self.remember(&news.revocation, Revoked { at: news.at, until: news.until });
                    self.spread(news);
                }
                Some(Ended::Heeded { by, id, .. }) => _ = self.0.heeded.is_new(&by, &id),
                None => tracing::error!("A record of what was ended is of no kind known here."),
            }
        }
    }

    /// Whether the token called `id`, which may be heeded once, comes to `by` for the first time.
    pub(crate) fn heed(&self, by: &Arc<str>, id: &Arc<str>) -> bool {
        let is_new = self.0.heeded.is_new(by, id);
        if is_new {
            let at = self.0.clock.now();
            self.keep(|| Ended::Heeded { by: Arc::clone(by), id: Arc::clone(id), at });
        }
        is_new
    }

    /// What was heeded came to nothing: it may come again.
    pub(crate) fn heed_again(&self, by: &Arc<str>, id: &Arc<str>) {
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
        self.pass(News { revocation, at, until, learned: false })
    }

    /// Revokes one token of `issuer`. What it says of its own end is believed, up to a year.
    ///
    /// With `any_signature` also the same JWT under another signature. That is for tokens whose
    /// signature has been verified: else whoever knows all but the signature could end a token that
    /// they do not have.
    pub(crate) fn revoke_token(&self, issuer: &Arc<str>, token: &str, any_signature: bool) {
        let longest = self.0.clock.now().plus(A_YEAR);
        let until = said_expiry(token).map(|end| end.plus(LEEWAY).min(longest));
        let unsigned = unsigned_digest(token).filter(|_| any_signature);
        for digest in [Some(token_digest(token)), unsigned].into_iter().flatten() {
            let (issuer, what) = (Some(Arc::clone(issuer)), What::Token(digest));
            self.revoke(Revocation { issuer, what }, until);
        }
    }

    /// Revokes what another gateway has revoked, as [`Revocations::revoke`] does here.
    pub fn learn(&self, news: News) -> usize {
        // A clock that runs ahead over there ends no login that is still to come here.
        let at = news.at.min(self.0.clock.now());
        self.pass(News { learned: true, at, ..news })
    }

    /// Whether there is nothing new in `news`.
    pub fn know(&self, news: &News) -> bool {
        let at = news.at.min(self.0.clock.now());
        let kept = self.place_of(&news.revocation).get(&news.revocation).copied();
        kept.is_some_and(|kept| at <= kept.at && news.until <= kept.until)
    }

    /// Every revocation that has not ended, visits that are over included.
    pub fn standing(&self) -> Vec<News> {
        let now = self.0.clock.now();
        let news = |(revocation, &Revoked { at, until }): (&Revocation, &Revoked)| {
            let revocation = revocation.clone();
            (now < until).then_some(News { revocation, at, until, learned: false })
        };
        let of_tokens: Vec<_> = self.revoked().iter().filter_map(news).collect();
        let of_visits: Vec<_> = lock(&self.0.over).iter().filter_map(news).collect();
        [of_tokens, of_visits].concat()
    }

    /// Sessions can last as long as `longest`: what ends them is remembered for that long at least.
    pub(crate) fn outlast(&self, longest: Duration) {
        self.0.visits_last.fetch_max(longest.as_secs(), Relaxed);
    }

    fn remembered(&self, what: &What) -> Duration {
        match what {
            What::Id(_) | What::Token(_) => REMEMBERED,
            What::Session(_)
            | What::LoggedOut(_)
            | What::Subject(_)
            | What::Sessionless(_)
            | What::Visit(_)
            | What::Replaced(_) => {
                REMEMBERED.max(Duration::from_secs(self.0.visits_last.load(Relaxed)))
            }
        }
    }

    /// The door that every revocation goes through.
    fn pass(&self, news: News) -> usize {
        // First the memory, then the caches: a verdict made in between is checked after it is kept.
        self.remember(&news.revocation, Revoked { at: news.at, until: news.until });
        let (forgotten, until) = self.spread(news.clone());
        self.keep(|| Ended::Revoked(News { until, ..news }));
        forgotten
    }

    /// Tells every cache, and everybody who listens. How much was forgotten, and how long it is remembered.
    fn spread(&self, mut news: News) -> (usize, Timestamp) {
        let News { until, .. } = news;
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
    fn ends(&self, news: &News, principal: &Principal, now: Timestamp) -> bool {
        let ends = news.revocation.names(principal);
        let dated = || self.0.dating.covers(principal, news.at, now) != Covered::No;
        ends && (!news.revocation.is_dated() || dated())
    }

    /// Whether `principal`'s token has been revoked.
    pub fn cover(&self, principal: &Principal) -> bool {
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
            principal.id.clone().map(What::Id),
            principal.session.clone().map(What::Session),
            principal.session.clone().map(What::LoggedOut),
            subject.cloned().map(What::Subject),
            Some(What::Token(principal.digest)),
            principal.unsigned_digest.map(What::Token),
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
                    Covered::No => false,
                    Covered::Yes => true,
                    Covered::IfMovedTo(at) => {
                        kept.at = at;
                        let until = kept.until;
                        moved = Some(News { revocation, at, until, learned: true });
                        true
                    }
                }
            })
        });
        if let Some(news) = moved {
            self.keep(|| Ended::Revoked(news));
        }
        found
    }

    /// Revocations from now on. Who lags behind asks [`Revocations::cover`] about what they hold.
    pub fn listen(&self) -> broadcast::Receiver<News> {
        self.0.news.subscribe()
    }

    /// Tells `cache` of revocations as long as it lives.
    pub(crate) fn tell(&self, cache: Weak<dyn Forget>) {
        self.0.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
    }

    /// The same, of a cache that has to know what has ended before it was made.
    pub(crate) fn tell_all(&self, cache: &Arc<dyn Forget>) {
        self.tell(Arc::downgrade(cache));
        for news in self.standing() {
            cache.forget(&news, &|_| false);
        }
    }

    fn remember(&self, revocation: &Revocation, new: Revoked) {
        let now = self.0.clock.now();
        let mut revoked = self.place_of(revocation);
        if revoked.len() >= MOST && !revoked.contains_key(revocation) {
            revoked.retain(|_, revoked| now < revoked.until);
            if revoked.len() >= MOST {
                tracing::error!(
                    most = MOST,
                    "Too many revocations to remember: those that end first are forgotten."
                );
                // Some at once: looking for one costs as much.
                let mut ends: Vec<_> = revoked.values().map(|revoked| revoked.until).collect();
                let (_, last, _) = ends.select_nth_unstable(MOST / 100);
                let last = *last;
                let mut places = MOST / 100 + 1;
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

impl What {
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
            What::Id(id) => principal.id.as_ref() == Some(id),
            What::Session(session) | What::LoggedOut(session) => {
                principal.session.as_ref() == Some(session)
            }
            What::Token(digest) => {
                principal.digest == *digest || principal.unsigned_digest == Some(*digest)
            }
            What::Visit(_) | What::Replaced(_) | What::Sessionless(_) => false,
            What::Subject(subject) => principal.subject.as_ref() == Some(subject),
        }
    }

    /// Whether it ends only what was issued before.
    const fn is_dated(&self) -> bool {
        matches!(self.what, What::Subject(_) | What::LoggedOut(_))
    }

    /// Whether it names no token at all: nothing for those who know only tokens.
    pub(crate) const fn is_of_a_visit(&self) -> bool {
        matches!(self.what, What::Visit(_) | What::Replaced(_) | What::Sessionless(_))
    }
}

impl News {
    /// Whether it may end `principal`'s token: [`Revocations::cover`] says whether it does.
    pub fn names(&self, principal: &Principal) -> bool {
        self.revocation.names(principal)
    }
}

/// What remembers somebody, and can forget them.
pub(crate) trait Forget: Send + Sync {
    /// Forgets what `news` ends, which for a principal `revoked` tells, and says how much there was.
    fn forget(&self, news: &News, revoked: &dyn Fn(&Principal) -> bool) -> usize;
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").finish_non_exhaustive()
    }
}

/// How long a revocation is remembered if nobody knows when its tokens end.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);
/// Tokens that say they live for longer are not waited for.
const A_YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);
/// The largest leeway that can be configured: a token may be good that long after its `exp`.
const LEEWAY: Duration = Duration::from_secs(5 * 60);
/// Revocations remembered at once; some 20 MiB.
const MOST: usize = if cfg!(test) { 1_000 } else { 100_000 };
/// News that a slow listener may leave unread.
const NEWS: usize = 1024;
