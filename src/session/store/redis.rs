//! What the gateways of a fleet share about a session, in Redis.
//!
//! Visits of `tokens: server`, so that any gateway finds them. And for every
//! kind of session whose turn it is to redeem a refresh token, and what came
//! of it: one redeem in the whole fleet, the same new tokens for whoever comes
//! late, wherever they come.
//!
//! What came of it stays until a browser was given the new tokens and half a
//! minute more, ten minutes at the most, as it does in this process. Then a
//! mark of twenty digits says for ten minutes that the old tokens were
//! replaced, so that a slow answer elsewhere does not bring them back.
//!
//! Redis sees no token, no cookie and no visit's id: names are hashes, and
//! values are sealed under the session's key ring, each bound to its name.

use core::convert::Infallible;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use super::loaded::LoadedSession;
use super::redis_scripts::{
    ACQUIRE_LOCK, COMPLETE_REFRESH, EXTEND_LOCK, PUT, RELEASE_LOCK, REPUBLISH, SAVE,
};
use super::state::{Id, SessionState};
use crate::base::clock::Clock;
use crate::base::secret::Secret;
use crate::session::cookies::seal::{KeyRing, random};
use crate::session::refresh::decision;
use crate::session::refresh::decision::IssuerOutcome;
use crate::session::refresh::events;
use crate::session::refresh::events::RefreshEvents;
use crate::session::settings::{Forward, Settings, TokenStorage};
use crate::store::{Condition, Redis, Unavailable, Value};

/// One session's share of Redis.
pub(crate) struct SharedSessions {
    redis: Arc<Redis>,
    ring: Arc<KeyRing>,
    clock: Clock,
    forward: Forward,
    /// Session, issuer and client: with another of these it is another session.
    scope: Vec<u8>,
    /// The place that sealed cookies are bound to, if visits are in these: gateways pass on their very text.
    cookie: Option<Box<[u8]>>,
    idle: Duration,
    absolute: Duration,
    /// How long a turn is kept by a gateway that does not say that it still has it.
    lease: Duration,
    /// How long a redeem may take, and what comes of it be waited for.
    patience: Duration,
    /// What could not be said yet: so many things.
    owed: Arc<AtomicUsize>,
}

impl SharedSessions {
    /// The share of the session that `settings` describe; `cookie` is the place that its sealed cookies
    /// are bound to, `redeem` how long a redeem may take, from looking for the endpoint to the last byte, and
    /// `call` how long any other call to the issuer may.
    ///
    /// `None` if no other gateway could read it, because this one's key is random.
    pub(crate) fn new(
        redis: Option<Arc<Redis>>,
        settings: &Settings,
        ring: Arc<KeyRing>,
        clock: Clock,
        cookie: &[u8],
        call: Duration,
        redeem: Duration,
    ) -> Option<Self> {
        if settings.keys.is_empty() {
            return None;
        }
        Some(Self {
            redis: redis?,
            ring,
            clock,
            forward: settings.forward,
            scope: cookie.to_vec(),
            cookie: (settings.tokens == TokenStorage::SealedCookies).then(|| cookie.into()),
            idle: settings.idle_timeout,
            absolute: settings.absolute_timeout,
            lease: call.max(MIN_LOCK_TTL),
            // Longer than anything a redeem waits for.
            patience: redeem + LOCK_TTL_MARGIN,
            owed: Arc::default(),
        })
    }

    /// Where the visit `id` is kept. The id has 128 random bits: nothing leads back to it.
    fn visit_key(&self, id: Id) -> String {
        let mut hashed = digest::Context::new(&digest::SHA256);
        hashed.update(&self.scope);
        hashed.update(b"\0visit\0");
        hashed.update(id.to_text().as_bytes());
        self.redis.key("visit", &URL_SAFE_NO_PAD.encode(hashed.finish()))
    }

    /// Where it is kept what came of `refresh_token`.
    fn place(&self, refresh_token: &Secret<String>) -> SessionKeys {
        let token = refresh_token.expose().as_bytes();
        let name = self.ring.keyed_id(&[&self.scope, &b"\0refresh\0"[..], token].concat());
        SessionKeys {
            record: self.redis.key("refreshed", &name),
            turn: self.redis.key("lease", &name),
            begun: self.redis.key("begun", &name),
            given: self.redis.key("given", &name),
        }
    }

    /// Asks for the visit `id`.
    pub(crate) async fn find(&self, id: Id) -> Result<SharedLookup, Unavailable> {
        let key = self.visit_key(id);
        let Some(value) = self.redis.find(&key).await? else { return Ok(SharedLookup::Nothing) };
        if value == ENDED {
            return Ok(SharedLookup::Over);
        }
        let text = value.get(RECEIVED_AT_DIGITS..).and_then(|text| core::str::from_utf8(text).ok());
        Ok(text.map_or(SharedLookup::Nothing, |text| SharedLookup::Sealed(text.into())))
    }

    /// Whether `loaded_session` is over by having been idle alone.
    pub(crate) fn is_idle(&self, opened: &LoadedSession) -> bool {
        let (visit, now) = (&opened.visit, self.clock.now());
        now >= visit.seen.plus(self.idle) && now < visit.since.plus(self.absolute)
    }

    /// Opens what [`SharedSessions::find`] has found of the visit `id`.
    pub(crate) fn open(&self, id: Id, text: Box<str>) -> Option<LoadedSession> {
        let plain = self.ring.open(self.visit_key(id).as_bytes(), text.as_bytes())?;
        let opened = LoadedSession::new(SessionState::from_bytes(&plain)?, self.forward);
        opened.sealed(|_| text.into());
        Some(opened)
    }

    /// Keeps `loaded_session` for all gateways, unless what they have is later, or over.
    pub(crate) async fn keep(&self, opened: &LoadedSession) -> Result<(), Unavailable> {
        let (key, age, text, left) = self.kept(opened);
        self.redis.run(&SAVE, &[&key], &[age.as_bytes(), text.as_bytes(), &left]).await
    }

    /// Where `loaded_session` is kept, how old it is, its text, and how long it is kept.
    fn kept<'a>(&self, opened: &'a LoadedSession) -> (String, String, &'a str, Vec<u8>) {
        let visit = &opened.visit;
        let key = self.visit_key(visit.id);
        let text = opened.sealed(|visit| self.ring.seal(key.as_bytes(), &visit.to_bytes()));
        let left = visit.over_at(self.idle, self.absolute).since(self.clock.now()) + CLOCK_SKEW;
        (key, age(visit), text, millis(left))
    }

    /// Says that the visit `id` is over although nobody here knows it: its tokens go to `give_back` first,
    /// as soon as they can be looked up. In the background, until that is done; `false` if there is too much
    /// to be done already.
    pub(crate) fn end_unseen(
        self: &Arc<Self>,
        id: Id,
        give_back: impl FnOnce(Option<LoadedSession>) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> bool {
        let this = Arc::clone(self);
        self.owe(async move {
            let found = loop {
                match this.find(id).await {
                    Ok(found) => break found,
                    Err(Unavailable) => this.redis.wait_to_retry(PUBLISH_INTERVAL).await,
                }
            };
            while this.end(id).await.is_err() {
                this.redis.wait_to_retry(PUBLISH_INTERVAL).await;
            }
            give_back(match found {
                SharedLookup::Sealed(text) => this.open(id, text),
                SharedLookup::Over | SharedLookup::Nothing => None,
            })
            .await;
        })
    }

    /// Keeps the new visit `loaded_session` for all gateways: nobody has its name before that is certain.
    pub(crate) async fn keep_new(&self, opened: &LoadedSession) -> Result<(), Unavailable> {
        let (key, age, text, left) = self.kept(opened);
        let (keys, arguments): ([&str; 1], [&[u8]; 3]) =
            ([&key], [age.as_bytes(), text.as_bytes(), &left]);
        self.insist(|| self.redis.run_with_grace(&SAVE, &keys, &arguments)).await
    }

    /// Says that the visit `id` is over. Its name stays until it would have ended by itself, so
    /// that one which is over is told from one that Redis has lost.
    pub(crate) async fn end(&self, id: Id) -> Result<(), Unavailable> {
        let key = self.visit_key(id);
        self.redis.run(&PUT, &[&key], &[ENDED, &millis(self.absolute + CLOCK_SKEW)]).await
    }

    /// Says that a login has brought a session which its issuer calls `sid`.
    pub(crate) async fn note_login(&self, sid: &str) -> Result<(), Unavailable> {
        let key = self.login_key(sid);
        self.redis.run(&PUT, &[&key], &[b"", &millis(self.absolute + CLOCK_SKEW)]).await
    }

    /// Whether a login at any gateway has brought a session which its issuer calls `sid`.
    pub(crate) async fn knows_login(&self, sid: &str) -> Result<bool, Unavailable> {
        Ok(self.redis.find(&self.login_key(sid)).await?.is_some())
    }

    fn login_key(&self, sid: &str) -> String {
        self.redis.key(
            "sid",
            &self.ring.keyed_id(&[&self.scope, &b"\0sid\0"[..], sid.as_bytes()].concat()),
        )
    }

    /// A turn to be asked for: to redeem the refresh token of `session_state`.
    pub(crate) fn turn(&self, visit: &SessionState, token: &Secret<String>) -> RefreshLock {
        RefreshLock { place: self.place(token), visit: self.visit_key(visit.id), owner: random() }
    }

    /// Asks for the turn that would be `ours`; `None` if that cannot be told.
    pub(crate) async fn take(
        &self,
        ours: &RefreshLock,
        before: &SessionState,
    ) -> Option<LockState> {
        let RefreshLock { place, visit, owner } = ours;
        let keys: [&str; 4] = [&place.record, &place.turn, visit, &place.begun];
        let arguments: [&[u8]; 3] = [owner, &millis(self.lease), &millis(RESULT_RETENTION)];
        let answer = self.redis.run_with_grace(&ACQUIRE_LOCK, &keys, &arguments).await;
        Some(match answer.ok()? {
            Value::BulkString(sealed) => match self.open_record(place.clone(), &sealed, before) {
                Some(opened) => LockState::Done(Arc::new(opened)),
                // Sealed under a key that this gateway does not have: it must not redeem all the same.
                None => LockState::Busy,
            },
            Value::Int(1) => LockState::Mine,
            Value::Int(2) => LockState::Lapsed,
            Value::Int(-1) => LockState::Over,
            _ => LockState::Busy,
        })
    }

    /// Keeps the turn `ours` for as long as it is awaited, and takes it where Redis comes back meanwhile.
    pub(crate) async fn hold(&self, ours: &RefreshLock) -> Infallible {
        let RefreshLock { place, owner, .. } = ours;
        let keys: [&str; 2] = [&place.turn, &place.begun];
        let arguments: [&[u8]; 3] = [owner, &millis(self.lease), &millis(RESULT_RETENTION)];
        loop {
            self.redis.wait_to_retry(PUBLISH_INTERVAL.min(self.lease / 4)).await;
            // The next attempt comes long before the lease has passed.
            let _ = self.redis.run::<u8>(&EXTEND_LOCK, &keys, &arguments).await;
        }
    }

    /// The name of this gateway.
    pub(crate) fn me(&self) -> u64 {
        self.redis.me()
    }

    /// Whether Redis can be relied on.
    pub(crate) fn condition(&self) -> Condition {
        self.redis.condition()
    }

    /// Whether this gateway is the one that may redeem without Redis what would be `ours`, of a
    /// session whose tokens the gateway `home` has got.
    pub(crate) fn is_chosen(&self, ours: &RefreshLock, home: u64) -> bool {
        let name = ours.place.record.as_bytes();
        let weight = |member: u64| {
            let sum = digest::digest(&digest::SHA256, &[name, &member.to_be_bytes()].concat());
            let mut weight = [0; 32];
            weight.copy_from_slice(sum.as_ref());
            weight
        };
        decision::is_chosen(self.redis.me(), home, &self.redis.members(), weight)
    }

    /// Asks again while Redis is there: an answer that comes late is no absence.
    async fn insist<T, A>(&self, ask: impl Fn() -> A) -> Result<T, Unavailable>
    where
        A: Future<Output = Result<T, Unavailable>>,
    {
        for _ in 1..MAX_ATTEMPTS {
            match ask().await {
                Err(Unavailable) if self.redis.is_connected() => {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                answer => return answer,
            }
        }
        ask().await
    }

    /// What has become of `session_state` at any gateway, as far as its refresh token tells.
    pub(crate) async fn find_later(
        &self,
        visit: &SessionState,
        token: &Secret<String>,
    ) -> DeferredPublish {
        let (place, key) = (self.place(token), self.visit_key(visit.id));
        let ask = || self.redis.find_all([&place.record, &place.given, &key]);
        // Who cannot ask does not know.
        let Ok([record, given, kept]) = self.insist(ask).await else {
            return DeferredPublish::default();
        };
        let is_replaced = given.is_some_and(|given| given.as_slice() > age(visit).as_bytes());
        let renewed = record.map(|record| self.open_record(place, &record, visit));
        DeferredPublish {
            // Sealed under a key that this gateway does not have: newer than what it has all the same.
            is_replaced: is_replaced || matches!(renewed, Some(None)),
            is_over: kept.is_some_and(|kept| kept == ENDED),
            renewed: renewed.flatten().map(Arc::new),
        }
    }

    /// Says that `session_state` is over: no gateway renews it any more, and whoever is redeeming its
    /// refresh token now finds out. What cannot be said now is said when Redis is back.
    pub(crate) async fn end_session(self: &Arc<Self>, visit: &SessionState) {
        let id = visit.id;
        if self.insist(|| self.end(id)).await.is_err() {
            let this = Arc::clone(self);
            self.owe(async move {
                while this.end(id).await.is_err() {
                    this.redis.wait_to_retry(PUBLISH_INTERVAL).await;
                }
            });
        }
    }

    /// Has something said in the background until it is, unless there is too much of that already: `false`.
    fn owe(&self, saying: impl Future<Output = ()> + Send + 'static) -> bool {
        let owed = Arc::clone(&self.owed);
        if owed.fetch_add(1, Relaxed) >= MAX_PENDING_WRITES {
            owed.fetch_sub(1, Relaxed);
            tracing::error!(
                most = MAX_PENDING_WRITES,
                "Redis is away for too long: other gateways are not told of a session any more."
            );
            return false;
        }
        self.redis.control().spawn(async move {
            saying.await;
            owed.fetch_sub(1, Relaxed);
        });
        true
    }

    /// Says what came of a turn when Redis is back. Nothing came of it without `overtaken`, which
    /// is run if the visit has been ended meanwhile.
    pub(crate) fn tell_later(
        self: &Arc<Self>,
        finish: CompleteRefresh,
        overtaken: Option<BoxFuture<'static, ()>>,
    ) {
        let this = Arc::clone(self);
        self.owe(async move {
            let end = Instant::now() + this.lease;
            loop {
                match (this.publish(&finish).await, &overtaken) {
                    (Ok(false), Some(_)) => break,
                    (Ok(_), _) => return,
                    // The turn has passed by itself.
                    (Err(Unavailable), None) if Instant::now() > end => return,
                    (Err(Unavailable), _) => this.redis.wait_to_retry(PUBLISH_INTERVAL).await,
                }
            }
            if let Some(overtaken) = overtaken {
                overtaken.await;
            }
        });
    }

    /// What is to be said at the end of a turn that brought `renewed`, in the place of `before`.
    pub(crate) fn finish(
        &self,
        RefreshLock { place, visit, owner }: RefreshLock,
        before: &SessionState,
        renewed: Option<&LoadedSession>,
    ) -> CompleteRefresh {
        let mut arguments = vec![owner.to_vec(), MAX_REFRESH_EVENTS.to_vec(), ENDED.to_vec()];
        if let Some(opened) = renewed {
            let sealed = self.sealed_record(&place, opened);
            let good_for = opened.visit.valid_until(before).since(self.clock.now());
            arguments.extend([sealed.into_bytes(), millis(good_for.min(RESULT_RETENTION))]);
            arguments.extend(events::fields(&opened.name, opened.visit.ends));
            opened.comes_of(RefreshOrigin {
                place: place.clone(),
                mark: mark(&opened.visit, before),
            });
        }
        CompleteRefresh { place, visit, arguments }
    }

    fn sealed_record(&self, place: &SessionKeys, opened: &LoadedSession) -> String {
        let bound = place.record.as_bytes();
        match &self.cookie {
            Some(cookie) => {
                let text = opened.sealed(|visit| self.ring.seal(cookie, &visit.to_bytes()));
                self.ring.seal(bound, text.as_bytes())
            }
            None => self.ring.seal(bound, &opened.visit.to_bytes()),
        }
    }

    /// Says once more what came of a turn, for as long as that is `left` to be known: Redis may have lost it.
    pub(crate) async fn say_again(
        &self,
        opened: &LoadedSession,
        left: Duration,
    ) -> Result<(), Unavailable> {
        let Some(RefreshOrigin { place, .. }) = opened.origin() else { return Ok(()) };
        let sealed = self.sealed_record(place, opened);
        self.redis.run(&REPUBLISH, &[&place.record], &[sealed.as_bytes(), &millis(left)]).await
    }

    /// Changes whenever Redis is back, or has lost what it was given.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.redis.connections()
    }

    /// Waits until what could not be said may be said again.
    pub(crate) async fn wait_to_retry(&self) {
        self.redis.wait_to_retry(PUBLISH_INTERVAL).await;
    }

    /// Ends a turn, and says what came of it: the next may come. `false` if the visit has been
    /// ended meanwhile; what came of it is nobody's then.
    pub(crate) async fn publish(&self, finish: &CompleteRefresh) -> Result<bool, Unavailable> {
        let CompleteRefresh { place, visit, arguments } = finish;
        let renewed = RefreshEvents::key(&self.redis);
        let keys: [&str; 5] = [&place.record, &place.turn, &renewed, visit, &place.begun];
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let said: u8 = self.redis.run_with_grace(&COMPLETE_REFRESH, &keys, &arguments).await?;
        Ok(said == 1)
    }

    /// Says that a browser is given the tokens of `loaded_session`, where they came of others.
    pub(crate) fn release(self: &Arc<Self>, opened: &LoadedSession) {
        let Some(RefreshOrigin { place, mark }) = opened.origin().cloned() else { return };
        let this = Arc::clone(self);
        self.redis.control().spawn(async move {
            let keys: [&str; 2] = [&place.record, &place.given];
            let arguments: [&[u8]; 3] =
                [&millis(GRACE), mark.as_bytes(), &millis(RESULT_RETENTION)];
            // If it cannot be said, what came of them stays a little longer.
            let _ = this.redis.run::<u8>(&RELEASE_LOCK, &keys, &arguments).await;
        });
    }

    fn open_record(
        &self,
        place: SessionKeys,
        record: &[u8],
        before: &SessionState,
    ) -> Option<LoadedSession> {
        let text = self.ring.open(place.record.as_bytes(), record)?;
        let opened = match &self.cookie {
            None => LoadedSession::new(SessionState::from_bytes(&text)?, self.forward),
            Some(cookie) => {
                let plain = self.ring.open(cookie, &text)?;
                let opened = LoadedSession::new(SessionState::from_bytes(&plain)?, self.forward);
                // Browsers that mix the parts of two texts would hold neither.
                opened.sealed(|_| String::from_utf8_lossy(&text).into_owned());
                opened
            }
        };
        opened.comes_of(RefreshOrigin { place, mark: mark(&opened.visit, before) });
        Some(opened)
    }

    /// How long what comes of another gateway's turn may be waited for.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// How long a turn is kept by a gateway that does not say that it still has it.
    pub(crate) const fn lease(&self) -> Duration {
        self.lease
    }
}

/// What Redis knows of a visit.
pub(crate) enum SharedLookup {
    /// The visit, sealed.
    Sealed(Box<str>),
    /// It is over.
    Over,
    /// Nothing, or nothing any more.
    Nothing,
}

/// Whose turn it is to redeem.
pub(crate) enum LockState {
    /// Ours: redeem, and say what came of it.
    Mine,
    /// Ours, after another gateway had it and never said what came of it.
    Lapsed,
    /// Another gateway's: ask again in a moment.
    Busy,
    /// Nobody's: another gateway has done it.
    Done(Arc<LoadedSession>),
    /// Nobody's: the visit is over.
    Over,
}

impl LockState {
    /// The same, without what came of it.
    pub(crate) const fn answer(&self) -> IssuerOutcome {
        match self {
            Self::Mine => IssuerOutcome::Mine,
            Self::Lapsed => IssuerOutcome::Lapsed,
            Self::Busy => IssuerOutcome::Busy,
            Self::Done(_) => IssuerOutcome::Done,
            Self::Over => IssuerOutcome::Over,
        }
    }
}

/// What has become of a visit since.
#[derive(Default)]
pub(crate) struct DeferredPublish {
    /// These tokens.
    pub(crate) renewed: Option<Arc<LoadedSession>>,
    /// Others, which the browser has been given.
    pub(crate) is_replaced: bool,
    /// Nothing any more: it is over.
    pub(crate) is_over: bool,
}

/// Where it is kept what came of one refresh token.
#[derive(Clone)]
pub(crate) struct SessionKeys {
    /// The new tokens.
    record: String,
    /// Whose turn it is.
    turn: String,
    /// Whose turn it was first, until it is said what came of it.
    begun: String,
    /// The mark of the tokens that a browser was given.
    given: String,
}

/// Of what tokens came: for those who still have the ones before.
#[derive(Clone)]
pub(crate) struct RefreshOrigin {
    place: SessionKeys,
    /// How later ones than before are told from them.
    mark: String,
}

/// The right to redeem one refresh token, for a while, once it is taken. Only its owner can give it back.
#[derive(Clone)]
pub(crate) struct RefreshLock {
    place: SessionKeys,
    /// Where it is said that the visit is over.
    visit: String,
    owner: [u8; 16],
}

/// What is to be said when a turn ends.
pub(crate) struct CompleteRefresh {
    place: SessionKeys,
    visit: String,
    arguments: Vec<Vec<u8>>,
}

impl fmt::Debug for SharedSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing").field("redis", &self.redis).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> Vec<u8> {
    duration.as_millis().max(1).to_string().into_bytes()
}

/// When the tokens of `session_state` were received, so written that later ones are greater.
fn age(visit: &SessionState) -> String {
    format!("{:0RECEIVED_AT_DIGITS$}", visit.received.as_nanos())
}

/// What tells `next` from `before`: greater than its age, also where clocks differ. Of a refresh
/// token that was not rotated come several, of which only their age says which is the later.
fn mark(next: &SessionState, before: &SessionState) -> String {
    if next.is_rotated(before) { "9".repeat(RECEIVED_AT_DIGITS) } else { age(next) }
}

/// What stands in the place of a visit that is over.
const ENDED: &[u8] = b"over";
/// Digits of the moment at which a visit's tokens were received: more of them are later.
const RECEIVED_AT_DIGITS: usize = 20;
/// Gateways' clocks differ a little.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// How often Redis is asked while it is there: so often that it would not count as there any more.
const MAX_ATTEMPTS: usize = 6;
const RETRY_INTERVAL: Duration = Duration::from_millis(25);
/// A lease whose gateway is gone passes after what a call to the issuer may take; this is the least.
const MIN_LOCK_TTL: Duration = Duration::from_secs(1);
/// Between attempts to say something, and to keep a turn, while Redis is there.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);
/// What is said later, at once.
const MAX_PENDING_WRITES: usize = 10_000;
/// On top of what a redeem may wait for.
const LOCK_TTL_MARGIN: Duration = Duration::from_secs(5);
/// How long stragglers with an old cookie get what came of it, once a browser was given that.
pub(crate) const GRACE: Duration = Duration::from_secs(30);
/// How long a redeemed token is known: an answer may take that long, and a stolen token is told from
/// one that has ended.
pub(crate) const RESULT_RETENTION: Duration = Duration::from_secs(600);
/// Refreshes that are told for streams elsewhere, at once.
const MAX_REFRESH_EVENTS: &[u8] = b"10000";
