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
use super::sharing::{GRACE, Sharing, Turn};
use super::store::Store;
use super::visit::Id;
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

    /// The latest visit that came of `opened`, without asking the issuer.
    pub(super) async fn latest(&self, opened: &Arc<Opened>) -> Arc<Opened> {
        let mut latest = Arc::clone(opened);
        for _ in 0..HOPS {
            let Some(token) = &latest.visit.refresh_token else { break };
            let next = match self.redeemed.records.get(&self.redeemed.digest(token)) {
                Some(Record { outcome: Outcome::Renewed(next), .. }) => Some(next),
                _ => match &self.sharing {
                    Some(sharing) => sharing.redeemed(token).await,
                    None => None,
                },
            };
            match next {
                // Of a token that was not rotated it may be what came of it before.
                Some(next) if next.visit.is_rotated(&latest.visit) || later(&next, &latest) => {
                    latest = next;
                }
                _ => break,
            }
        }
        latest
    }

    /// Forgets what came of the refresh token of `opened`: it is over.
    pub(super) async fn forget(&self, opened: &Opened) {
        let Some(token) = &opened.visit.refresh_token else { return };
        self.redeemed.records.invalidate(&self.redeemed.digest(token));
        if let Some(sharing) = &self.sharing {
            sharing.forget_redeemed(token).await;
        }
    }

    /// Tells the fleet that a visit in a cookie is over, so that no gateway renews it: until its token
    /// ends, those that were not told of the logout still take the cookie.
    pub(super) async fn end_everywhere(&self, id: Id) {
        if let (Some(sharing), None) = (&self.sharing, &self.store) {
            // Who cannot be told now asks the issuer then, where the tokens are given back.
            let _ = sharing.end(id).await;
        }
    }

    async fn call(&self, opened: &Arc<Opened>, digest: Digest) -> Outcome {
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
        &self,
        sharing: &Arc<Sharing>,
        opened: &Arc<Opened>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> Outcome {
        let end = tokio::time::Instant::now() + sharing.patience();
        let mut others = false;
        loop {
            match sharing.turn(opened.visit.id, refresh_token).await {
                Ok(Turn::Over) => return Outcome::Over,
                Ok(Turn::Done(renewed)) => return Outcome::Renewed(renewed),
                Ok(Turn::Mine(lease)) => {
                    let outcome = self.ask(opened, refresh_token, digest).await;
                    let renewed = match &outcome {
                        Outcome::Renewed(renewed) => Some(&**renewed),
                        _ => None,
                    };
                    let until = renewed.map(|renewed| renewed.visit.stands_until(&opened.visit));
                    let until = until.unwrap_or(Timestamp::MAX);
                    let good_for = until.since(self.clock.now()).min(GRACE);
                    sharing.finish(lease, renewed, good_for).await;
                    return outcome;
                }
                Ok(Turn::Busy) if tokio::time::Instant::now() < end => {
                    others = true;
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                // Whoever has the turn may still use it: a second redeem would look like theft.
                Ok(Turn::Busy) => return Outcome::Unavailable,
                Err(Away) if others => return Outcome::Unavailable,
                Err(Away) => {
                    return match self.ask(opened, refresh_token, digest).await {
                        Outcome::Over => Outcome::Doubtful,
                        outcome => outcome,
                    };
                }
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
        if self.endings.end(&opened.name, Ending::Over) {
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
        Self { key, flight: Flight::new(control), records }
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

fn later(one: &Opened, other: &Opened) -> bool {
    one.visit.received > other.visit.received
}

/// How long to wait before asking again whether another gateway is done.
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// How long an issuer that could not be asked is left alone, as long as nobody depends on it.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a redeemed token is known, to tell a stolen one from one that has ended.
const REMEMBERED: Duration = Duration::from_secs(600);
const MAX_RECORDS: u64 = 100_000;
/// How many refreshes a straggler may be behind.
pub(super) const HOPS: usize = 8;
