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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::broadcast;

use super::jwt::said_expiry;
use super::names::{token_digest, unsigned_digest};
use super::principal::{Form, Principal};
use crate::base::clock::{Clock, Timestamp};

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
    /// Those issued to this subject so far; later ones are good.
    Subject(Arc<str>),
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
            caches: Mutex::default(),
            news: broadcast::Sender::new(NEWS),
        }))
    }

    /// Revokes: remembered from now on, gone from every cache when this
    /// returns, and told to all who [listen](Self::listen).
    ///
    /// Remembered until `until`, else for a day, or as long as a session can last if it ends
    /// sessions, and in any case until the last token that a cache had of it would have expired.
    /// Returns how many things were forgotten: verdicts, credentials, visits.
    pub fn revoke(&self, revocation: Revocation, until: Option<Timestamp>) -> usize {
        let at = self.0.clock.now();
        let until = until.unwrap_or_else(|| at.plus(self.remembered(&revocation.what)));
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

    /// The end of a visit that is nothing to other gateways, and for its session alone to remember.
    pub(crate) fn end_here(&self, visit: &Arc<str>) {
        let at = self.0.clock.now();
        let revocation = Revocation { issuer: None, what: What::Visit(Arc::clone(visit)) };
        self.spread(News { revocation, at, until: at, learned: true });
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
        let kept = self.kept(&news.revocation).get(&news.revocation).copied();
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
            What::Session(_) | What::Subject(_) | What::Visit(_) | What::Replaced(_) => {
                REMEMBERED.max(Duration::from_secs(self.0.visits_last.load(Relaxed)))
            }
        }
    }

    /// The door that every revocation goes through.
    fn pass(&self, news: News) -> usize {
        // First the memory, then the caches: a verdict made in between is checked after it is kept.
        self.remember(&news.revocation, Revoked { at: news.at, until: news.until });
        self.spread(news)
    }

    /// Tells every cache, and everybody who listens.
    fn spread(&self, mut news: News) -> usize {
        let News { at, until, .. } = news;
        let last = Mutex::new(until);
        let covered = |principal: &Principal| {
            let covers = news.revocation.covers(principal, at);
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
            self.remember(&news.revocation, Revoked { at, until: last });
            news.until = last;
        }
        // Nobody listening is no failure.
        let _ = self.0.news.send(news);
        forgotten
    }

    /// Whether `principal`'s token has been revoked.
    pub fn cover(&self, principal: &Principal) -> bool {
        if self.0.count.load(Relaxed) == 0 {
            return false;
        }
        let revoked = self.revoked();
        let names = [
            principal.id.clone().map(What::Id),
            principal.session.clone().map(What::Session),
            principal.subject.clone().map(What::Subject),
            Some(What::Token(principal.digest)),
            principal.unsigned_digest.map(What::Token),
        ];
        let issuers = [None, Some(Arc::clone(&principal.issuer))];
        names.into_iter().flatten().any(|what| {
            issuers.iter().any(|issuer| {
                let revocation = Revocation { issuer: issuer.clone(), what: what.clone() };
                revoked.get(&revocation).is_some_and(|revoked| {
                    revocation.covers(principal, revoked.at) && !is_for_its_issuer(&what, principal)
                })
            })
        })
    }

    /// Revocations from now on. Who lags behind asks [`Revocations::cover`] about what they hold.
    pub fn listen(&self) -> broadcast::Receiver<News> {
        self.0.news.subscribe()
    }

    /// Tells `cache` of revocations as long as it lives.
    pub(crate) fn tell(&self, cache: Weak<dyn Forget>) {
        self.0.caches.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
    }

    fn remember(&self, revocation: &Revocation, new: Revoked) {
        let now = self.0.clock.now();
        let mut revoked = self.kept(revocation);
        if revoked.len() >= MOST && !revoked.contains_key(revocation) {
            revoked.retain(|_, revoked| now < revoked.until);
            if revoked.len() >= MOST {
                tracing::error!(
                    most = MOST,
                    "Too many revocations to remember: the one that ends first is forgotten."
                );
                let first = revoked.iter().min_by_key(|(_, revoked)| revoked.until);
                if let Some(first) = first.map(|(first, _)| first.clone()) {
                    revoked.remove(&first);
                }
            }
        }
        let kept = revoked.entry(revocation.clone()).or_insert(new);
        *kept = Revoked { at: kept.at.max(new.at), until: kept.until.max(new.until) };
        if !revocation.is_of_a_visit() {
            self.0.count.store(revoked.len(), Relaxed);
        }
    }

    /// Where `revocation` is remembered.
    fn kept(&self, revocation: &Revocation) -> MutexGuard<'_, HashMap<Revocation, Revoked>> {
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
    /// Whether a revocation made `at` that time ends `principal`'s token.
    pub fn covers(&self, principal: &Principal, at: Timestamp) -> bool {
        if self.issuer.as_ref().is_some_and(|issuer| *issuer != principal.issuer) {
            return false;
        }
        match &self.what {
            What::Id(id) => principal.id.as_ref() == Some(id),
            What::Session(session) => principal.session.as_ref() == Some(session),
            What::Token(digest) => {
                principal.digest == *digest || principal.unsigned_digest == Some(*digest)
            }
            What::Visit(_) | What::Replaced(_) => false,
            What::Subject(subject) => {
                principal.subject.as_ref() == Some(subject)
                    && principal.issued.is_none_or(|issued| issued < at)
            }
        }
    }
}

impl Revocation {
    /// Whether it names no token at all: nothing for those who know only tokens.
    pub(crate) const fn is_of_a_visit(&self) -> bool {
        matches!(self.what, What::Visit(_) | What::Replaced(_))
    }
}

impl News {
    /// Whether `principal`'s token ends by it.
    pub fn covers(&self, principal: &Principal) -> bool {
        self.revocation.covers(principal, self.at)
    }
}

/// Whether only the issuer can tell if a token is from before the revocation of
/// its subject: without `iat`, and about a reference token, it is asked.
fn is_for_its_issuer(what: &What, principal: &Principal) -> bool {
    matches!(what, What::Subject(_))
        && principal.issued.is_none()
        && principal.form == Form::Reference
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
