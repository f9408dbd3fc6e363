//! What outlives a reload: counts, endings, sessions on the server, and what
//! came of refresh tokens lately.

use core::ops::Deref;
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;

use super::endings::{Ending, Endings, Named};
use super::failures::{Counts, Failures};
use super::lives::Lives;
use super::logins::Logins;
use super::refresh::Redeemed;
use super::renewals::Renewals;
use super::seal::KeyRing;
use super::settings::{self, Settings, TokenStorage};
use super::sharing::Sharing;
use super::store::{Memory as Visits, Store};
use crate::base::clock::{Clock, Timestamp};
use crate::base::shelf::Shelf;
use crate::base::under_way::UnderWay;
use crate::store::Redis;
use crate::token::revoked::Forget;
use crate::token::{News, Principal, Revocation, Revocations, What};

/// The memory of all sessions; one per process.
#[derive(Debug)]
pub struct Kept {
    revocations: Revocations,
    memories: Arc<Shelf<Key, Memory>>,
    /// Failed logins, by the identifier of the authorization server.
    failures: Shelf<Arc<str>, Counts>,
    redis: ArcSwapOption<Redis>,
    under_way: UnderWay,
}

impl Kept {
    /// Nothing is remembered yet. What ends is told to `revocations`, and heard from there.
    pub fn new(revocations: Revocations) -> Self {
        let redis = ArcSwapOption::empty();
        let (memories, failures, under_way) = Default::default();
        Self { revocations, memories, failures, redis, under_way }
    }

    /// Waits until nothing is under way whose loss would end a session, but no longer than `patience`.
    /// How much is left.
    pub async fn settle(&self, patience: Duration) -> usize {
        self.under_way.ended(patience).await
    }

    /// What is under way whose loss would end a session.
    pub(super) fn under_way(&self) -> UnderWay {
        self.under_way.clone()
    }

    /// Shares sessions that are made from now on with other gateways, in `redis`.
    pub fn share(&self, redis: Option<Arc<Redis>>) {
        self.redis.store(redis);
    }

    /// Where sessions are shared, if they are.
    pub(super) fn redis(&self) -> Option<Arc<Redis>> {
        self.redis.load_full()
    }

    /// Where it is said what other gateways have renewed.
    pub fn renewals(&self) -> Renewals {
        Renewals::of(Arc::clone(&self.memories))
    }

    /// The memory of the session that `settings` describe.
    pub(super) fn memory(
        &self,
        settings: &Settings,
        issuer: &Arc<str>,
        control: &Handle,
    ) -> Arc<Memory> {
        self.revocations.outlast(settings.absolute_timeout);
        self.memories.keep(key(settings, issuer), || {
            let ending = Arc::new(EndingMemory {
                issuer: Arc::clone(&settings.issuer),
                redeemed: Arc::new(Redeemed::new(control.clone(), self.under_way.clone())),
                endings: Arc::new(Endings::new(self.revocations.clone())),
                lives: Arc::default(),
                logins: Logins::new(),
                visits: OnceLock::new(),
            });
            let told: Arc<dyn Forget> = Arc::clone(&ending) as _;
            self.revocations.tell_all(&told);
            let by = [&*settings.name, &*settings.issuer, &*settings.client.id].join("\0").into();
            Memory { ring: OnceLock::new(), by, ending }
        })
    }

    /// A way in to the authorization server of the identifier `issuer`, where so many failures are `allowed`: counted
    /// together with those of every other one.
    pub(super) fn failures(
        &self,
        allowed: settings::Failures,
        issuer: &Arc<str>,
        clock: &Clock,
    ) -> Failures {
        let counts = self.failures.keep(Arc::clone(issuer), || Counts::new(clock.clone()));
        Failures::new(allowed, counts)
    }
}

/// What one session remembers as long as anybody uses it.
#[derive(Debug)]
pub(super) struct Memory {
    ring: OnceLock<Arc<KeyRing>>,
    /// Whose logout tokens are heeded once: session, issuer and client.
    pub(super) by: Arc<str>,
    pub(super) ending: Arc<EndingMemory>,
}

/// What of it hears of endings.
#[derive(Debug)]
pub(super) struct EndingMemory {
    issuer: Arc<str>,
    pub(super) redeemed: Arc<Redeemed>,
    pub(super) endings: Arc<Endings>,
    pub(super) lives: Arc<Lives>,
    /// What logins have told of the issuer.
    pub(super) logins: Logins,
    visits: OnceLock<Arc<Visits>>,
}

impl Deref for Memory {
    type Target = EndingMemory;

    fn deref(&self) -> &EndingMemory {
        &self.ending
    }
}

impl EndingMemory {
    /// Ends what the issuer of this session calls by that name, everywhere, if it is from before `at`; says how much
    /// there was.
    pub(super) fn revoke(&self, what: What, at: Timestamp) -> usize {
        self.endings.revoke_before(Revocation { issuer: Some(Arc::clone(&self.issuer)), what }, at)
    }

    /// One visit is over; that is nothing to be counted as forgotten.
    fn note(&self, name: &Arc<str>, ending: Ending) -> usize {
        self.endings.note(name, ending);
        self.lives.end(name);
        0
    }
}

impl Forget for EndingMemory {
    fn forget(&self, news: &News, _: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.issuer.as_ref().is_some_and(|issuer| *issuer != self.issuer) {
            return 0;
        }
        let named = match &news.revocation.what {
            What::Visit(name) => return self.note(name, Ending::Over),
            What::Replaced(name) => return self.note(name, Ending::Replaced),
            What::Session(sid) | What::LoggedOut(sid) => Named::Session(Arc::clone(sid)),
            What::Subject(subject) => Named::Subject(Arc::clone(subject)),
            What::Sessionless(subject) => Named::Sessionless(Arc::clone(subject)),
            // Only the access token is dead: the next request finds out, and its refresh token decides.
            What::Id(_) | What::Token(_) => return 0,
        };
        self.endings.note_at_issuer(named, news.at);
        self.lives.end_over(&self.endings);
        let kept = self.visits.get().map_or(0, |visits| visits.forget_over(&self.endings));
        kept + self.redeemed.forget_over(&self.endings)
    }
}

impl Memory {
    /// The keys: the operator's, or a random one that lives as long as this memory.
    pub(super) fn ring(&self, settings: &Settings) -> Arc<KeyRing> {
        if settings.keys.is_empty() {
            Arc::clone(self.ring.get_or_init(|| Arc::new(KeyRing::new(&[]))))
        } else {
            Arc::new(KeyRing::new(&settings.keys))
        }
    }

    /// Where sessions are kept, if it is on the server; with `store: redis`, by `sharing`.
    pub(super) fn store(
        &self,
        settings: &Settings,
        sharing: Option<&Arc<Sharing>>,
        control: &Handle,
    ) -> Option<Arc<Store>> {
        let TokenStorage::Server(store) = settings.tokens else { return None };
        let visits = self.visits.get_or_init(|| Arc::new(Visits::new()));
        visits.forget_after(settings.idle_timeout);
        let sharing = sharing.filter(|_| store == settings::Store::Redis);
        Some(Arc::new(Store::new(Arc::clone(visits), sharing.cloned(), control.clone())))
    }
}

/// Session, the issuer's name and identifier, and client: with another of these it is another session, whose tokens are
/// never sent to where those of this one came from.
pub(super) type Key = (Arc<str>, Arc<str>, Arc<str>, Arc<str>);

fn key(settings: &Settings, identifier: &Arc<str>) -> Key {
    let Settings { name, issuer, client, .. } = settings;
    (Arc::clone(name), Arc::clone(issuer), Arc::clone(identifier), Arc::clone(&client.id))
}
