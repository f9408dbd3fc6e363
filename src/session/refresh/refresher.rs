//! Token refresh: one redemption per refresh token, and one result for all requests that need it.
//!
//! Issuers that rotate refresh tokens take a reused one for stolen and end the
//! whole session. Browsers send twenty requests at once. So parallel requests
//! share one call (a flight, on the control runtime: no disconnect cancels it),
//! and its result is retained for a while under a keyed hash of the redeemed
//! token: a late request with the old cookie gets the new tokens and the new
//! cookie as well.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::hmac;
use futures_util::FutureExt;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::decision::{
    LockResponse, RefreshKnowledge, RefreshNeed, RefreshStep, may_ask, next_step,
};
use crate::base::clock::{Clock, Timestamp};
use crate::base::in_flight::InFlightCalls;
use crate::base::secret::Secret;
use crate::base::single_flight::{Role, SingleFlight};
use crate::issuer::{Client, Grant, GrantError, Issuer, ResourceIndicator};
use crate::observe::metrics::{LogoutKind, RefreshResult, SessionMetrics};
use crate::session::cookies::seal::random;
use crate::session::logout::ended_sessions::{EndReason, EndedSessions};
use crate::session::logout::session_watch::SessionWatchers;
use crate::session::logout::token_revocation::TokenRevoker;
use crate::session::settings::Forward;
use crate::session::store::loaded::LoadedSession;
use crate::session::store::redis::{LockState, RESULT_RETENTION, RefreshLock, SharedSessions};
use crate::session::store::server_side::Store;
use crate::session::store::state::GRACE;
use crate::session::store::state::SessionState;
use crate::store::Unavailable;

/// Redeems refresh tokens at one issuer, as one client.
#[derive(Debug)]
pub(crate) struct TokenRefresher {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) client: Client,
    pub(crate) resource: Option<ResourceIndicator>,
    pub(crate) forward: Forward,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<SessionMetrics>,
    pub(crate) ended: Arc<EndedSessions>,
    pub(crate) results: Arc<RefreshResults>,
    pub(crate) watchers: Arc<SessionWatchers>,
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) sharing: Option<Arc<SharedSessions>>,
    pub(crate) revoker: Arc<TokenRevoker>,
}

/// The result of redeeming a refresh token.
#[derive(Clone, Debug)]
pub(crate) enum RefreshOutcome {
    /// New tokens in the same session.
    Renewed(Arc<LoadedSession>),
    /// `invalid_grant`, or there is no refresh token: the session has ended.
    Over,
    /// `invalid_grant`, but another instance may have redeemed the token without being able to publish the result.
    Doubtful,
    /// The issuer is unavailable; the session stays.
    Unavailable,
}

impl TokenRefresher {
    /// Returns the identifier of this instance among those that share a Redis; zero without Redis.
    pub(crate) fn me(&self) -> u64 {
        self.sharing.as_ref().map_or(0, |sharing| sharing.me())
    }

    /// Redeems the refresh token of a session, or returns the result of another request that did.
    ///
    /// With [`RefreshUrgency::High`] the issuer is called even if it was unavailable a moment ago; `need`
    /// decides what is done if Redis cannot grant the lock.
    pub(crate) async fn redeem(
        self: &Arc<Self>,
        loaded: &Arc<LoadedSession>,
        need: RefreshNeed,
        urgency: RefreshUrgency,
    ) -> RefreshOutcome {
        let Some(token) = loaded.state.refresh_token_if_valid(self.clock.now()) else {
            return RefreshOutcome::Over;
        };
        let digest = self.results.digest(token);
        if let Some(outcome) = self.results.recent_result(&digest, urgency, self.clock.now()) {
            return outcome;
        }
        let refresh_once = || {
            let (this, loaded) = (Arc::clone(self), Arc::clone(loaded));
            async move { this.refresh_once(&loaded, need, digest).await }
        };
        // A request waits no longer than for any call. This call continues: an issuer that is slow has rotated the
        // token all the same, and would take a second redemption for theft.
        let joined = async {
            match self.results.flight.run(digest, refresh_once).await {
                // A request with less need may have given up sooner.
                Ok((RefreshOutcome::Unavailable, Role::Shared)) if need > RefreshNeed::Serves => {
                    self.results.flight.run(digest, refresh_once).await
                }
                joined => joined,
            }
        };
        match tokio::time::timeout(self.issuer.settings().timeout, joined).await {
            Ok(Ok((outcome, _))) => outcome,
            Ok(Err(_)) => RefreshOutcome::Unavailable,
            Err(_) => {
                self.results.note_delay(digest, self.clock.now());
                RefreshOutcome::Unavailable
            }
        }
    }

    /// Returns the latest state of a session without calling the issuer. `None` if it has ended, or
    /// if the browser has been given later tokens that are not known here.
    pub(crate) async fn latest(&self, loaded: &Arc<LoadedSession>) -> Option<Arc<LoadedSession>> {
        let mut latest = Arc::clone(loaded);
        for _ in 0..MAX_REFRESHES_BEHIND {
            let Some(token) = &latest.state.refresh_token else { break };
            if let Some(next) = self.results.successor(&latest, token) {
                latest = next;
                continue;
            }
            let Some(sharing) = &self.sharing else { break };
            let later = sharing.find_later(&latest.state, token).await;
            match later.renewed.filter(|next| follows(next, &latest)) {
                _ if later.is_over => return None,
                Some(next) => latest = next,
                None if later.is_replaced => return None,
                None => break,
            }
        }
        Some(latest)
    }

    /// Prevents further refreshes of a session and of its successors, here and at an instance that is
    /// redeeming now. Returns the latest state.
    pub(crate) async fn close(&self, loaded: &Arc<LoadedSession>) -> Arc<LoadedSession> {
        let mut latest = Arc::clone(loaded);
        for _ in 0..MAX_REFRESHES_BEHIND {
            // First the end, then the lookup: a refresh at another instance either sees the end or is found.
            if let Some(sharing) = &self.sharing {
                sharing.end_session(&latest.state).await;
            }
            let Some(token) = &latest.state.refresh_token else { break };
            let here = self.results.successor(&latest, token);
            self.results.records.invalidate(&self.results.digest(token));
            let next = match (here, &self.sharing) {
                (None, Some(sharing)) => sharing.find_later(&latest.state, token).await.renewed,
                (here, _) => here,
            };
            match next.filter(|next| follows(next, &latest)) {
                Some(next) => latest = next,
                None => break,
            }
        }
        latest
    }

    /// Publishes that a session in a cookie has ended, so that no instance refreshes it: those that
    /// do not learn of its end in time accept the cookie until its access token expires.
    pub(crate) async fn end_everywhere(&self, loaded: &LoadedSession) {
        if let (Some(sharing), None) = (&self.sharing, &self.store) {
            sharing.end_session(&loaded.state).await;
        }
    }

    /// Records that the tokens of a session are written to its browser.
    pub(crate) fn mark_delivered(&self, loaded: &LoadedSession, now: Timestamp) {
        if loaded.set_delivered(now)
            && let Some(sharing) = &self.sharing
        {
            sharing.release(loaded);
        }
    }

    /// Starts a task that publishes lost data again whenever Redis is connected again or found to be empty.
    pub(crate) fn republish_after_outage(
        self: &Arc<Self>,
        control: &Handle,
    ) -> Option<Republisher> {
        let mut connections = self.sharing.as_ref()?.connections();
        connections.mark_unchanged();
        let this = Arc::clone(self);
        let task = control.spawn(async move {
            while connections.changed().await.is_ok() {
                // After a further outage everything is published again.
                let _ = this.republish().await;
            }
        });
        Some(Republisher(task.abort_handle()))
    }

    async fn republish(&self) -> Result<(), Unavailable> {
        let Some(sharing) = &self.sharing else { return Ok(()) };
        // First the data that prevent a second redemption of the same token.
        for (loaded, left) in self.results.recent(self.clock.now()) {
            if loaded.end_reason(&self.ended).is_none() {
                sharing.republish(&loaded, left).await?;
            }
        }
        match &self.store {
            Some(store) => store.republish(&self.ended).await,
            None => Ok(()),
        }
    }

    async fn refresh_once(
        self: &Arc<Self>,
        loaded: &Arc<LoadedSession>,
        need: RefreshNeed,
        digest: Digest,
    ) -> RefreshOutcome {
        // A shutdown waits for the result, although requests may not.
        let _under_way = self.results.under_way.begin();
        // Another flight may have landed since the check.
        if let Some(outcome) =
            self.results.recent_result(&digest, RefreshUrgency::High, self.clock.now())
        {
            return outcome;
        }
        let Some(refresh_token) = &loaded.state.refresh_token else { return RefreshOutcome::Over };
        let outcome = match &self.sharing {
            None => self.call_issuer(loaded, refresh_token, &digest).await,
            Some(sharing) => self.acquire_lock(sharing, loaded, refresh_token, need, &digest).await,
        };
        let now = self.clock.now();
        let until = match &outcome {
            RefreshOutcome::Renewed(renewed) => renewed.state.valid_until(&loaded.state),
            _ => Timestamp::MAX,
        };
        self.results
            .records
            .insert(digest, RefreshRecord { outcome: outcome.clone(), at: now, until });
        // After the record: a concurrent logout either finds the record or is found here.
        match outcome {
            RefreshOutcome::Renewed(renewed) => self.store_renewed(renewed).await,
            RefreshOutcome::Over => {
                self.end(loaded).await;
                RefreshOutcome::Over
            }
            RefreshOutcome::Doubtful | RefreshOutcome::Unavailable => outcome,
        }
    }

    /// Redeems once across all instances: waits for the lock, or for the result of its owner.
    async fn acquire_lock(
        self: &Arc<Self>,
        sharing: &Arc<SharedSessions>,
        loaded: &Arc<LoadedSession>,
        refresh_token: &Secret<String>,
        need: RefreshNeed,
        digest: &Digest,
    ) -> RefreshOutcome {
        let end = tokio::time::Instant::now() + sharing.patience();
        let lock = sharing.refresh_lock(&loaded.state, refresh_token);
        let mut unsure = false;
        loop {
            let turn = if may_ask(sharing.condition()) {
                let turn = sharing.take(&lock, &loaded.state).await;
                unsure |= matches!(turn, None | Some(LockState::Lapsed));
                turn
            } else {
                None
            };
            let response = turn.as_ref().map_or(LockResponse::NoResponse, LockState::response);
            let elsewhere =
                self.results.note_lock(digest, response) || self.results.is_outdated(loaded);
            let ended = self.clock.now() >= loaded.state.ends;
            let step = next_step(&RefreshKnowledge {
                need: if ended { RefreshNeed::Ended } else { need },
                response,
                store: sharing.condition(),
                elsewhere,
                chosen: sharing.is_chosen(&lock, loaded.state.home),
                patient: tokio::time::Instant::now() < end,
                lease: sharing.lease(),
            });
            match (step, turn) {
                (RefreshStep::Share, Some(LockState::Done(renewed))) => {
                    return RefreshOutcome::Renewed(renewed);
                }
                (RefreshStep::End, _) => return RefreshOutcome::Over,
                (RefreshStep::Redeem, _) => {
                    let outcome =
                        self.call_issuer_with_lock(sharing, &lock, loaded, refresh_token, digest);
                    let outcome = outcome.await;
                    return self.release_lock(sharing, lock, &loaded.state, outcome).await;
                }
                (RefreshStep::RedeemAlone, _) => {
                    let outcome =
                        self.call_issuer_with_lock(sharing, &lock, loaded, refresh_token, digest);
                    let outcome = match outcome.await {
                        RefreshOutcome::Over => RefreshOutcome::Doubtful,
                        outcome => outcome,
                    };
                    return self.release_lock(sharing, lock, &loaded.state, outcome).await;
                }
                (RefreshStep::GiveUp, _) => {
                    if unsure {
                        // Redis may have granted the lock all the same; left in place it would delay other instances.
                        sharing.publish_later(sharing.finish(lock, &loaded.state, None), None);
                    }
                    return RefreshOutcome::Unavailable;
                }
                (RefreshStep::LookAgain | RefreshStep::Share, _) => {
                    tokio::time::sleep(LOCK_POLL_INTERVAL).await;
                }
            }
        }
    }

    /// Calls the issuer and extends the lock meanwhile, even if Redis becomes reachable only then.
    async fn call_issuer_with_lock(
        &self,
        sharing: &SharedSessions,
        lock: &RefreshLock,
        loaded: &Arc<LoadedSession>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> RefreshOutcome {
        tokio::select! {
            outcome = self.call_issuer(loaded, refresh_token, digest) => outcome,
            never = sharing.hold(lock) => match never {},
        }
    }

    /// Publishes the result of a refresh and returns it, unless the session has ended.
    ///
    /// Repeated until Redis has it: a waiting instance must not redeem a second time, and an old cookie at
    /// another instance must not look like theft.
    async fn release_lock(
        self: &Arc<Self>,
        sharing: &Arc<SharedSessions>,
        lease: RefreshLock,
        before: &SessionState,
        outcome: RefreshOutcome,
    ) -> RefreshOutcome {
        let renewed = match &outcome {
            RefreshOutcome::Renewed(renewed) => Some(Arc::clone(renewed)),
            _ => None,
        };
        let finish = sharing.finish(lease, before, renewed.as_deref());
        match sharing.publish(&finish).await {
            Ok(true) => outcome,
            Ok(false) => {
                if let Some(renewed) = renewed {
                    self.revoker.revoke(&renewed.state).await;
                }
                RefreshOutcome::Over
            }
            Err(Unavailable) => {
                let (this, under_way) = (Arc::clone(self), self.results.under_way.begin());
                let overtaken = renewed.map(|renewed| {
                    async move {
                        let _under_way = under_way;
                        // Logged out at another instance while Redis was unavailable here.
                        this.end(&renewed).await;
                        this.revoker.revoke(&renewed.state).await;
                    }
                    .boxed()
                });
                sharing.publish_later(finish, overtaken);
                outcome
            }
        }
    }

    /// Calls the issuer.
    async fn call_issuer(
        &self,
        loaded: &Arc<LoadedSession>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> RefreshOutcome {
        let grant = Grant::Refresh { refresh_token, resource: self.resource.as_ref() };
        match self.issuer.grant_with_extended_timeout(grant, &self.client).await {
            Ok(tokens) if loaded.state.belongs_to_other_subject(&tokens) => {
                let issuer = &*self.issuer.settings().name;
                tracing::error!(
                    issuer,
                    "A refresh returned tokens of another subject; the session ends."
                );
                self.metrics.refreshed(RefreshResult::Error);
                RefreshOutcome::Over
            }
            Ok(tokens) => {
                let state = SessionState { home: self.me(), ..loaded.state.renewed(tokens) };
                let renewed = LoadedSession::new(state, self.forward);
                self.metrics.refreshed(RefreshResult::Ok);
                RefreshOutcome::Renewed(Arc::new(renewed))
            }
            Err(GrantError::InvalidGrant) => {
                let reused =
                    self.results.records.get(digest).is_some_and(|record| record.is_renewed());
                let result = if reused { RefreshResult::Reuse } else { RefreshResult::Rejected };
                self.metrics.refreshed(result);
                RefreshOutcome::Over
            }
            Err(GrantError::Unavailable) => {
                self.metrics.refreshed(RefreshResult::Error);
                RefreshOutcome::Unavailable
            }
        }
    }

    /// Stores new tokens, unless the session has ended meanwhile.
    async fn store_renewed(&self, renewed: Arc<LoadedSession>) -> RefreshOutcome {
        if renewed.end_reason(&self.ended).is_some() {
            self.revoker.revoke(&renewed.state).await;
            return RefreshOutcome::Over;
        }
        if let Some(store) = &self.store {
            store.renew(&renewed).await;
        }
        self.watchers.renew(&renewed.name, renewed.state.ends);
        RefreshOutcome::Renewed(renewed)
    }

    async fn end(&self, loaded: &Arc<LoadedSession>) {
        if self.ended.end(&loaded.name, EndReason::Over) {
            self.metrics.logout(LogoutKind::Revoked);
        }
        if let Some(store) = &self.store {
            store.remove(loaded.state.id).await;
        }
    }
}

/// A task that publishes data again which Redis has lost; stops when dropped.
#[derive(Debug)]
pub(crate) struct Republisher(AbortHandle);

impl Drop for Republisher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether to call an issuer that was unavailable a moment ago.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RefreshUrgency {
    /// Call it: without new tokens the request fails.
    High,
    /// Do not: the old access token is still valid.
    Low,
}

/// Recent refresh results and the calls under way. Survive a reload.
pub(crate) struct RefreshResults {
    key: hmac::Key,
    flight: SingleFlight<Digest, RefreshOutcome>,
    records: Cache<Digest, RefreshRecord>,
    /// Refresh tokens that another instance was seen to redeem, while the result is unknown.
    elsewhere: Cache<Digest, ()>,
    /// The latest expiry of a session's access token that other instances have published.
    published_expiries: Cache<Arc<str>, Timestamp>,
    /// Calls under way, and writes that outlast their requests.
    under_way: InFlightCalls,
}

impl RefreshResults {
    /// Returns an empty set of results; calls run on `control`, and are counted in `under_way`.
    pub(crate) fn new(control: Handle, under_way: InFlightCalls) -> Self {
        let records = latest(RESULT_RETENTION);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>());
        let (elsewhere, published_expiries) =
            (latest(RESULT_RETENTION), latest(MAX_RESULT_LIFETIME));
        Self {
            key,
            flight: SingleFlight::new(control),
            records,
            elsewhere,
            published_expiries,
            under_way,
        }
    }

    /// Returns the result of redeeming the refresh `token` of a session at this instance.
    fn successor(
        &self,
        loaded: &LoadedSession,
        token: &Secret<String>,
    ) -> Option<Arc<LoadedSession>> {
        match self.records.get(&self.digest(token))?.outcome {
            RefreshOutcome::Renewed(renewed) => Some(renewed).filter(|next| follows(next, loaded)),
            RefreshOutcome::Over | RefreshOutcome::Doubtful | RefreshOutcome::Unavailable => None,
        }
    }

    /// Applies a refresh at another instance: the access token of the session `name` is valid until `ends`.
    pub(crate) fn apply_event(&self, name: &str, ends: Timestamp) {
        self.published_expiries.entry(name.into()).and_upsert_with(|known| match known {
            Some(known) => ends.max(*known.value()),
            None => ends,
        });
    }

    /// Whether another instance has published a refresh of the session's refresh token.
    fn is_outdated(&self, loaded: &LoadedSession) -> bool {
        self.published_expiries.get(&loaded.name).is_some_and(|ends| loaded.state.ends < ends)
    }

    /// Returns the new sessions of recent refreshes, and how long each is to be retained.
    fn recent(&self, now: Timestamp) -> Vec<(Arc<LoadedSession>, Duration)> {
        let left = |RefreshRecord { outcome, at, until }: RefreshRecord| {
            let RefreshOutcome::Renewed(renewed) = outcome else { return None };
            let end = match renewed.delivered_at() {
                Some(delivered_at) => delivered_at.plus(GRACE),
                None => at.plus(RESULT_RETENTION),
            };
            let left = end.min(until).since(now);
            (!left.is_zero()).then_some((renewed, left))
        };
        self.records.iter().filter_map(|(_, record)| left(record)).collect()
    }

    /// Records the response of Redis to an attempt on the lock. Returns whether another instance had it and its result is unknown.
    fn note_lock(&self, digest: &Digest, response: LockResponse) -> bool {
        match response {
            LockResponse::Busy => self.elsewhere.insert(*digest, ()),
            LockResponse::Done | LockResponse::Over | LockResponse::Mine => {
                self.elsewhere.invalidate(digest);
            }
            LockResponse::Lapsed | LockResponse::NoResponse => {}
        }
        self.elsewhere.contains_key(digest)
    }

    fn digest(&self, refresh_token: &Secret<String>) -> Digest {
        let mut digest = [0; 32];
        let tag = hmac::sign(&self.key, refresh_token.expose().as_bytes());
        digest.copy_from_slice(tag.as_ref());
        digest
    }

    /// Records a slow refresh, so that requests with a valid access token do not wait for it.
    fn note_delay(&self, digest: Digest, now: Timestamp) {
        self.records.entry(digest).and_compute_with(|entry| {
            let known = entry.is_some_and(|entry| {
                let RefreshRecord { outcome, until, .. } = entry.value();
                // It has finished after all.
                matches!(outcome, RefreshOutcome::Renewed(_) | RefreshOutcome::Over) && now < *until
            });
            if known {
                return Op::Nop;
            }
            Op::Put(RefreshRecord {
                outcome: RefreshOutcome::Unavailable,
                at: now,
                until: Timestamp::MAX,
            })
        });
    }

    fn recent_result(
        &self,
        digest: &Digest,
        urgency: RefreshUrgency,
        now: Timestamp,
    ) -> Option<RefreshOutcome> {
        let RefreshRecord { outcome, at, until } = self.records.get(digest)?;
        let good = match (&outcome, urgency) {
            _ if now >= until => false,
            // Until a response has carried them to the browser, its old cookie is all it can send:
            // neither a slow upstream nor an early click may log a user out.
            (RefreshOutcome::Renewed(renewed), _) => match renewed.delivered_at() {
                Some(delivered_at) => now.since(delivered_at) < GRACE,
                None => now.since(at) < RESULT_RETENTION,
            },
            (RefreshOutcome::Over, _) => now.since(at) < GRACE,
            (RefreshOutcome::Doubtful | RefreshOutcome::Unavailable, RefreshUrgency::Low) => {
                now.since(at) < ISSUER_RETRY_DELAY
            }
            (RefreshOutcome::Doubtful | RefreshOutcome::Unavailable, RefreshUrgency::High) => false,
        };
        good.then_some(outcome)
    }

    /// Removes the results of sessions that have ended and returns their number.
    pub(crate) fn forget_over(&self, ended: &EndedSessions) -> usize {
        let mut forgotten = 0;
        for (digest, record) in &self.records {
            if let RefreshOutcome::Renewed(loaded) = &record.outcome
                && loaded.end_reason(ended).is_some()
            {
                self.records.invalidate(&*digest);
                forgotten += 1;
            }
        }
        forgotten
    }
}

/// Returns a cache that retains the latest records for `life`: late requests need them, so none is refused admission.
fn latest<K, V>(life: Duration) -> Cache<K, V>
where
    K: core::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let records = Cache::builder().max_capacity(MAX_RECORDS).time_to_live(life);
    records.eviction_policy(EvictionPolicy::lru()).build()
}

impl fmt::Debug for RefreshResults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redeemed").finish_non_exhaustive()
    }
}

type Digest = [u8; 32];

#[derive(Clone)]
struct RefreshRecord {
    outcome: RefreshOutcome,
    at: Timestamp,
    /// The time from which the token is redeemed again, because its issuer did not rotate it.
    until: Timestamp,
}

impl RefreshRecord {
    fn is_renewed(&self) -> bool {
        matches!(self.outcome, RefreshOutcome::Renewed(_))
    }
}

/// Whether `next` is a result of `before`: for a refresh token that was not rotated it may be an earlier result.
fn follows(next: &LoadedSession, before: &LoadedSession) -> bool {
    let (next, before) = (&next.state, &before.state);
    next.is_rotated(before) || next.received > before.received
}

/// The time between attempts to acquire the lock.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(25);
/// The time for which an unavailable issuer is not called while the access token is valid.
const ISSUER_RETRY_DELAY: Duration = Duration::from_secs(5);
const MAX_RESULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_RECORDS: u64 = 100_000;
/// The number of refreshes that a late request may be behind.
pub(crate) const MAX_REFRESHES_BEHIND: usize = 8;
