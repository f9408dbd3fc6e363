//! Decides which instance redeems a refresh token, and when; without I/O.
//!
//! An issuer that rotates refresh tokens takes a reused one for stolen and ends
//! the whole session. So instances that share a Redis use a lock there: its
//! owner redeems the token, and publishes the result beside the lock.
//! [`next_step`] decides what follows from a response of Redis, or from none.
//! The model beside it tries every interleaving of two instances with the same
//! functions; `docs/decisions/0028` describes it.

use core::time::Duration;

use crate::redis::Condition;

/// The urgency of a refresh for one request.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum RefreshNeed {
    /// The access token is still valid.
    Serves,
    /// The access token was refused before its expiry: revoked, or its key is gone.
    Refused,
    /// The access token has expired.
    Ended,
}

/// The response of Redis to an attempt to acquire the lock.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum LockResponse {
    /// Another instance has redeemed the token; the result is at hand.
    Refreshed,
    /// The session has ended.
    Ended,
    /// This instance has acquired the lock.
    Acquired,
    /// This instance has acquired the lock, after another had it and never published a result.
    AcquiredAfterExpiry,
    /// Another instance holds the lock.
    Held,
    /// No response, the lock could not be written, or Redis has lost its data a moment ago.
    NoResponse,
}

/// The next step of a refresh.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum RefreshStep {
    /// Take the new tokens of the other instance.
    Share,
    /// End the session.
    End,
    /// Redeem, and extend the lock meanwhile.
    Redeem,
    /// Redeem without the lock: no instance can hold it, and no other may do this.
    RedeemAlone,
    /// Try to acquire the lock again in a moment.
    LookAgain,
    /// Continue with the access token, or respond with 503.
    GiveUp,
}

/// The facts on which an instance decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefreshKnowledge {
    pub(crate) need: RefreshNeed,
    pub(crate) response: LockResponse,
    pub(crate) store: Condition,
    /// Whether another instance was seen to hold the lock, and its result is unknown.
    pub(crate) elsewhere: bool,
    /// Whether this is the one instance that may redeem without Redis: see [`is_chosen`].
    pub(crate) chosen: bool,
    /// Whether there is time left to try again.
    pub(crate) patient: bool,
    /// The time after which a lock expires that is not extended.
    pub(crate) lease: Duration,
}

/// Whether Redis may be asked for the lock.
///
/// After an outage each instance first publishes what it has redeemed meanwhile, or is redeeming.
/// Only then is a free lock certain to be unused.
pub(crate) fn may_ask(store: Condition) -> bool {
    matches!(store, Condition::Usable(lasted) if lasted >= PUBLISH_GRACE)
}

/// Returns the next step.
pub(crate) fn next_step(facts: &RefreshKnowledge) -> RefreshStep {
    match facts.response {
        LockResponse::Refreshed => RefreshStep::Share,
        LockResponse::Ended => RefreshStep::End,
        // The other instance may have redeemed it before it was killed: no reason to lose a session with a valid token.
        LockResponse::AcquiredAfterExpiry if facts.need == RefreshNeed::Serves => {
            RefreshStep::GiveUp
        }
        LockResponse::Acquired | LockResponse::AcquiredAfterExpiry => RefreshStep::Redeem,
        LockResponse::Held if facts.patient => RefreshStep::LookAgain,
        LockResponse::Held => RefreshStep::GiveUp,
        LockResponse::NoResponse => without_response(facts),
    }
}

fn without_response(facts: &RefreshKnowledge) -> RefreshStep {
    // A valid access token wins over every doubt.
    if facts.need == RefreshNeed::Serves {
        return RefreshStep::GiveUp;
    }
    let no_lease_is_left = matches!(
        facts.store,
        Condition::Unusable(lasted) if lasted >= alone_after(facts.lease)
    );
    match facts.need {
        RefreshNeed::Ended if no_lease_is_left && facts.chosen && !facts.elsewhere => {
            RefreshStep::RedeemAlone
        }
        // The answer will not come in time.
        _ if no_lease_is_left || !facts.patient => RefreshStep::GiveUp,
        _ => RefreshStep::LookAgain,
    }
}

/// Returns how long Redis must have been unusable before a token is redeemed without it: no lock that it
/// has granted lasts longer, and every instance has noticed.
pub(crate) fn alone_after(lease: Duration) -> Duration {
    lease.max(OUTAGE_NOTICE)
}

/// Whether `me` is the one instance that may redeem without Redis.
///
/// This is `home`, the one that received the session's tokens, if it was among the last known `members`;
/// else the member whose `weight` for this refresh token is the highest. An instance that knows no
/// members may redeem only the tokens that it received itself.
pub(crate) fn is_chosen(
    me: u64,
    home: u64,
    members: &[u64],
    weight: impl Fn(u64) -> [u8; 32],
) -> bool {
    if home == me {
        return true;
    }
    if members.is_empty() || members.contains(&home) {
        return false;
    }
    members.iter().copied().max_by_key(|member| weight(*member)) == Some(me)
}

/// The time for each instance, after an outage of Redis, to publish what it has redeemed: more than it takes to notice.
pub(crate) const PUBLISH_GRACE: Duration = Duration::from_millis(500);
/// The time by which every instance has noticed an outage of Redis: checked every second, for half a second.
const OUTAGE_NOTICE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
