//! Token refresh: one redemption per refresh token, and one result for all requests that need it.
//!
//! Issuers that rotate refresh tokens take a reused one for stolen and end the whole session. Browsers send twenty
//! requests at once. So parallel requests share one call (on the control runtime: no disconnect cancels it), and its
//! result is retained for a while under a keyed hash of the redeemed token: a late request with the old cookie gets the
//! new tokens and the new cookie as well.

use core::time::Duration;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::runtime::Handle;

use super::decision::{
    LockResponse, RefreshKnowledge, RefreshNeed, RefreshStep, may_ask, next_step,
};
use super::refresh_results::{
    Digest, RefreshOutcome, RefreshRecord, RefreshResults, RefreshUrgency, follows,
};
use crate::base::abort_on_drop::AbortOnDrop;
use crate::base::clock::{Clock, Timestamp};
use crate::base::secret::Secret;
use crate::base::single_flight::Role;
use crate::issuer::{Client, Grant, GrantError, Issuer, ResourceIndicator, Tokens};
use crate::observe::metrics::{LogoutKind, RefreshResult, SessionMetrics};
use crate::redis::Unavailable;
use crate::session::logout::ended_sessions::{EndReason, EndedSessions};
use crate::session::logout::session_watch::SessionWatchers;
use crate::session::logout::token_revocation::TokenRevoker;
use crate::session::settings::ForwardedSessionToken;
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::lookup::LockState;
use crate::session::store::redis::{RefreshLock, SharedSessions};
use crate::session::store::server_side::Store;
use crate::session::store::state::SessionState;
use crate::token::TokenError;
use crate::token::jwt::id_token::RelyingParty;

/// Redeems refresh tokens at one issuer, as one client.
#[derive(Debug)]
pub(crate) struct TokenRefresher {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) relying_party: Arc<RelyingParty>,
    pub(crate) client: Client,
    pub(crate) resource: Option<ResourceIndicator>,
    pub(crate) forward: ForwardedSessionToken,
    pub(crate) clock: Clock,
    pub(crate) metrics: Arc<SessionMetrics>,
    pub(crate) ended: Arc<EndedSessions>,
    pub(crate) results: Arc<RefreshResults>,
    pub(crate) watchers: Arc<SessionWatchers>,
    pub(crate) store: Option<Arc<Store>>,
    pub(crate) sharing: Option<Arc<SharedSessions>>,
    pub(crate) revoker: Arc<TokenRevoker>,
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
            return self.adopted(loaded, outcome);
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
                Ok((
                    RefreshOutcome::Unavailable | RefreshOutcome::StoreUnavailable,
                    Role::Shared,
                )) if need > RefreshNeed::Serves => {
                    self.results.flight.run(digest, refresh_once).await
                }
                joined => joined,
            }
        };
        match tokio::time::timeout(self.issuer.settings().timeout, joined).await {
            Ok(Ok((outcome, _))) => self.adopted(loaded, outcome),
            Ok(Err(_)) => RefreshOutcome::Unavailable,
            Err(_) => {
                let outcome = self.awaited();
                self.results.note_delay(digest, outcome.clone(), self.clock.now());
                outcome
            }
        }
    }

    /// Returns the outcome of a refresh that takes too long: the lock in Redis is what it waits for, or the issuer.
    fn awaited(&self) -> RefreshOutcome {
        match &self.sharing {
            Some(sharing) if !may_ask(sharing.condition()) => RefreshOutcome::StoreUnavailable,
            _ => RefreshOutcome::Unavailable,
        }
    }

    /// Returns the outcome for the session `loaded`. Some authorization servers give one refresh token to all logins of a
    /// user: what another session got for it are tokens for this one, which stays itself.
    fn adopted(&self, loaded: &LoadedSession, outcome: RefreshOutcome) -> RefreshOutcome {
        match outcome {
            RefreshOutcome::Renewed(other) if other.state.id != loaded.state.id => {
                let state = loaded.state.with_tokens_of(&other.state);
                RefreshOutcome::Renewed(Arc::new(LoadedSession::new(state, self.forward)))
            }
            outcome => outcome,
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
    ) -> Option<AbortOnDrop> {
        let sharing = Arc::clone(self.sharing.as_ref()?);
        let mut connections = sharing.connections();
        connections.mark_unchanged();
        let this = Arc::clone(self);
        let task = control.spawn(async move {
            while connections.changed().await.is_ok() {
                // A late response or a further outage interrupted it: everything is published again.
                while this.republish(&sharing).await.is_err() {
                    sharing.wait_to_retry().await;
                }
            }
        });
        Some(AbortOnDrop(task.abort_handle()))
    }

    async fn republish(&self, sharing: &SharedSessions) -> Result<(), Unavailable> {
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
        // Another call may have completed since the check.
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
            RefreshOutcome::Doubtful
            | RefreshOutcome::Unavailable
            | RefreshOutcome::StoreUnavailable => outcome,
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
                unsure |= matches!(turn, None | Some(LockState::AcquiredAfterExpiry));
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
                (RefreshStep::Share, Some(LockState::Refreshed(renewed))) => {
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
                    return match response {
                        LockResponse::NoResponse => RefreshOutcome::StoreUnavailable,
                        _ => RefreshOutcome::Unavailable,
                    };
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
        let granted = self.issuer.grant_with_extended_timeout(grant, &self.client).await;
        let opened = granted.map(|tokens| Tokens {
            id_token: tokens.id_token.map(|token| self.relying_party.opened(token)),
            ..tokens
        });
        match opened {
            Ok(tokens) if loaded.state.belongs_to_other_subject(&tokens) => {
                let issuer = &*self.issuer.settings().name;
                tracing::error!(
                    issuer,
                    "A refresh returned tokens of another subject; the session ends."
                );
                self.metrics.refreshed(RefreshResult::Error);
                RefreshOutcome::Over
            }
            Ok(mut tokens) => {
                let is_verified = self.has_verified_id_token(&loaded.state, &tokens).await;
                if is_verified != Ok(true) {
                    tokens.id_token = None;
                }
                let state = SessionState {
                    home: self.me(),
                    is_id_token_owed: is_verified.is_err(),
                    ..loaded.state.renewed(tokens)
                };
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
            Err(GrantError::Unavailable | GrantError::NotAsked) => {
                self.metrics.refreshed(RefreshResult::Error);
                RefreshOutcome::Unavailable
            }
        }
    }

    /// Whether the ID token that a refresh has brought takes the place of the one before: it must be as good ("OpenID
    /// Connect Core" §12.2). Without one at the login there is none later.
    ///
    /// # Errors
    ///
    /// The error if the issuer's keys are not known for now, so that the ID token was not judged.
    async fn has_verified_id_token(
        &self,
        before: &SessionState,
        tokens: &Tokens,
    ) -> Result<bool, TokenError> {
        let (Some(_), Some(token)) = (&before.id_token, &tokens.id_token) else { return Ok(false) };
        let verified = self.relying_party.verify(&self.issuer, token, self.clock.now()).await;
        let Err(error) = verified else { return Ok(true) };
        let issuer = &*self.issuer.settings().name;
        let missing_claim = RelyingParty::lacking(token);
        tracing::warn!(issuer, %error, missing_claim, "Rejected the ID token of a refresh; the session keeps the previous one.");
        match error {
            TokenError::Unavailable { .. } | TokenError::UnknownKey => Err(error),
            _ => Ok(false),
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

/// The time between attempts to acquire the lock.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(25);
/// The number of refreshes that a late request may be behind.
pub(crate) const MAX_REFRESHES_BEHIND: usize = 8;
