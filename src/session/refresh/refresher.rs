//! Refreshing: one redeem per refresh token, and the same answer for whoever comes late.
//!
//! Issuers that rotate refresh tokens take one that comes twice for stolen and
//! end the whole session. Browsers send twenty requests at once. So parallel
//! requests share one call (a flight, on the control runtime: no disconnect
//! cancels it), and its result is remembered for a while under a keyed hash of
//! what was redeemed: a straggler with the old cookie gets the new tokens and
//! the new cookie, as if it had been first.

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
    IssuerOutcome, RefreshKnowledge, RefreshNeed, RefreshStep, may_ask, next_step,
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
use crate::session::store::redis::{
    GRACE, LockState, RESULT_RETENTION, RefreshLock, SharedSessions,
};
use crate::session::store::server_side::Store;
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
    pub(crate) endings: Arc<EndedSessions>,
    pub(crate) redeemed: Arc<RefreshResults>,
    pub(crate) lives: Arc<SessionWatchers>,
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) sharing: Option<Arc<SharedSessions>>,
    pub(crate) revoker: Arc<TokenRevoker>,
}

/// What came of a refresh token.
#[derive(Clone, Debug)]
pub(crate) enum RefreshOutcome {
    /// New tokens, in the same visit.
    Renewed(Arc<LoadedSession>),
    /// The issuer says `invalid_grant`, or there is nothing to redeem: the visit is over.
    Over,
    /// The issuer says `invalid_grant`, but it may be that another gateway was first and could not say so.
    Doubtful,
    /// The issuer cannot be asked: nothing is over.
    Unavailable,
}

impl TokenRefresher {
    /// The name of this gateway among those that share a Redis; zero if there is none.
    pub(crate) fn me(&self) -> u64 {
        self.sharing.as_ref().map_or(0, |sharing| sharing.me())
    }

    /// Redeems the refresh token of `loaded_session`, or tells what came of it when another request did.
    ///
    /// With `patience` the issuer is asked even if it could not be a moment ago; how much there is
    /// a `need` decides what is done when Redis cannot say whose turn it is.
    pub(crate) async fn redeem(
        self: &Arc<Self>,
        opened: &Arc<LoadedSession>,
        need: RefreshNeed,
        patience: RefreshUrgency,
    ) -> RefreshOutcome {
        let Some(token) = opened.visit.refresh_token_if_valid(self.clock.now()) else {
            return RefreshOutcome::Over;
        };
        let digest = self.redeemed.digest(token);
        if let Some(outcome) = self.redeemed.lately(&digest, patience, self.clock.now()) {
            return outcome;
        }
        let call = || {
            let (this, opened) = (Arc::clone(self), Arc::clone(opened));
            async move { this.call(&opened, need, digest).await }
        };
        // No request waits longer than for any call. This one goes on: an issuer that took its time has rotated
        // the token all the same, and would take a second one like it for stolen.
        let joined = async {
            match self.redeemed.flight.run(digest, call).await {
                // A request that needed it less may have given up sooner.
                Ok((RefreshOutcome::Unavailable, Role::Shared)) if need > RefreshNeed::Serves => {
                    self.redeemed.flight.run(digest, call).await
                }
                joined => joined,
            }
        };
        match tokio::time::timeout(self.issuer.settings().timeout, joined).await {
            Ok(Ok((outcome, _))) => outcome,
            Ok(Err(_)) => RefreshOutcome::Unavailable,
            Err(_) => {
                self.redeemed.note_delay(digest, self.clock.now());
                RefreshOutcome::Unavailable
            }
        }
    }

    /// The latest visit that came of `loaded_session`, without asking the issuer. `None` if it is over, or
    /// if the browser has been given later tokens that are not known here.
    pub(crate) async fn latest(&self, opened: &Arc<LoadedSession>) -> Option<Arc<LoadedSession>> {
        let mut latest = Arc::clone(opened);
        for _ in 0..MAX_REFRESHES_BEHIND {
            let Some(token) = &latest.visit.refresh_token else { break };
            if let Some(next) = self.redeemed.follower(&latest, token) {
                latest = next;
                continue;
            }
            let Some(sharing) = &self.sharing else { break };
            let later = sharing.find_later(&latest.visit, token).await;
            match later.renewed.filter(|next| follows(next, &latest)) {
                _ if later.is_over => return None,
                Some(next) => latest = next,
                None if later.is_replaced => return None,
                None => break,
            }
        }
        Some(latest)
    }

    /// Lets nothing more come of the refresh token of `loaded_session`, nor of what came of it so far, here
    /// or at any gateway that is redeeming it now. Gives the latest of it.
    pub(crate) async fn close(&self, opened: &Arc<LoadedSession>) -> Arc<LoadedSession> {
        let mut latest = Arc::clone(opened);
        for _ in 0..MAX_REFRESHES_BEHIND {
            // First the end, then a look: a refresh elsewhere finds the one, or is found by the other.
            if let Some(sharing) = &self.sharing {
                sharing.end_session(&latest.visit).await;
            }
            let Some(token) = &latest.visit.refresh_token else { break };
            let here = self.redeemed.follower(&latest, token);
            self.redeemed.records.invalidate(&self.redeemed.digest(token));
            let next = match (here, &self.sharing) {
                (None, Some(sharing)) => sharing.find_later(&latest.visit, token).await.renewed,
                (here, _) => here,
            };
            match next.filter(|next| follows(next, &latest)) {
                Some(next) => latest = next,
                None => break,
            }
        }
        latest
    }

    /// Tells the fleet that a visit in a cookie is over, so that no gateway renews it: those that
    /// are not told of its end for now still take the cookie, until its token ends.
    pub(crate) async fn end_everywhere(&self, opened: &LoadedSession) {
        if let (Some(sharing), None) = (&self.sharing, &self.store) {
            sharing.end_session(&opened.visit).await;
        }
    }

    /// The tokens of `loaded_session` are written for its browser.
    pub(crate) fn give(&self, opened: &LoadedSession, now: Timestamp) {
        if opened.tell(now)
            && let Some(sharing) = &self.sharing
        {
            sharing.release(opened);
        }
    }

    /// From now on says again what Redis has lost, when it is back or found to be empty.
    pub(crate) fn tell_again_what_is_lost(
        self: &Arc<Self>,
        control: &Handle,
    ) -> Option<Republisher> {
        let mut connections = self.sharing.as_ref()?.connections();
        connections.mark_unchanged();
        let this = Arc::clone(self);
        let task = control.spawn(async move {
            while connections.changed().await.is_ok() {
                // If it is away again, all of it is said when it is back again.
                let _ = this.tell_again().await;
            }
        });
        Some(Republisher(task.abort_handle()))
    }

    async fn tell_again(&self) -> Result<(), Unavailable> {
        let Some(sharing) = &self.sharing else { return Ok(()) };
        // First what keeps a straggler from redeeming once more what was redeemed.
        for (opened, left) in self.redeemed.recent(self.clock.now()) {
            if opened.ending(&self.endings).is_none() {
                sharing.say_again(&opened, left).await?;
            }
        }
        match &self.store {
            Some(store) => store.say_again(&self.endings).await,
            None => Ok(()),
        }
    }

    async fn call(
        self: &Arc<Self>,
        opened: &Arc<LoadedSession>,
        need: RefreshNeed,
        digest: Digest,
    ) -> RefreshOutcome {
        // A gateway that ends waits for what comes of it, although no request may.
        let _under_way = self.redeemed.under_way.begin();
        // Between the look and the flight another flight may have landed.
        if let Some(outcome) = self.redeemed.lately(&digest, RefreshUrgency::Much, self.clock.now())
        {
            return outcome;
        }
        let Some(refresh_token) = &opened.visit.refresh_token else { return RefreshOutcome::Over };
        let outcome = match &self.sharing {
            None => self.ask(opened, refresh_token, &digest).await,
            Some(sharing) => self.acquire_lock(sharing, opened, refresh_token, need, &digest).await,
        };
        let now = self.clock.now();
        let until = match &outcome {
            RefreshOutcome::Renewed(renewed) => renewed.visit.valid_until(&opened.visit),
            _ => Timestamp::MAX,
        };
        self.redeemed
            .records
            .insert(digest, RefreshRecord { outcome: outcome.clone(), at: now, until });
        // After the record: a logout that comes now finds either it or its own ending here.
        match outcome {
            RefreshOutcome::Renewed(renewed) => self.keep(renewed).await,
            RefreshOutcome::Over => {
                self.end(opened).await;
                RefreshOutcome::Over
            }
            RefreshOutcome::Doubtful | RefreshOutcome::Unavailable => outcome,
        }
    }

    /// Redeems once in the whole fleet: waits for its turn, or for what another gateway made of its own.
    async fn acquire_lock(
        self: &Arc<Self>,
        sharing: &Arc<SharedSessions>,
        opened: &Arc<LoadedSession>,
        refresh_token: &Secret<String>,
        need: RefreshNeed,
        digest: &Digest,
    ) -> RefreshOutcome {
        let end = tokio::time::Instant::now() + sharing.patience();
        let ours = sharing.turn(&opened.visit, refresh_token);
        let mut unsure = false;
        loop {
            let turn = if may_ask(sharing.condition()) {
                let turn = sharing.take(&ours, &opened.visit).await;
                unsure |= matches!(turn, None | Some(LockState::Lapsed));
                turn
            } else {
                None
            };
            let answer = turn.as_ref().map_or(IssuerOutcome::Silence, LockState::answer);
            let elsewhere =
                self.redeemed.note_turn(digest, answer) || self.redeemed.is_outdated(opened);
            let ended = self.clock.now() >= opened.visit.ends;
            let step = next_step(&RefreshKnowledge {
                need: if ended { RefreshNeed::Ended } else { need },
                answer,
                store: sharing.condition(),
                elsewhere,
                chosen: sharing.is_chosen(&ours, opened.visit.home),
                patient: tokio::time::Instant::now() < end,
                lease: sharing.lease(),
            });
            match (step, turn) {
                (RefreshStep::Share, Some(LockState::Done(renewed))) => {
                    return RefreshOutcome::Renewed(renewed);
                }
                (RefreshStep::End, _) => return RefreshOutcome::Over,
                (RefreshStep::Redeem, _) => {
                    let outcome = self.ask_holding(sharing, &ours, opened, refresh_token, digest);
                    let outcome = outcome.await;
                    return self.release_lock(sharing, ours, &opened.visit, outcome).await;
                }
                (RefreshStep::RedeemAlone, _) => {
                    let outcome = self.ask_holding(sharing, &ours, opened, refresh_token, digest);
                    let outcome = match outcome.await {
                        RefreshOutcome::Over => RefreshOutcome::Doubtful,
                        outcome => outcome,
                    };
                    return self.release_lock(sharing, ours, &opened.visit, outcome).await;
                }
                (RefreshStep::GiveUp, _) => {
                    if unsure {
                        // It may have been written down all the same, and would keep others waiting.
                        sharing.tell_later(sharing.finish(ours, &opened.visit, None), None);
                    }
                    return RefreshOutcome::Unavailable;
                }
                (RefreshStep::LookAgain | RefreshStep::Share, _) => {
                    tokio::time::sleep(LOCK_POLL_INTERVAL).await;
                }
            }
        }
    }

    /// Asks the issuer, and keeps the turn for as long as that takes: also where Redis comes back meanwhile.
    async fn ask_holding(
        &self,
        sharing: &SharedSessions,
        ours: &RefreshLock,
        opened: &Arc<LoadedSession>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> RefreshOutcome {
        tokio::select! {
            outcome = self.ask(opened, refresh_token, digest) => outcome,
            never = sharing.hold(ours) => match never {},
        }
    }

    /// Says what came of a turn, and whether it still counts.
    ///
    /// Said again and again until Redis has heard it: a gateway that waits for it must not redeem a second
    /// time, and an old cookie elsewhere must not look like theft.
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
                    self.revoker.revoke(&renewed.visit).await;
                }
                RefreshOutcome::Over
            }
            Err(Unavailable) => {
                let (this, under_way) = (Arc::clone(self), self.redeemed.under_way.begin());
                let overtaken = renewed.map(|renewed| {
                    async move {
                        let _under_way = under_way;
                        // Logged out elsewhere while Redis was away from here.
                        this.end(&renewed).await;
                        this.revoker.revoke(&renewed.visit).await;
                    }
                    .boxed()
                });
                sharing.tell_later(finish, overtaken);
                outcome
            }
        }
    }

    /// Asks the issuer.
    async fn ask(
        &self,
        opened: &Arc<LoadedSession>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> RefreshOutcome {
        let grant = Grant::Refresh { refresh_token, resource: self.resource.as_ref() };
        match self.issuer.grant_with_extended_timeout(grant, &self.client).await {
            Ok(tokens) if opened.visit.belongs_to_other_subject(&tokens) => {
                let issuer = &*self.issuer.settings().name;
                tracing::error!(
                    issuer,
                    "A refresh brought another person's tokens; the session ends."
                );
                self.metrics.refreshed(RefreshResult::Error);
                RefreshOutcome::Over
            }
            Ok(tokens) => {
                let visit = SessionState { home: self.me(), ..opened.visit.renewed(tokens) };
                let renewed = LoadedSession::new(visit, self.forward);
                self.metrics.refreshed(RefreshResult::Ok);
                RefreshOutcome::Renewed(Arc::new(renewed))
            }
            Err(GrantError::InvalidGrant) => {
                let reused =
                    self.redeemed.records.get(digest).is_some_and(|record| record.is_renewed());
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

    /// Puts new tokens where they belong, unless the visit was ended meanwhile.
    async fn keep(&self, renewed: Arc<LoadedSession>) -> RefreshOutcome {
        if renewed.ending(&self.endings).is_some() {
            self.revoker.revoke(&renewed.visit).await;
            return RefreshOutcome::Over;
        }
        if let Some(store) = &self.store {
            store.renew(&renewed).await;
        }
        self.lives.renew(&renewed.name, renewed.visit.ends);
        RefreshOutcome::Renewed(renewed)
    }

    async fn end(&self, opened: &Arc<LoadedSession>) {
        if self.endings.end(opened, EndReason::Over) {
            self.metrics.logout(LogoutKind::Revoked);
        }
        if let Some(store) = &self.store {
            store.remove(opened.visit.id).await;
        }
    }
}

/// Says what Redis has lost, until it is dropped.
#[derive(Debug)]
pub(crate) struct Republisher(AbortHandle);

impl Drop for Republisher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Whether it is worth asking an issuer that could not be asked a moment ago.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RefreshUrgency {
    /// It is: without new tokens the request fails.
    Much,
    /// It is not: the old token still serves.
    Little,
}

/// What was redeemed lately, and the calls under way. Outlives a reload.
pub(crate) struct RefreshResults {
    key: hmac::Key,
    flight: SingleFlight<Digest, RefreshOutcome>,
    records: Cache<Digest, RefreshRecord>,
    /// Tokens that another gateway was seen to redeem, as long as it is not known what came of it.
    elsewhere: Cache<Digest, ()>,
    /// Until when the latest access token of a visit is good, as far as gateways have told.
    heard: Cache<Arc<str>, Timestamp>,
    /// Calls, and what is to be said of them, which outlast the requests that they are for.
    under_way: InFlightCalls,
}

impl RefreshResults {
    /// Calls run on `control`, and count as `under_way`.
    pub(crate) fn new(control: Handle, under_way: InFlightCalls) -> Self {
        let records = latest(RESULT_RETENTION);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>());
        let (elsewhere, heard) = (latest(RESULT_RETENTION), latest(MAX_RESULT_LIFETIME));
        Self { key, flight: SingleFlight::new(control), records, elsewhere, heard, under_way }
    }

    /// What came of the refresh `token` of `loaded_session`, if that was redeemed here.
    fn follower(
        &self,
        opened: &LoadedSession,
        token: &Secret<String>,
    ) -> Option<Arc<LoadedSession>> {
        match self.records.get(&self.digest(token))?.outcome {
            RefreshOutcome::Renewed(renewed) => Some(renewed).filter(|next| follows(next, opened)),
            RefreshOutcome::Over | RefreshOutcome::Doubtful | RefreshOutcome::Unavailable => None,
        }
    }

    /// A gateway has renewed the visit called `name`: its access token is good until `ends`.
    pub(crate) fn hear(&self, name: &str, ends: Timestamp) {
        self.heard.entry(name.into()).and_upsert_with(|known| match known {
            Some(known) => ends.max(*known.value()),
            None => ends,
        });
    }

    /// Whether the refresh token of `loaded_session` has been redeemed, as gateways have told.
    fn is_outdated(&self, opened: &LoadedSession) -> bool {
        self.heard.get(&opened.name).is_some_and(|ends| opened.visit.ends < ends)
    }

    /// What came of refresh tokens, and for how long that is to be known yet.
    fn recent(&self, now: Timestamp) -> Vec<(Arc<LoadedSession>, Duration)> {
        let left = |RefreshRecord { outcome, at, until }: RefreshRecord| {
            let RefreshOutcome::Renewed(renewed) = outcome else { return None };
            let end = match renewed.told() {
                Some(told) => told.plus(GRACE),
                None => at.plus(RESULT_RETENTION),
            };
            let left = end.min(until).since(now);
            (!left.is_zero()).then_some((renewed, left))
        };
        self.records.iter().filter_map(|(_, record)| left(record)).collect()
    }

    /// Notes what Redis says about a turn. Whether another gateway has or had it, and what came of it is not known.
    fn note_turn(&self, digest: &Digest, answer: IssuerOutcome) -> bool {
        match answer {
            IssuerOutcome::Busy => self.elsewhere.insert(*digest, ()),
            IssuerOutcome::Done | IssuerOutcome::Over | IssuerOutcome::Mine => {
                self.elsewhere.invalidate(digest);
            }
            IssuerOutcome::Lapsed | IssuerOutcome::Silence => {}
        }
        self.elsewhere.contains_key(digest)
    }

    fn digest(&self, refresh_token: &Secret<String>) -> Digest {
        let mut digest = [0; 32];
        let tag = hmac::sign(&self.key, refresh_token.expose().as_bytes());
        digest.copy_from_slice(tag.as_ref());
        digest
    }

    /// Notes that what is being redeemed takes long, so that nobody waits for it who need not.
    fn note_delay(&self, digest: Digest, now: Timestamp) {
        self.records.entry(digest).and_compute_with(|entry| {
            let known = entry.is_some_and(|entry| {
                let RefreshRecord { outcome, until, .. } = entry.value();
                // It has landed after all.
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

    fn lately(
        &self,
        digest: &Digest,
        patience: RefreshUrgency,
        now: Timestamp,
    ) -> Option<RefreshOutcome> {
        let RefreshRecord { outcome, at, until } = self.records.get(digest)?;
        let good = match (&outcome, patience) {
            _ if now >= until => false,
            // Until an answer has carried them to the browser, its old cookie is all it can send:
            // a slow service, or a click before the page was there, must log nobody out.
            (RefreshOutcome::Renewed(renewed), _) => match renewed.told() {
                Some(told) => now.since(told) < GRACE,
                None => now.since(at) < RESULT_RETENTION,
            },
            (RefreshOutcome::Over, _) => now.since(at) < GRACE,
            (RefreshOutcome::Doubtful | RefreshOutcome::Unavailable, RefreshUrgency::Little) => {
                now.since(at) < ISSUER_RETRY_DELAY
            }
            (RefreshOutcome::Doubtful | RefreshOutcome::Unavailable, RefreshUrgency::Much) => false,
        };
        good.then_some(outcome)
    }

    /// Forgets the new tokens of visits that `ended_sessions` say are over; returns how many.
    pub(crate) fn forget_over(&self, endings: &EndedSessions) -> usize {
        let mut forgotten = 0;
        for (digest, record) in &self.records {
            if let RefreshOutcome::Renewed(opened) = &record.outcome
                && opened.ending(endings).is_some()
            {
                self.records.invalidate(&*digest);
                forgotten += 1;
            }
        }
        forgotten
    }
}

/// Keeps the latest records for so long. They are those that stragglers will ask for: none is refused.
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
    /// From here on the token is redeemed again, because its issuer did not rotate it.
    until: Timestamp,
}

impl RefreshRecord {
    fn is_renewed(&self) -> bool {
        matches!(self.outcome, RefreshOutcome::Renewed(_))
    }
}

/// Whether `next` came of `before`: of a refresh token that was not rotated it may be what came of it before.
fn follows(next: &LoadedSession, before: &LoadedSession) -> bool {
    let (next, before) = (&next.visit, &before.visit);
    next.is_rotated(before) || next.received > before.received
}

/// How long to wait before asking again whether another gateway is done.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(25);
/// How long an issuer that could not be asked is left alone, as long as nobody depends on it.
const ISSUER_RETRY_DELAY: Duration = Duration::from_secs(5);
const MAX_RESULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_RECORDS: u64 = 100_000;
/// How many refreshes a straggler may be behind.
pub(crate) const MAX_REFRESHES_BEHIND: usize = 8;
