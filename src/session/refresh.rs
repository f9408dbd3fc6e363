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
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::runtime::Handle;

use super::endings::{Ending, Endings};
use super::lives::Lives;
use super::opened::Opened;
use super::revoke::Revoker;
use super::seal::random;
use super::settings::Forward;
use super::sharing::{GRACE, Lease, REMEMBERED, Sharing, Turn, Untaken};
use super::store::Store;
use super::visit::Visit;
use crate::base::clock::{Clock, Timestamp};
use crate::base::flight::Flight;
use crate::base::secret::Secret;
use crate::issuer::{Client, Grant, GrantError, Issuer, Resource};
use crate::observe::metrics::{LogoutKind, RefreshResult, SessionMetrics};
use crate::store::Away;

/// Redeems refresh tokens at one issuer, as one client.
#[derive(Debug)]
pub(super) struct Redeemer {
    pub(super) issuer: Arc<Issuer>,
    pub(super) client: Client,
    pub(super) resource: Option<Resource>,
    pub(super) forward: Forward,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<SessionMetrics>,
    pub(super) endings: Arc<Endings>,
    pub(super) redeemed: Arc<Redeemed>,
    pub(super) lives: Arc<Lives>,
    pub(super) store: Option<Arc<Store>>,
    pub(super) sharing: Option<Arc<Sharing>>,
    pub(super) revoker: Arc<Revoker>,
}

/// What came of a refresh token.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// New tokens, in the same visit.
    Renewed(Arc<Opened>),
    /// The issuer says `invalid_grant`, or there is nothing to redeem: the visit is over.
    Over,
    /// The issuer says `invalid_grant`, but it may be that another gateway was first and could not say so.
    Doubtful,
    /// The issuer cannot be asked: nothing is over.
    Unavailable,
}

impl Redeemer {
    /// Redeems the refresh token of `opened`, or tells what came of it when somebody else did.
    ///
    /// With `patience` the issuer is asked even if it could not be a moment ago.
    pub(super) async fn redeem(
        self: &Arc<Self>,
        opened: &Arc<Opened>,
        patience: Patience,
    ) -> Outcome {
        let Some(token) = opened.visit.redeemable(self.clock.now()) else { return Outcome::Over };
        let digest = self.redeemed.digest(token);
        if let Some(outcome) = self.redeemed.lately(&digest, patience, self.clock.now()) {
            return outcome;
        }
        let call = || {
            let (this, opened) = (Arc::clone(self), Arc::clone(opened));
            async move { this.call(&opened, digest).await }
        };
        // Nobody waits longer than for any call. This one goes on: an issuer that took its time has rotated the
        // token all the same, and would take a second one like it for stolen.
        let joined = self.redeemed.flight.join(digest, call);
        match tokio::time::timeout(self.issuer.settings().timeout, joined).await {
            Ok(Ok((outcome, _))) => outcome,
            Ok(Err(_)) => Outcome::Unavailable,
            Err(_) => {
                self.redeemed.note_delay(digest, self.clock.now());
                Outcome::Unavailable
            }
        }
    }

    /// The latest visit that came of `opened`, without asking the issuer. `None` if it is over, or
    /// if the browser has been given later tokens that are not known here.
    pub(super) async fn latest(&self, opened: &Arc<Opened>) -> Option<Arc<Opened>> {
        let mut latest = Arc::clone(opened);
        for _ in 0..HOPS {
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

    /// Lets nothing more come of the refresh token of `opened`, nor of what came of it so far, here
    /// or at any gateway that is redeeming it now. Gives the latest of it.
    pub(super) async fn close(&self, opened: &Arc<Opened>) -> Arc<Opened> {
        let mut latest = Arc::clone(opened);
        for _ in 0..HOPS {
            // First the end, then a look: a refresh elsewhere finds the one, or is found by the other.
            let token = latest.visit.refresh_token.as_ref();
            if let Some(sharing) = &self.sharing {
                sharing.close(&latest.visit, token).await;
            }
            let Some(token) = token else { break };
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
    pub(super) async fn end_everywhere(&self, opened: &Opened) {
        if let (Some(sharing), None) = (&self.sharing, &self.store) {
            sharing.close(&opened.visit, opened.visit.refresh_token.as_ref()).await;
        }
    }

    /// The tokens of `opened` are written for its browser.
    pub(super) fn give(&self, opened: &Opened, now: Timestamp) {
        if opened.tell(now)
            && let Some(sharing) = &self.sharing
        {
            sharing.give(opened);
        }
    }

    async fn call(self: &Arc<Self>, opened: &Arc<Opened>, digest: Digest) -> Outcome {
        // Between the look and the flight another flight may have landed.
        if let Some(outcome) = self.redeemed.lately(&digest, Patience::Much, self.clock.now()) {
            return outcome;
        }
        let Some(refresh_token) = &opened.visit.refresh_token else { return Outcome::Over };
        let outcome = match &self.sharing {
            None => self.ask(opened, refresh_token, &digest).await,
            Some(sharing) => self.take_turn(sharing, opened, refresh_token, &digest).await,
        };
        let now = self.clock.now();
        let until = match &outcome {
            Outcome::Renewed(renewed) => renewed.visit.stands_until(&opened.visit),
            _ => Timestamp::MAX,
        };
        self.redeemed.records.insert(digest, Record { outcome: outcome.clone(), at: now, until });
        // After the record: a logout that comes now finds either it or its own ending here.
        match outcome {
            Outcome::Renewed(renewed) => self.keep(renewed).await,
            Outcome::Over => {
                self.end(opened).await;
                Outcome::Over
            }
            Outcome::Doubtful | Outcome::Unavailable => outcome,
        }
    }

    /// Redeems once in the whole fleet: waits for its turn, or for what another gateway made of its own.
    async fn take_turn(
        self: &Arc<Self>,
        sharing: &Arc<Sharing>,
        opened: &Arc<Opened>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> Outcome {
        let end = tokio::time::Instant::now() + sharing.patience();
        let ours = sharing.turn(&opened.visit, refresh_token);
        let mut others = false;
        loop {
            match sharing.take(ours.clone(), &opened.visit).await {
                Ok(Turn::Done(renewed)) => return Outcome::Renewed(renewed),
                Ok(Turn::Over) => return Outcome::Over,
                Ok(Turn::Mine(lease)) => {
                    let outcome = self.ask(opened, refresh_token, digest).await;
                    return self.give_turn_back(sharing, lease, &opened.visit, outcome).await;
                }
                Ok(Turn::Busy) if tokio::time::Instant::now() < end => {
                    others = true;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                // Whoever has the turn may still use it: a second redeem would look like theft.
                Ok(Turn::Busy) | Err(Untaken::Unknown) => return Outcome::Unavailable,
                Err(Untaken::Away) if others => return Outcome::Unavailable,
                Err(Untaken::Away) => {
                    return match self.ask(opened, refresh_token, digest).await {
                        Outcome::Over => Outcome::Doubtful,
                        outcome => outcome,
                    };
                }
            }
        }
    }

    /// Says what came of a turn, and whether it still counts.
    ///
    /// Said again and again while the lease lasts: who waits for it must not redeem a second time.
    async fn give_turn_back(
        self: &Arc<Self>,
        sharing: &Arc<Sharing>,
        lease: Lease,
        before: &Visit,
        outcome: Outcome,
    ) -> Outcome {
        let renewed = match &outcome {
            Outcome::Renewed(renewed) => Some(Arc::clone(renewed)),
            _ => None,
        };
        let finish = sharing.finish(lease, before, renewed.as_deref());
        match sharing.say(&finish).await {
            Ok(true) => outcome,
            Ok(false) => {
                if let Some(renewed) = renewed {
                    self.revoker.revoke(&renewed.visit).await;
                }
                Outcome::Over
            }
            Err(Away) => {
                let (this, sharing) = (Arc::clone(self), Arc::clone(sharing));
                self.redeemed.control.spawn(async move {
                    for _ in 0..sharing.patience().as_millis() / AGAIN.as_millis() {
                        tokio::time::sleep(AGAIN).await;
                        match (sharing.say(&finish).await, &renewed) {
                            (Err(Away), _) => {}
                            // Logged out elsewhere while Redis was away from here.
                            (Ok(false), Some(renewed)) => {
                                this.end(renewed).await;
                                return this.revoker.revoke(&renewed.visit).await;
                            }
                            (Ok(_), _) => return,
                        }
                    }
                });
                outcome
            }
        }
    }

    /// Asks the issuer.
    async fn ask(
        &self,
        opened: &Arc<Opened>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> Outcome {
        let grant = Grant::Refresh { refresh_token, resource: self.resource.as_ref() };
        match self.issuer.grant_lately(grant, &self.client).await {
            Ok(tokens) if opened.visit.is_anothers(&tokens) => {
                let issuer = &*self.issuer.settings().name;
                tracing::error!(
                    issuer,
                    "A refresh brought another person's tokens; the session ends."
                );
                self.metrics.refreshed(RefreshResult::Error);
                Outcome::Over
            }
            Ok(tokens) => {
                let renewed = Opened::new(opened.visit.renewed(tokens), self.forward);
                self.metrics.refreshed(RefreshResult::Ok);
                Outcome::Renewed(Arc::new(renewed))
            }
            Err(GrantError::InvalidGrant) => {
                let reused =
                    self.redeemed.records.get(digest).is_some_and(|record| record.is_renewed());
                let result = if reused { RefreshResult::Reuse } else { RefreshResult::Rejected };
                self.metrics.refreshed(result);
                Outcome::Over
            }
            Err(GrantError::Unavailable) => {
                self.metrics.refreshed(RefreshResult::Error);
                Outcome::Unavailable
            }
        }
    }

    /// Puts new tokens where they belong, unless the visit was ended meanwhile.
    async fn keep(&self, renewed: Arc<Opened>) -> Outcome {
        if renewed.ending(&self.endings).is_some() {
            self.revoker.revoke(&renewed.visit).await;
            return Outcome::Over;
        }
        if let Some(store) = &self.store {
            store.renew(&renewed).await;
        }
        self.lives.renew(&renewed.name, renewed.visit.ends);
        Outcome::Renewed(renewed)
    }

    async fn end(&self, opened: &Arc<Opened>) {
        if self.endings.end(opened, Ending::Over) {
            self.metrics.logout(LogoutKind::Revoked);
        }
        if let Some(store) = &self.store {
            store.remove(opened.visit.id).await;
        }
    }
}

/// Whether it is worth asking an issuer that could not be asked a moment ago.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Patience {
    /// It is: without new tokens the request fails.
    Much,
    /// It is not: the old token still serves.
    Little,
}

/// What was redeemed lately, and the calls under way. Outlives a reload.
pub(super) struct Redeemed {
    key: hmac::Key,
    flight: Flight<Digest, Outcome>,
    /// Where calls run, and what is to be said later.
    control: Handle,
    records: Cache<Digest, Record>,
}

impl Redeemed {
    /// Calls run on `control`.
    pub(super) fn new(control: Handle) -> Self {
        let records = Cache::builder()
            .max_capacity(MAX_RECORDS)
            // The latest record is the one that stragglers will ask for: never refuse to keep it.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(REMEMBERED)
            .build();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>());
        Self { key, flight: Flight::new(control.clone()), records, control }
    }

    /// What came of the refresh `token` of `opened`, if that was redeemed here.
    fn follower(&self, opened: &Opened, token: &Secret<String>) -> Option<Arc<Opened>> {
        match self.records.get(&self.digest(token))?.outcome {
            Outcome::Renewed(renewed) => Some(renewed).filter(|next| follows(next, opened)),
            Outcome::Over | Outcome::Doubtful | Outcome::Unavailable => None,
        }
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
                let Record { outcome, until, .. } = entry.value();
                // It has landed after all.
                matches!(outcome, Outcome::Renewed(_) | Outcome::Over) && now < *until
            });
            if known {
                return Op::Nop;
            }
            Op::Put(Record { outcome: Outcome::Unavailable, at: now, until: Timestamp::MAX })
        });
    }

    fn lately(&self, digest: &Digest, patience: Patience, now: Timestamp) -> Option<Outcome> {
        let Record { outcome, at, until } = self.records.get(digest)?;
        let good = match (&outcome, patience) {
            _ if now >= until => false,
            // Until an answer has carried them to the browser, its old cookie is all it can send:
            // a slow service, or a click before the page was there, must log nobody out.
            (Outcome::Renewed(renewed), _) => match renewed.told() {
                Some(told) => now.since(told) < GRACE,
                None => now.since(at) < REMEMBERED,
            },
            (Outcome::Over, _) => now.since(at) < GRACE,
            (Outcome::Doubtful | Outcome::Unavailable, Patience::Little) => now.since(at) < PAUSE,
            (Outcome::Doubtful | Outcome::Unavailable, Patience::Much) => false,
        };
        good.then_some(outcome)
    }

    /// Forgets the new tokens of visits that `endings` say are over; returns how many.
    pub(super) fn forget_over(&self, endings: &Endings) -> usize {
        let mut forgotten = 0;
        for (digest, record) in &self.records {
            if let Outcome::Renewed(opened) = &record.outcome
                && opened.ending(endings).is_some()
            {
                self.records.invalidate(&*digest);
                forgotten += 1;
            }
        }
        forgotten
    }
}

impl fmt::Debug for Redeemed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redeemed").finish_non_exhaustive()
    }
}

type Digest = [u8; 32];

#[derive(Clone)]
struct Record {
    outcome: Outcome,
    at: Timestamp,
    /// From here on the token is redeemed again, because its issuer did not rotate it.
    until: Timestamp,
}

impl Record {
    fn is_renewed(&self) -> bool {
        matches!(self.outcome, Outcome::Renewed(_))
    }
}

/// Whether `next` came of `before`: of a refresh token that was not rotated it may be what came of it before.
fn follows(next: &Opened, before: &Opened) -> bool {
    let (next, before) = (&next.visit, &before.visit);
    next.is_rotated(before) || next.received > before.received
}

/// How long to wait before asking again whether another gateway is done.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long an issuer that could not be asked is left alone, as long as nobody depends on it.
const PAUSE: Duration = Duration::from_secs(5);
/// Between attempts to say what came of a turn.
const AGAIN: Duration = Duration::from_millis(250);
const MAX_RECORDS: u64 = 100_000;
/// How many refreshes a straggler may be behind.
pub(super) const HOPS: usize = 8;
