//! Recent refresh results, and the calls under way.

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::hmac;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::runtime::Handle;

use super::decision::LockResponse;
use crate::base::clock::Timestamp;
use crate::base::in_flight::InFlightCalls;
use crate::base::random::random;
use crate::base::secret::Secret;
use crate::base::single_flight::SingleFlight;
use crate::session::logout::ended_sessions::EndedSessions;
use crate::session::store::loaded_session::LoadedSession;
use crate::session::store::redis::RESULT_RETENTION;
use crate::session::store::state::GRACE;

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
    /// Redis is unavailable, which has the lock on the refresh token; the session stays.
    StoreUnavailable,
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
    pub(super) flight: SingleFlight<Digest, RefreshOutcome>,
    pub(super) records: Cache<Digest, RefreshRecord>,
    /// Refresh tokens that another instance was seen to redeem, while the result is unknown.
    elsewhere: Cache<Digest, ()>,
    /// The latest expiry of a session's access token that other instances have published.
    published_expiries: Cache<Arc<str>, Timestamp>,
    /// Calls under way, and writes that outlast their requests.
    pub(super) under_way: InFlightCalls,
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
    pub(super) fn successor(
        &self,
        loaded: &LoadedSession,
        token: &Secret<String>,
    ) -> Option<Arc<LoadedSession>> {
        match self.records.get(&self.digest(token))?.outcome {
            RefreshOutcome::Renewed(renewed) => Some(renewed).filter(|next| follows(next, loaded)),
            RefreshOutcome::Over
            | RefreshOutcome::Doubtful
            | RefreshOutcome::Unavailable
            | RefreshOutcome::StoreUnavailable => None,
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
    pub(super) fn is_outdated(&self, loaded: &LoadedSession) -> bool {
        self.published_expiries.get(&loaded.name).is_some_and(|ends| loaded.state.ends < ends)
    }

    /// Returns the new sessions of recent refreshes, and how long each is to be retained.
    pub(super) fn recent(&self, now: Timestamp) -> Vec<(Arc<LoadedSession>, Duration)> {
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
    pub(super) fn note_lock(&self, digest: &Digest, response: LockResponse) -> bool {
        match response {
            LockResponse::Held => self.elsewhere.insert(*digest, ()),
            LockResponse::Refreshed | LockResponse::Ended | LockResponse::Acquired => {
                self.elsewhere.invalidate(digest);
            }
            LockResponse::AcquiredAfterExpiry | LockResponse::NoResponse => {}
        }
        self.elsewhere.contains_key(digest)
    }

    pub(super) fn digest(&self, refresh_token: &Secret<String>) -> Digest {
        let mut digest = [0; 32];
        let tag = hmac::sign(&self.key, refresh_token.expose().as_bytes());
        digest.copy_from_slice(tag.as_ref());
        digest
    }

    /// Records a slow refresh, and the `outcome` for requests that did not wait for it, so that those with a valid access
    /// token do not wait either.
    pub(super) fn note_delay(&self, digest: Digest, outcome: RefreshOutcome, now: Timestamp) {
        self.records.entry(digest).and_compute_with(|entry| {
            let known = entry.is_some_and(|entry| {
                let RefreshRecord { outcome, until, .. } = entry.value();
                // The refresh has finished meanwhile.
                matches!(outcome, RefreshOutcome::Renewed(_) | RefreshOutcome::Over) && now < *until
            });
            if known {
                return Op::Nop;
            }
            Op::Put(RefreshRecord { outcome, at: now, until: Timestamp::MAX })
        });
    }

    pub(super) fn recent_result(
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
            (
                RefreshOutcome::Doubtful
                | RefreshOutcome::Unavailable
                | RefreshOutcome::StoreUnavailable,
                urgency,
            ) => urgency == RefreshUrgency::Low && now.since(at) < ISSUER_RETRY_DELAY,
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
        f.debug_struct("RefreshResults").finish_non_exhaustive()
    }
}

pub(super) type Digest = [u8; 32];

#[derive(Clone)]
pub(super) struct RefreshRecord {
    pub(super) outcome: RefreshOutcome,
    pub(super) at: Timestamp,
    /// The time from which the token is redeemed again, because its issuer did not rotate it.
    pub(super) until: Timestamp,
}

impl RefreshRecord {
    pub(super) fn is_renewed(&self) -> bool {
        matches!(self.outcome, RefreshOutcome::Renewed(_))
    }
}

/// Whether `next` is a result of `before`: for a refresh token that was not rotated it may be an earlier result, or that
/// of another session with the same refresh token.
pub(super) fn follows(next: &LoadedSession, before: &LoadedSession) -> bool {
    let (next, before) = (&next.state, &before.state);
    next.id == before.id && (next.is_rotated(before) || next.received > before.received)
}

/// The time for which an unavailable issuer is not called while the access token is valid.
const ISSUER_RETRY_DELAY: Duration = Duration::from_secs(5);
const MAX_RESULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_RECORDS: u64 = 100_000;
