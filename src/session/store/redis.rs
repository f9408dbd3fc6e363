//! Session data that instances of the gateway share in Redis.
//!
//! Sessions of `tokens: server`, so that any instance finds them. And for every
//! storage kind a lock per refresh token and the result of its refresh: all
//! instances together redeem it once, and a request with the old tokens gets
//! the new ones at any instance.
//!
//! The result stays until half a minute after a browser was given the new
//! tokens, at most ten minutes, as it does in process memory. Then a marker of
//! twenty digits records for ten minutes that the old tokens were replaced, so
//! that a slow response of another instance does not restore them.
//!
//! Redis sees no token, no cookie and no session id: keys are hashes, and
//! values are sealed under the session's key ring, each bound to its key.

use core::convert::Infallible;
use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use super::loaded_session::LoadedSession;
use super::lookup::{LockState, SharedLookup, Successor};
use super::redis_scripts::{
    ACQUIRE_LOCK, COMPLETE_REFRESH, EXTEND_LOCK, PUT, RELEASE_LOCK, REPUBLISH, SAVE,
};
use super::refresh_origin::{RefreshKeys, RefreshOrigin};
use super::shared_revocations::SharedRevocations;
use super::state::{GRACE, Id, SessionState};
use crate::base::clock::Clock;
use crate::base::digest::sha256;
use crate::base::random::random;
use crate::base::secret::Secret;
use crate::issuer;
use crate::redis::{Condition, RESTORE_TIME, Redis, Unavailable, Value};
use crate::session::cookies::seal::SealingKeys;
use crate::session::refresh::decision;
use crate::session::refresh::refresh_events;
use crate::session::settings::{ForwardedSessionToken, Settings, TokenStorage};

/// The shared data of one `sessions.<name>`.
pub(crate) struct SharedSessions {
    redis: Arc<Redis>,
    ring: Arc<SealingKeys>,
    clock: Clock,
    forward: ForwardedSessionToken,
    /// Session, issuer and client: a change of one of these makes another session.
    scope: Vec<u8>,
    /// Issuer and client, whose logins all sessions of that client share.
    client: Vec<u8>,
    /// The associated data of sealed cookies, if sessions are stored in these: instances share the very text.
    cookie: Option<Box<[u8]>>,
    idle: Duration,
    absolute: Duration,
    /// The time after which a lock expires that its owner does not extend.
    lease: Duration,
    /// The time that a refresh may take, and that other instances wait for its result.
    patience: Duration,
    /// The number of writes to be repeated when Redis is reachable.
    pending: Arc<AtomicUsize>,
}

impl SharedSessions {
    /// Returns the shared data of the session that `settings` describe at `issuer`. `cookie` is the associated data of its
    /// sealed cookies.
    ///
    /// `None` if other instances could not read it, because this one's key is random.
    pub(crate) fn new(
        redis: Option<Arc<Redis>>,
        settings: &Settings,
        ring: Arc<SealingKeys>,
        clock: Clock,
        cookie: &[u8],
        issuer: &issuer::Settings,
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
            client: [issuer.issuer.as_bytes(), settings.client.id.as_bytes()].join(&0),
            cookie: (settings.tokens == TokenStorage::SealedCookies).then(|| cookie.into()),
            idle: settings.idle_timeout,
            absolute: settings.absolute_timeout,
            lease: issuer.timeout.max(MIN_LOCK_TTL),
            // Longer than anything a refresh waits for, from discovery of the endpoint to the last byte.
            patience: issuer.timeout + issuer.extended_timeout() + LOCK_TTL_MARGIN,
            pending: Arc::default(),
        })
    }

    /// Returns the name that all instances have for `what`: a hash that does not depend on the key ring, whose keys differ
    /// between instances while an operator rotates them. Ids and tokens cannot be guessed, and so not read from it.
    fn name(&self, label: &[u8], what: &str) -> String {
        URL_SAFE_NO_PAD.encode(sha256(&[&self.scope, label, what.as_bytes()]))
    }

    /// The key of the session `id`.
    fn session_key(&self, id: Id) -> String {
        self.redis.key("visit", &self.name(b"\0visit\0", &id.to_text()))
    }

    /// The keys for the refresh of `refresh_token`.
    fn refresh_keys(&self, refresh_token: &Secret<String>) -> RefreshKeys {
        let name = self.name(b"\0refresh\0", refresh_token.expose());
        RefreshKeys {
            record: self.redis.key("refreshed", &name),
            lock: self.redis.key("lease", &name),
            begun: self.redis.key("begun", &name),
            given: self.redis.key("given", &name),
        }
    }

    /// Looks up the session `id`.
    pub(crate) async fn find(&self, id: Id) -> Result<SharedLookup, Unavailable> {
        let key = self.session_key(id);
        let Some(value) = self.redis.find(&key).await? else { return Ok(SharedLookup::NotFound) };
        if value == ENDED {
            return Ok(SharedLookup::Ended);
        }
        Ok(sealed_text(&value).map_or(SharedLookup::NotFound, SharedLookup::Sealed))
    }

    /// Opens the session `id` that `ACQUIRE_LOCK` returned, because its tokens are later.
    fn open_later(&self, id: Id, values: &[Value]) -> Option<LoadedSession> {
        let [Value::BulkString(value)] = values else { return None };
        self.open(id, sealed_text(value)?)
    }

    /// Whether the session has ended only by having been idle.
    pub(crate) fn is_idle(&self, loaded: &LoadedSession) -> bool {
        let (state, now) = (&loaded.state, self.clock.now());
        now >= state.seen.plus(self.idle) && now < state.since.plus(self.absolute)
    }

    /// Opens the text that [`SharedSessions::find`] returned for the session `id`.
    pub(crate) fn open(&self, id: Id, text: Box<str>) -> Option<LoadedSession> {
        let plain = self.ring.open(self.session_key(id).as_bytes(), text.as_bytes())?;
        let loaded = LoadedSession::new(SessionState::from_bytes(&plain)?, self.forward);
        loaded.sealed(|_| text.into());
        Some(loaded)
    }

    /// Stores a session for all instances, unless theirs is later or has ended.
    pub(crate) async fn keep(&self, loaded: &LoadedSession) -> Result<(), Unavailable> {
        let (key, age, text, left) = self.kept(loaded);
        self.redis.run(&SAVE, &[&key], &[age.as_bytes(), text.as_bytes(), &left]).await
    }

    /// Returns the key of the session, its age, its sealed text, and the time to live.
    fn kept<'a>(&self, loaded: &'a LoadedSession) -> (String, String, &'a str, Vec<u8>) {
        let state = &loaded.state;
        let key = self.session_key(state.id);
        let text = loaded.sealed(|state| self.ring.seal(key.as_bytes(), &state.to_bytes()));
        let left = state.over_at(self.idle, self.absolute).since(self.clock.now()) + CLOCK_SKEW;
        (key, age(state), text, millis(left))
    }

    /// Ends the session `id`, which this instance has not loaded, in the background: passes it to `revoke_tokens` as soon as
    /// Redis can be read, so that its tokens are revoked. Returns `false` if too many writes are pending already.
    pub(crate) fn end_unseen(
        self: &Arc<Self>,
        id: Id,
        revoke_tokens: impl FnOnce(Option<LoadedSession>) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> bool {
        let this = Arc::clone(self);
        self.retry_later(async move {
            let found = loop {
                match this.find(id).await {
                    Ok(found) => break found,
                    Err(Unavailable) => this.redis.wait_to_retry(PUBLISH_INTERVAL).await,
                }
            };
            while this.end(id).await.is_err() {
                this.redis.wait_to_retry(PUBLISH_INTERVAL).await;
            }
            revoke_tokens(match found {
                SharedLookup::Sealed(text) => this.open(id, text),
                SharedLookup::Ended | SharedLookup::NotFound => None,
            })
            .await;
        })
    }

    /// Stores a new session for all instances; its id is handed out only after that has succeeded.
    pub(crate) async fn keep_new(&self, loaded: &LoadedSession) -> Result<(), Unavailable> {
        let (key, age, text, left) = self.kept(loaded);
        let (keys, arguments): ([&str; 1], [&[u8]; 3]) =
            ([&key], [age.as_bytes(), text.as_bytes(), &left]);
        self.retry_while_connected(|| self.redis.run_with_grace(&SAVE, &keys, &arguments)).await
    }

    /// Records that the session `id` has ended. The key stays until the session would have ended by itself, so
    /// that an ended session differs from one that Redis has lost.
    pub(crate) async fn end(&self, id: Id) -> Result<(), Unavailable> {
        let key = self.session_key(id);
        self.redis.run(&PUT, &[&key], &[ENDED, &millis(self.absolute + CLOCK_SKEW)]).await
    }

    /// Records a login whose session the issuer calls `sid`.
    pub(crate) async fn note_login(&self, sid: &str) -> Result<(), Unavailable> {
        let key = self.login_key(sid);
        self.redis.run(&PUT, &[&key], &[b"", &millis(self.absolute + CLOCK_SKEW)]).await
    }

    /// Whether a login of this client at any instance had this `sid`, in any of its sessions.
    pub(crate) async fn knows_login(&self, sid: &str) -> Result<bool, Unavailable> {
        Ok(self.redis.find(&self.login_key(sid)).await?.is_some())
    }

    /// The key of the logins with `sid`. Sessions of one client may have different key rings, and a `sid` opens nothing:
    /// it is hashed without one.
    fn login_key(&self, sid: &str) -> String {
        let name = sha256(&[&self.client, b"\0sid\0", sid.as_bytes()]);
        self.redis.key("sid", &URL_SAFE_NO_PAD.encode(name))
    }

    /// Returns a lock, not yet acquired, on redeeming the refresh token of `state`.
    pub(crate) fn refresh_lock(&self, state: &SessionState, token: &Secret<String>) -> RefreshLock {
        RefreshLock {
            token_keys: self.refresh_keys(token),
            session: self.session_key(state.id),
            owner: random(),
        }
    }

    /// Tries to acquire the lock `ours`; `None` if Redis does not respond.
    pub(crate) async fn take(
        &self,
        ours: &RefreshLock,
        before: &SessionState,
    ) -> Option<LockState> {
        let RefreshLock { token_keys, session, owner } = ours;
        let RefreshKeys { record, lock, begun, .. } = token_keys;
        let members = self.redis.members_key();
        let keys: [&str; 5] = [record, lock, session, begun, &members];
        let (ttl, retention, age) = (millis(self.lease), millis(RESULT_RETENTION), age(before));
        let restored = millis(RESTORE_TIME);
        let arguments: [&[u8]; 5] = [owner, &ttl, &retention, age.as_bytes(), &restored];
        let response = self.redis.run_with_grace(&ACQUIRE_LOCK, &keys, &arguments).await;
        Some(match response.ok()? {
            Value::BulkString(sealed) => {
                match self.open_record(token_keys.clone(), &sealed, before) {
                    Some(loaded) => LockState::Refreshed(Arc::new(loaded)),
                    // Sealed under a key that this instance does not have: it must not redeem all the same.
                    None => LockState::Held,
                }
            }
            Value::Array(later) => match self.open_later(before.id, &later) {
                Some(loaded) => LockState::Refreshed(Arc::new(loaded)),
                None => LockState::Held,
            },
            Value::Int(1) => LockState::Acquired,
            Value::Int(2) => LockState::AcquiredAfterExpiry,
            Value::Int(3) => LockState::Restoring,
            Value::Int(-1) => LockState::Ended,
            _ => LockState::Held,
        })
    }

    /// Extends the lock `ours` until dropped, and acquires it if Redis becomes reachable meanwhile.
    pub(crate) async fn hold(&self, ours: &RefreshLock) -> Infallible {
        let RefreshLock { token_keys, owner, .. } = ours;
        let keys: [&str; 2] = [&token_keys.lock, &token_keys.begun];
        let arguments: [&[u8]; 3] = [owner, &millis(self.lease), &millis(RESULT_RETENTION)];
        loop {
            self.redis.wait_to_retry(PUBLISH_INTERVAL.min(self.lease / 4)).await;
            // The next attempt comes long before the lock expires.
            let _ = self.redis.run::<u8>(&EXTEND_LOCK, &keys, &arguments).await;
        }
    }

    /// Returns the revocations that instances have yet to make.
    pub(crate) fn pending_revocations(&self) -> SharedRevocations {
        SharedRevocations::new(Arc::clone(&self.redis), &self.scope, self.clock.clone())
    }

    /// Returns the identifier of this instance.
    pub(crate) fn me(&self) -> u64 {
        self.redis.me()
    }

    /// Returns how far Redis can be relied on.
    pub(crate) fn condition(&self) -> Condition {
        self.redis.condition()
    }

    /// Whether this instance is the one that may redeem without Redis under the lock `ours`, for a
    /// session whose tokens the instance `home` received.
    pub(crate) fn is_chosen(&self, ours: &RefreshLock, home: u64) -> bool {
        let name = ours.token_keys.record.as_bytes();
        let weight = |member: u64| sha256(&[name, &member.to_be_bytes()]);
        decision::is_chosen(self.redis.me(), home, &self.redis.members(), weight)
    }

    /// Repeats a call while Redis is connected: a late response is not an outage.
    async fn retry_while_connected<T, A>(&self, call: impl Fn() -> A) -> Result<T, Unavailable>
    where
        A: Future<Output = Result<T, Unavailable>>,
    {
        for _ in 1..MAX_ATTEMPTS {
            match call().await {
                Err(Unavailable) if self.redis.is_connected() => {
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
                response => return response,
            }
        }
        call().await
    }

    /// Looks up the successor of a session by its refresh token: the result of a refresh at any instance.
    pub(crate) async fn find_later(
        &self,
        state: &SessionState,
        token: &Secret<String>,
    ) -> Successor {
        let (token_keys, key) = (self.refresh_keys(token), self.session_key(state.id));
        let call = || self.redis.find_all([&token_keys.record, &token_keys.given, &key]);
        // Without a response nothing is known.
        let Ok([record, given, kept]) = self.retry_while_connected(call).await else {
            return Successor::default();
        };
        let is_replaced = given.is_some_and(|given| given.as_slice() > age(state).as_bytes());
        let renewed = record.map(|record| self.open_record(token_keys, &record, state));
        Successor {
            // Sealed under a key that this instance does not have: newer than the one it has all the same.
            is_replaced: is_replaced || matches!(renewed, Some(None)),
            is_over: kept.is_some_and(|kept| kept == ENDED),
            renewed: renewed.flatten().map(Arc::new),
        }
    }

    /// Records that a session has ended: no instance refreshes it any more, and one that is redeeming its refresh
    /// token discards the result. Repeated in the background while Redis is unavailable.
    pub(crate) async fn end_session(self: &Arc<Self>, state: &SessionState) {
        let id = state.id;
        if self.retry_while_connected(|| self.end(id)).await.is_err() {
            let this = Arc::clone(self);
            self.retry_later(async move {
                while this.end(id).await.is_err() {
                    this.redis.wait_to_retry(PUBLISH_INTERVAL).await;
                }
            });
        }
    }

    /// Runs a pending write in the background; returns `false` if there are too many.
    fn retry_later(&self, write: impl Future<Output = ()> + Send + 'static) -> bool {
        let pending = Arc::clone(&self.pending);
        if pending.fetch_add(1, Relaxed) >= MAX_PENDING_WRITES {
            pending.fetch_sub(1, Relaxed);
            tracing::error!(
                max_pending = MAX_PENDING_WRITES,
                "Too many writes to Redis are pending; other instances will not see the change of a session."
            );
            return false;
        }
        self.redis.control().spawn(async move {
            write.await;
            pending.fetch_sub(1, Relaxed);
        });
        true
    }

    /// Publishes the result of a refresh when Redis is reachable again. Without `overtaken` there is no
    /// result to publish; else it runs if the session has ended meanwhile.
    pub(crate) fn publish_later(
        self: &Arc<Self>,
        finish: CompleteRefresh,
        overtaken: Option<BoxFuture<'static, ()>>,
    ) {
        let this = Arc::clone(self);
        self.retry_later(async move {
            let end = Instant::now() + this.lease;
            loop {
                match (this.publish(&finish).await, &overtaken) {
                    (Ok(false), Some(_)) => break,
                    (Ok(_), _) => return,
                    // The lock has expired by itself.
                    (Err(Unavailable), None) if Instant::now() > end => return,
                    (Err(Unavailable), _) => this.redis.wait_to_retry(PUBLISH_INTERVAL).await,
                }
            }
            if let Some(overtaken) = overtaken {
                overtaken.await;
            }
        });
    }

    /// Returns the write that ends a refresh which replaced `before` by `renewed`.
    pub(crate) fn finish(
        &self,
        RefreshLock { token_keys, session, owner }: RefreshLock,
        before: &SessionState,
        renewed: Option<&LoadedSession>,
    ) -> CompleteRefresh {
        let mut arguments = vec![owner.to_vec(), MAX_REFRESH_EVENTS.to_vec(), ENDED.to_vec()];
        if let Some(loaded) = renewed {
            let sealed = self.sealed_record(&token_keys, loaded);
            let good_for = loaded.state.valid_until(before).since(self.clock.now());
            arguments.extend([sealed.into_bytes(), millis(good_for.min(RESULT_RETENTION))]);
            arguments.extend(refresh_events::fields(&loaded.name, loaded.state.ends));
            loaded.set_origin(RefreshOrigin {
                token_keys: token_keys.clone(),
                mark: mark(&loaded.state, before),
            });
        }
        CompleteRefresh { token_keys, session, arguments }
    }

    fn sealed_record(&self, token_keys: &RefreshKeys, loaded: &LoadedSession) -> String {
        let bound = token_keys.record.as_bytes();
        match &self.cookie {
            Some(cookie) => {
                let text = loaded.sealed(|state| self.ring.seal(cookie, &state.to_bytes()));
                self.ring.seal(bound, text.as_bytes())
            }
            None => self.ring.seal(bound, &loaded.state.to_bytes()),
        }
    }

    /// Publishes the result of a refresh again for the time that is `left`, because Redis may have lost it.
    pub(crate) async fn republish(
        &self,
        loaded: &LoadedSession,
        left: Duration,
    ) -> Result<(), Unavailable> {
        let Some(RefreshOrigin { token_keys, .. }) = loaded.origin() else { return Ok(()) };
        let sealed = self.sealed_record(token_keys, loaded);
        self.redis.run(&REPUBLISH, &[&token_keys.record], &[sealed.as_bytes(), &millis(left)]).await
    }

    /// Changes whenever Redis is connected again or has lost its data.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.redis.connections()
    }

    /// Waits until a failed write may be repeated.
    pub(crate) async fn wait_to_retry(&self) {
        self.redis.wait_to_retry(PUBLISH_INTERVAL).await;
    }

    /// Publishes the result of a refresh and releases the lock. Returns `false` if the session has ended
    /// meanwhile; the result must be discarded then.
    pub(crate) async fn publish(&self, finish: &CompleteRefresh) -> Result<bool, Unavailable> {
        let CompleteRefresh { token_keys, session, arguments } = finish;
        let renewed = refresh_events::stream_key(&self.redis);
        let keys: [&str; 5] =
            [&token_keys.record, &token_keys.lock, &renewed, session, &token_keys.begun];
        let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let accepted: u8 = self.redis.run_with_grace(&COMPLETE_REFRESH, &keys, &arguments).await?;
        Ok(accepted == 1)
    }

    /// Records that a browser is given the tokens of a session, if a refresh produced them.
    pub(crate) fn release(self: &Arc<Self>, loaded: &LoadedSession) {
        let Some(RefreshOrigin { token_keys, mark }) = loaded.origin().cloned() else { return };
        let this = Arc::clone(self);
        self.redis.control().spawn(async move {
            let keys: [&str; 2] = [&token_keys.record, &token_keys.given];
            let arguments: [&[u8]; 3] =
                [&millis(GRACE), mark.as_bytes(), &millis(RESULT_RETENTION)];
            // If that fails the result stays a little longer.
            let _ = this.redis.run::<u8>(&RELEASE_LOCK, &keys, &arguments).await;
        });
    }

    fn open_record(
        &self,
        token_keys: RefreshKeys,
        record: &[u8],
        before: &SessionState,
    ) -> Option<LoadedSession> {
        let text = self.ring.open(token_keys.record.as_bytes(), record)?;
        let loaded = match &self.cookie {
            None => LoadedSession::new(SessionState::from_bytes(&text)?, self.forward),
            Some(cookie) => {
                let plain = self.ring.open(cookie, &text)?;
                let loaded = LoadedSession::new(SessionState::from_bytes(&plain)?, self.forward);
                // Browsers that mix the parts of two texts would hold neither.
                loaded.sealed(|_| String::from_utf8_lossy(&text).into_owned());
                loaded
            }
        };
        loaded.set_origin(RefreshOrigin { token_keys, mark: mark(&loaded.state, before) });
        Some(loaded)
    }

    /// Returns the time to wait for the result of a refresh at another instance.
    pub(crate) const fn patience(&self) -> Duration {
        self.patience
    }

    /// Returns the time after which a lock expires that its owner does not extend.
    pub(crate) const fn lease(&self) -> Duration {
        self.lease
    }
}

/// A lock on redeeming one refresh token; only its owner can release it.
#[derive(Clone)]
pub(crate) struct RefreshLock {
    token_keys: RefreshKeys,
    /// The key of the session.
    session: String,
    owner: [u8; 16],
}

/// The write that ends a refresh.
pub(crate) struct CompleteRefresh {
    token_keys: RefreshKeys,
    session: String,
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

/// Returns the sealed text of a session's value, which follows its age.
fn sealed_text(value: &[u8]) -> Option<Box<str>> {
    let text = value.get(RECEIVED_AT_DIGITS..)?;
    core::str::from_utf8(text).ok().map(Into::into)
}

/// The time at which the tokens of a session were received, formatted so that later times sort higher.
fn age(state: &SessionState) -> String {
    format!("{:0RECEIVED_AT_DIGITS$}", state.received.as_nanos())
}

/// Orders `next` after `before`: greater than its age even if clocks differ. A refresh token that is not rotated
/// has several results, of which only the age shows the latest.
fn mark(next: &SessionState, before: &SessionState) -> String {
    if next.is_rotated(before) { "9".repeat(RECEIVED_AT_DIGITS) } else { age(next) }
}

/// The value of a session that has ended.
const ENDED: &[u8] = b"over";
/// Digits of the time at which a session's tokens were received.
const RECEIVED_AT_DIGITS: usize = 20;
/// The assumed difference between the clocks of instances.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// The number of attempts while Redis is connected: after so many failures it would no longer count as connected.
const MAX_ATTEMPTS: usize = 6;
const RETRY_INTERVAL: Duration = Duration::from_millis(25);
/// The least time after which a lock expires whose owner is gone.
const MIN_LOCK_TTL: Duration = Duration::from_secs(1);
/// The time between attempts to repeat a write or to extend a lock.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);
/// Writes pending at once.
const MAX_PENDING_WRITES: usize = 10_000;
/// Added to the time that a refresh may take.
const LOCK_TTL_MARGIN: Duration = Duration::from_secs(5);

/// The time for which a redeemed token is remembered: a response may take that long, and a stolen token can be
/// distinguished from one that has expired.
pub(crate) const RESULT_RETENTION: Duration = Duration::from_secs(600);
/// The approximate length of the stream of refreshes.
const MAX_REFRESH_EVENTS: &[u8] = b"10000";
