//! Token revocation at the issuer (RFC 7009), and removal of the access token from every cache.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::time::Duration;
use std::sync::{Arc, Mutex, Weak};

use futures_util::future::join;
use tokio::runtime::Handle;

use super::pending_revocations::{PendingEntry, PendingRevocation, PendingRevocations};
use crate::base::clock::{Clock, Timestamp};
use crate::base::in_flight::InFlightCalls;
use crate::base::lock::IgnorePoison;
use crate::base::secret::Secret;
use crate::issuer::Unavailable;
use crate::issuer::{Client, Issuer, RevocationOutcome, TokenHint};
use crate::session::store::shared_revocations::MAX_PENDING_AGE;
use crate::session::store::state::{Id, SessionState};
use crate::token::Verifier;

/// Revokes the tokens of one client at one issuer.
#[derive(Debug)]
pub(crate) struct TokenRevoker {
    pub(crate) issuer: Arc<Issuer>,
    pub(crate) client: Client,
    pub(crate) verifier: Option<Arc<Verifier>>,
    /// Whether to call the issuer's revocation endpoint.
    pub(crate) enabled: bool,
    pub(crate) control: Handle,
    pub(crate) clock: Clock,
    /// Calls that a shutdown waits for.
    pub(crate) under_way: InFlightCalls,
    /// Revocations to be repeated because the issuer was unavailable; outlives a reload.
    pub(crate) repeats: Arc<RepeatedRevocations>,
    /// The same, kept for later processes; `None` if the session's key ends with this one.
    pub(crate) kept: Option<PendingRevocations>,
}

/// The revocations to be repeated, whatever configuration they began under.
#[derive(Debug, Default)]
pub(crate) struct RepeatedRevocations {
    count: AtomicUsize,
    /// The revoker of the current configuration.
    current: Mutex<Weak<TokenRevoker>>,
}

impl RepeatedRevocations {
    /// Has revocations repeated by `revoker` from now on: as its client, at its endpoint.
    pub(crate) fn continue_with(&self, revoker: &Arc<TokenRevoker>) {
        *self.current.lock().ignore_poison() = Arc::downgrade(revoker);
    }
}

impl TokenRevoker {
    /// Returns the revoker of the current configuration; this one, if there is none any more.
    fn current(self: &Arc<Self>) -> Arc<Self> {
        let current = self.repeats.current.lock().ignore_poison().upgrade();
        current.unwrap_or_else(|| Arc::clone(self))
    }

    /// Withdraws the access token at all instances, at once: no client can present it any more. Other sessions with the
    /// same token, and a login that gets it again, are another matter until the issuer has revoked it.
    pub(crate) fn end(&self, state: &SessionState) {
        if let Some(verifier) = &self.verifier {
            verifier.withdraw(state.access_token.expose());
        }
    }

    /// Withdraws the access token at all instances, at once, and revokes both tokens at the issuer.
    ///
    /// The user is logged out in any case. While the issuer is unavailable the call is repeated, by a later process or
    /// another instance if need be.
    pub(crate) async fn revoke(self: &Arc<Self>, state: &SessionState) {
        self.current().end(state);
        self.revoke_at_issuer(state).await;
    }

    /// Revokes the tokens of a login that has failed at the issuer, in the background.
    pub(crate) fn discard(self: &Arc<Self>, state: SessionState) {
        let revoker = Arc::clone(self);
        self.control.spawn(async move { revoker.revoke_at_issuer(&state).await });
    }

    /// Revokes both tokens at the issuer alone: the server may give an unused access token to the next login again.
    pub(crate) async fn revoke_at_issuer(self: &Arc<Self>, state: &SessionState) {
        let current = self.current();
        if !current.enabled {
            return;
        }
        let _under_way = self.under_way.begin();
        let mut left = Unrevoked::ALL;
        let Err(error) = current.revoke_tokens(state, &mut left).await else { return };
        let issuer = &*current.issuer.settings().name;
        if self.repeats.count.fetch_add(1, Relaxed) >= MAX_PENDING {
            self.repeats.count.fetch_sub(1, Relaxed);
            tracing::error!(
                issuer,
                max_pending = MAX_PENDING,
                "Too many revocations are pending; tokens are not revoked at the issuer."
            );
            return;
        }
        tracing::warn!(issuer, %error, "Could not revoke tokens at the issuer; it will be retried.");
        let entry = match &self.kept {
            Some(kept) => {
                let revocation = PendingRevocation::Tokens(Box::new(state.clone()));
                kept.add(&revocation, self.pending_until(state)).await
            }
            None => None,
        };
        self.control.spawn(Arc::clone(self).repeat(state.clone(), left, entry));
    }

    /// Keeps for later processes that the session `id`, which only Redis has, is to be ended.
    pub(crate) async fn keep_unseen(&self, id: Id) -> Option<PendingEntry> {
        let until = self.clock.now().plus(MAX_PENDING_AGE);
        self.kept.as_ref()?.add(&PendingRevocation::Session(id), until).await
    }

    /// Removes an entry that is done with.
    pub(crate) async fn done(&self, entry: Option<PendingEntry>) {
        if let (Some(kept), Some(entry)) = (&self.kept, entry) {
            kept.remove(entry).await;
        }
    }

    /// Goes on with revocations that processes before this one, or instances that are gone, have left; never
    /// returns. Sessions that only Redis has are passed to `end_unseen`, which returns `false` if too many are pending.
    pub(crate) async fn take_over(
        self: Arc<Self>,
        end_unseen: impl Fn(Id, PendingEntry) -> bool + Send + Sync,
    ) {
        let Some(kept) = &self.kept else { return };
        loop {
            let free = MAX_PENDING.saturating_sub(self.repeats.count.load(Relaxed));
            for (entry, revocation) in kept.take(free).await {
                match revocation {
                    PendingRevocation::Tokens(_) if !self.enabled => self.done(Some(entry)).await,
                    PendingRevocation::Tokens(state) => {
                        self.repeats.count.fetch_add(1, Relaxed);
                        let repeat = Arc::clone(&self).repeat(*state, Unrevoked::ALL, Some(entry));
                        self.control.spawn(repeat);
                    }
                    PendingRevocation::Session(id) => {
                        if !end_unseen(id, entry.clone()) {
                            kept.give_back(&entry);
                        }
                    }
                }
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Revokes the tokens that are `left`, and takes out of them those that the issuer has revoked. An access token of
    /// an ended session that the issuer has revoked is revoked here for all of its sessions.
    async fn revoke_tokens(
        &self,
        state: &SessionState,
        left: &mut Unrevoked,
    ) -> Result<(), Unavailable> {
        let refresh = state.refresh_token.as_ref().filter(|_| left.refresh);
        let access = left.access.then_some(&state.access_token);
        let (refresh, revoked) = join(
            self.revoke_token(refresh, TokenHint::RefreshToken),
            self.revoke_token(access, TokenHint::AccessToken),
        )
        .await;
        if let (Ok(RevocationOutcome::Revoked), Some(token), Some(verifier)) =
            (&revoked, access, &self.verifier)
        {
            verifier.revoke_withdrawn(token.expose());
        }
        *left = Unrevoked { refresh: refresh.is_err(), access: revoked.is_err() };
        refresh.and(revoked).map(drop)
    }

    async fn revoke_token(
        &self,
        token: Option<&Secret<String>>,
        hint: TokenHint,
    ) -> Result<RevocationOutcome, Unavailable> {
        let Some(token) = token else { return Ok(RevocationOutcome::Left) };
        self.issuer.revoke(token, hint, &self.client).await
    }

    /// Revokes the tokens of a session as soon as the issuer is available, unless they end by themselves before.
    async fn repeat(
        self: Arc<Self>,
        state: SessionState,
        mut left: Unrevoked,
        entry: Option<PendingEntry>,
    ) {
        let until = self.pending_until(&state);
        let mut pause = FIRST_PAUSE;
        let is_open = || match (&self.kept, &entry) {
            (Some(kept), Some(entry)) => kept.is_open(entry),
            _ => true,
        };
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
            // The operator may have corrected what the issuer refuses.
            let current = self.current();
            if self.clock.now() >= until
                || !is_open()
                || !current.enabled
                || current.revoke_tokens(&state, &mut left).await.is_ok()
            {
                break;
            }
        }
        self.done(entry).await;
        self.repeats.count.fetch_sub(1, Relaxed);
    }

    /// Returns until when a revocation is worth repeating: until both tokens have ended, but no
    /// longer than [`MAX_PENDING_AGE`].
    fn pending_until(&self, state: &SessionState) -> Timestamp {
        let refresh_ends = state.refresh_token.as_ref().map(|_| state.refresh_ends);
        let latest = self.clock.now().plus(MAX_PENDING_AGE);
        refresh_ends.map_or(state.ends, |ends| ends.max(state.ends)).min(latest)
    }
}

/// The tokens of a session that are still to be revoked at the issuer.
struct Unrevoked {
    refresh: bool,
    access: bool,
}

impl Unrevoked {
    const ALL: Self = Self { refresh: true, access: true };
}

/// The pause before the first retry; each further one is twice as long, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// The longest pause between two retries.
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// Revocations to be repeated, at once.
const MAX_PENDING: usize = 1_000;
/// The time between looks for revocations that others have left.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
