//! What outlives a reload: counts, endings, sessions on the server, and what
//! came of refresh tokens lately.

use core::ops::Deref;
use core::time::Duration;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;

use super::cookies::seal::KeyRing;
use super::login::login_throttle::{Counts, LoginThrottle};
use super::login::login_times::LoginTimes;
use super::logout::ended_sessions::{EndReason, EndedSessions, SessionName};
use super::logout::session_watch::SessionWatchers;
use super::refresh::events::RefreshEvents;
use super::refresh::refresher::RefreshResults;
use super::settings::{self, Settings, TokenStorage};
use super::store::redis::SharedSessions;
use super::store::server_side::{MemoryStore as Visits, Store};
use crate::base::clock::{Clock, Timestamp};
use crate::base::in_flight::InFlightCalls;
use crate::base::weak_map::WeakMap;
use crate::store::Redis;
use crate::token::revocation::list::RevocationListener;
use crate::token::{Principal, Revocation, RevocationFeed, RevocationList, RevocationTarget};

/// The memory of all sessions; one per process.
#[derive(Debug)]
pub struct SessionRegistry {
    revocations: RevocationList,
    memories: Arc<WeakMap<Key, RetainedState>>,
    /// Failed logins, by the identifier of the authorization server.
    failures: WeakMap<Arc<str>, Counts>,
    redis: ArcSwapOption<Redis>,
    under_way: InFlightCalls,
}

impl SessionRegistry {
    /// Nothing is remembered yet. What ends is told to `revocations`, and heard from there.
    pub fn new(revocations: RevocationList) -> Self {
        let redis = ArcSwapOption::empty();
        let (memories, failures, under_way) = Default::default();
        Self { revocations, memories, failures, redis, under_way }
    }

    /// Waits until nothing is under way whose loss would end a session, but no longer than `patience`.
    /// How much is left.
    pub async fn settle(&self, patience: Duration) -> usize {
        self.under_way.all_ended(patience).await
    }

    /// What is under way whose loss would end a session.
    pub(super) fn under_way(&self) -> InFlightCalls {
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
    pub fn renewals(&self) -> RefreshEvents {
        RefreshEvents::of(Arc::clone(&self.memories))
    }

    /// The memory of the session that `settings` describe.
    pub(super) fn memory(
        &self,
        settings: &Settings,
        issuer: &Arc<str>,
        control: &Handle,
    ) -> Arc<RetainedState> {
        self.revocations.retain_at_least(settings.absolute_timeout);
        self.memories.get_or_insert_with(key(settings, issuer), || {
            let ending = Arc::new(EndedState {
                issuer: Arc::clone(&settings.issuer),
                redeemed: Arc::new(RefreshResults::new(control.clone(), self.under_way.clone())),
                endings: Arc::new(EndedSessions::new(self.revocations.clone())),
                lives: Arc::default(),
                logins: LoginTimes::new(),
                visits: OnceLock::new(),
            });
            let told: Arc<dyn RevocationListener> = Arc::clone(&ending) as _;
            self.revocations.tell_all(&told);
            let by = [&*settings.name, &*settings.issuer, &*settings.client.id].join("\0").into();
            RetainedState { ring: OnceLock::new(), by, ending }
        })
    }

    /// A way in to the authorization server of the identifier `issuer`, where so many failures are `allowed`: counted
    /// together with those of every other one.
    pub(super) fn failures(
        &self,
        allowed: settings::Failures,
        issuer: &Arc<str>,
        clock: &Clock,
    ) -> LoginThrottle {
        let counts =
            self.failures.get_or_insert_with(Arc::clone(issuer), || Counts::new(clock.clone()));
        LoginThrottle::new(allowed, counts)
    }
}

/// What one session remembers as long as anybody uses it.
#[derive(Debug)]
pub(super) struct RetainedState {
    ring: OnceLock<Arc<KeyRing>>,
    /// Whose logout tokens are heeded once: session, issuer and client.
    pub(super) by: Arc<str>,
    pub(super) ending: Arc<EndedState>,
}

/// What of it hears of endings.
#[derive(Debug)]
pub(super) struct EndedState {
    issuer: Arc<str>,
    pub(super) redeemed: Arc<RefreshResults>,
    pub(super) endings: Arc<EndedSessions>,
    pub(super) lives: Arc<SessionWatchers>,
    /// What logins have told of the issuer.
    pub(super) logins: LoginTimes,
    visits: OnceLock<Arc<Visits>>,
}

impl Deref for RetainedState {
    type Target = EndedState;

    fn deref(&self) -> &EndedState {
        &self.ending
    }
}

impl EndedState {
    /// Ends what the issuer of this session calls by that name, everywhere, if it is from before `at`; says how much
    /// there was.
    pub(super) fn revoke(&self, what: RevocationTarget, at: Timestamp) -> usize {
        self.endings.revoke_before(Revocation { issuer: Some(Arc::clone(&self.issuer)), what }, at)
    }

    /// One visit is over; that is nothing to be counted as forgotten.
    fn note(&self, name: &Arc<str>, ending: EndReason) -> usize {
        self.endings.record(name, ending);
        self.lives.end(name);
        0
    }
}

impl RevocationListener for EndedState {
    fn forget(&self, news: &RevocationFeed, _: &dyn Fn(&Principal) -> bool) -> usize {
        if news.revocation.issuer.as_ref().is_some_and(|issuer| *issuer != self.issuer) {
            return 0;
        }
        let named = match &news.revocation.what {
            RevocationTarget::Visit(name) => return self.note(name, EndReason::Over),
            RevocationTarget::Replaced(name) => return self.note(name, EndReason::Replaced),
            RevocationTarget::Session(sid) | RevocationTarget::LoggedOut(sid) => {
                SessionName::Session(Arc::clone(sid))
            }
            RevocationTarget::Subject(subject) => SessionName::Subject(Arc::clone(subject)),
            RevocationTarget::Sessionless(subject) => SessionName::Sessionless(Arc::clone(subject)),
            // Only the access token is dead: the next request finds out, and its refresh token decides.
            RevocationTarget::Id(_) | RevocationTarget::Token(_) => return 0,
        };
        self.endings.note_at_issuer(named, news.at);
        self.lives.end_over(&self.endings);
        let kept = self.visits.get().map_or(0, |visits| visits.forget_over(&self.endings));
        kept + self.redeemed.forget_over(&self.endings)
    }
}

impl RetainedState {
    /// The keys: the operator's, or a random one that lives as long as this memory.
    pub(super) fn ring(&self, settings: &Settings) -> Arc<KeyRing> {
        if settings.keys.is_empty() {
            Arc::clone(self.ring.get_or_init(|| Arc::new(KeyRing::new(&[]))))
        } else {
            Arc::new(KeyRing::new(&settings.keys))
        }
    }

    /// Where sessions are kept, if it is on the server; with `store: redis`, by `redis_session_store`.
    pub(super) fn store(
        &self,
        settings: &Settings,
        sharing: Option<&Arc<SharedSessions>>,
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
