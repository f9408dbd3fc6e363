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

use super::endings::{Ending, Endings};
use super::lives::Lives;
use super::opened::Opened;
use super::revoke::Revoker;
use super::seal::random;
use super::settings::Forward;
use super::sharing::{GRACE, Lease, REMEMBERED, Sharing, Turn};
use super::store::Store;
use super::turn::{Answer, Known, Need, Step, may_ask, next_step};
use super::visit::Visit;
use crate::base::clock::{Clock, Timestamp};
use crate::base::flight::{Flight, Joined};
use crate::base::secret::Secret;
use crate::base::under_way::UnderWay;
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
    /// The name of this gateway among those that share a Redis; zero if there is none.
    pub(super) fn me(&self) -> u64 {
        self.sharing.as_ref().map_or(0, |sharing| sharing.me())
    }

    /// Redeems the refresh token of `opened`, or tells what came of it when another request did.
    ///
    /// With `patience` the issuer is asked even if it could not be a moment ago; how much there is
    /// a `need` decides what is done when Redis cannot say whose turn it is.
    pub(super) async fn redeem(
        self: &Arc<Self>,
        opened: &Arc<Opened>,
        need: Need,
        patience: Patience,
    ) -> Outcome {
        let Some(token) = opened.visit.redeemable(self.clock.now()) else { return Outcome::Over };
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
            match self.redeemed.flight.join(digest, call).await {
                // A request that needed it less may have given up sooner.
                Ok((Outcome::Unavailable, Joined::Shared)) if need > Need::Serves => {
                    self.redeemed.flight.join(digest, call).await
                }
                joined => joined,
            }
        };
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
            if let Some(sharing) = &self.sharing {
                sharing.close(&latest.visit).await;
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
    pub(super) async fn end_everywhere(&self, opened: &Opened) {
        if let (Some(sharing), None) = (&self.sharing, &self.store) {
            sharing.close(&opened.visit).await;
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

    /// From now on says again what Redis has lost, when it is back or found to be empty.
    pub(super) fn tell_again_what_is_lost(self: &Arc<Self>, control: &Handle) -> Option<Retelling> {
        let mut connections = self.sharing.as_ref()?.connections();
        connections.mark_unchanged();
        let this = Arc::clone(self);
        let task = control.spawn(async move {
            while connections.changed().await.is_ok() {
                // If it is away again, all of it is said when it is back again.
                let _ = this.tell_again().await;
            }
        });
        Some(Retelling(task.abort_handle()))
    }

    async fn tell_again(&self) -> Result<(), Away> {
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

    async fn call(self: &Arc<Self>, opened: &Arc<Opened>, need: Need, digest: Digest) -> Outcome {
        // A gateway that ends waits for what comes of it, although no request may.
        let _under_way = self.redeemed.under_way.begin();
        // Between the look and the flight another flight may have landed.
        if let Some(outcome) = self.redeemed.lately(&digest, Patience::Much, self.clock.now()) {
            return outcome;
        }
        let Some(refresh_token) = &opened.visit.refresh_token else { return Outcome::Over };
        let outcome = match &self.sharing {
            None => self.ask(opened, refresh_token, &digest).await,
            Some(sharing) => self.take_turn(sharing, opened, refresh_token, need, &digest).await,
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
        need: Need,
        digest: &Digest,
    ) -> Outcome {
        let end = tokio::time::Instant::now() + sharing.patience();
        let ours = sharing.turn(&opened.visit, refresh_token);
        let mut unsure = false;
        loop {
            let turn = if may_ask(sharing.condition()) {
                let turn = sharing.take(&ours, &opened.visit).await;
                unsure |= matches!(turn, None | Some(Turn::Lapsed));
                turn
            } else {
                None
            };
            let answer = turn.as_ref().map_or(Answer::Silence, Turn::answer);
            let elsewhere =
                self.redeemed.note_turn(digest, answer) || self.redeemed.is_outdated(opened);
            let ended = self.clock.now() >= opened.visit.ends;
            let step = next_step(&Known {
                need: if ended { Need::Ended } else { need },
                answer,
                store: sharing.condition(),
                elsewhere,
                chosen: sharing.is_chosen(&ours, opened.visit.home),
                patient: tokio::time::Instant::now() < end,
                lease: sharing.lease(),
            });
            match (step, turn) {
                (Step::Share, Some(Turn::Done(renewed))) => return Outcome::Renewed(renewed),
                (Step::End, _) => return Outcome::Over,
                (Step::Redeem, _) => {
                    let outcome = self.ask_holding(sharing, &ours, opened, refresh_token, digest);
                    let outcome = outcome.await;
                    return self.give_turn_back(sharing, ours, &opened.visit, outcome).await;
                }
                (Step::RedeemAlone, _) => {
                    let outcome = self.ask_holding(sharing, &ours, opened, refresh_token, digest);
                    let outcome = match outcome.await {
                        Outcome::Over => Outcome::Doubtful,
                        outcome => outcome,
                    };
                    return self.give_turn_back(sharing, ours, &opened.visit, outcome).await;
                }
                (Step::GiveUp, _) => {
                    if unsure {
                        // It may have been written down all the same, and would keep others waiting.
                        sharing.tell_later(sharing.finish(ours, &opened.visit, None), None);
                    }
                    return Outcome::Unavailable;
                }
                (Step::LookAgain | Step::Share, _) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Asks the issuer, and keeps the turn for as long as that takes: also where Redis comes back meanwhile.
    async fn ask_holding(
        &self,
        sharing: &Sharing,
        ours: &Lease,
        opened: &Arc<Opened>,
        refresh_token: &Secret<String>,
        digest: &Digest,
    ) -> Outcome {
        tokio::select! {
            outcome = self.ask(opened, refresh_token, digest) => outcome,
            never = sharing.hold(ours) => match never {},
        }
    }

    /// Says what came of a turn, and whether it still counts.
    ///
    /// Said again and again until Redis has heard it: a gateway that waits for it must not redeem a second
    /// time, and an old cookie elsewhere must not look like theft.
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
                let visit = Visit { home: self.me(), ..opened.visit.renewed(tokens) };
                let renewed = Opened::new(visit, self.forward);
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

/// Says what Redis has lost, until it is dropped.
#[derive(Debug)]
pub(super) struct Retelling(AbortHandle);

impl Drop for Retelling {
    fn drop(&mut self) {
        self.0.abort();
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
    /// Tokens that another gateway was seen to redeem, as long as it is not known what came of it.
    elsewhere: Cache<Digest, ()>,
    /// Until when the latest access token of a visit is good, as far as gateways have told.
    heard: Cache<Arc<str>, Timestamp>,
    /// Calls, and what is to be said of them, which outlast the requests that they are for.
    under_way: UnderWay,
}

impl Redeemed {
    /// Calls run on `control`, and count as `under_way`.
    pub(super) fn new(control: Handle, under_way: UnderWay) -> Self {
        let records = latest(REMEMBERED);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::<32>());
        let (elsewhere, heard) = (latest(REMEMBERED), latest(A_DAY));
        Self { key, flight: Flight::new(control), records, elsewhere, heard, under_way }
    }

    /// What came of the refresh `token` of `opened`, if that was redeemed here.
    fn follower(&self, opened: &Opened, token: &Secret<String>) -> Option<Arc<Opened>> {
        match self.records.get(&self.digest(token))?.outcome {
            Outcome::Renewed(renewed) => Some(renewed).filter(|next| follows(next, opened)),
            Outcome::Over | Outcome::Doubtful | Outcome::Unavailable => None,
        }
    }

    /// A gateway has renewed the visit called `name`: its access token is good until `ends`.
    pub(super) fn hear(&self, name: &str, ends: Timestamp) {
        self.heard.entry(name.into()).and_upsert_with(|known| match known {
            Some(known) => ends.max(*known.value()),
            None => ends,
        });
    }

    /// Whether the refresh token of `opened` has been redeemed, as gateways have told.
    fn is_outdated(&self, opened: &Opened) -> bool {
        self.heard.get(&opened.name).is_some_and(|ends| opened.visit.ends < ends)
    }

    /// What came of refresh tokens, and for how long that is to be known yet.
    fn recent(&self, now: Timestamp) -> Vec<(Arc<Opened>, Duration)> {
        let left = |Record { outcome, at, until }: Record| {
            let Outcome::Renewed(renewed) = outcome else { return None };
            let end = match renewed.told() {
                Some(told) => told.plus(GRACE),
                None => at.plus(REMEMBERED),
            };
            let left = end.min(until).since(now);
            (!left.is_zero()).then_some((renewed, left))
        };
        self.records.iter().filter_map(|(_, record)| left(record)).collect()
    }

    /// Notes what Redis says about a turn. Whether another gateway has or had it, and what came of it is not known.
    fn note_turn(&self, digest: &Digest, answer: Answer) -> bool {
        match answer {
            Answer::Busy => self.elsewhere.insert(*digest, ()),
            Answer::Done | Answer::Over | Answer::Mine => self.elsewhere.invalidate(digest),
            Answer::Lapsed | Answer::Silence => {}
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

/// Keeps the latest records for so long. They are those that stragglers will ask for: none is refused.
fn latest<K, V>(life: Duration) -> Cache<K, V>
where
    K: core::hash::Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    let records = Cache::builder().max_capacity(MAX_RECORDS).time_to_live(life);
    records.eviction_policy(EvictionPolicy::lru()).build()
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
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_RECORDS: u64 = 100_000;
/// How many refreshes a straggler may be behind.
pub(super) const HOPS: usize = 8;
