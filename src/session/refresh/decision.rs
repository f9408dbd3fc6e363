//! Which gateway may redeem a refresh token, and when: the decisions alone, without I/O.
//!
//! An issuer that rotates refresh tokens takes one that comes twice for stolen
//! and ends the whole session. So gateways that share a Redis take turns: a
//! lease there says which of them redeems, and what came of it is kept beside
//! it. [`next_step`] decides what follows from an answer, or from none. The
//! model beside it tries every interleaving of two gateways with the same
//! functions; `docs/decisions/0028` says it in words.

use core::time::Duration;

use crate::store::Condition;

/// How much a request needs new tokens.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum RefreshNeed {
    /// The access token still serves.
    Serves,
    /// The access token has been refused, though its time is not over: revoked, or its key is gone.
    Refused,
    /// The access token's time is over.
    Ended,
}

/// What Redis says about a turn.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum IssuerOutcome {
    /// Another gateway has redeemed the token, and this came of it.
    Done,
    /// The session is over.
    Over,
    /// The turn is this gateway's.
    Mine,
    /// The turn is this gateway's, after another had it and never said what came of it.
    Lapsed,
    /// The turn is another gateway's.
    Busy,
    /// No answer, or the turn could not be written down.
    Silence,
}

/// What follows.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum RefreshStep {
    /// Take the new tokens of the other gateway.
    Share,
    /// The session is over.
    End,
    /// Redeem, and keep the lease meanwhile.
    Redeem,
    /// Redeem without a lease: no gateway can have one, and no other gateway may do this.
    RedeemAlone,
    /// Ask again in a moment.
    LookAgain,
    /// Go on with what there is: the access token, or 503.
    GiveUp,
}

/// What a gateway knows when it decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RefreshKnowledge {
    pub(crate) need: RefreshNeed,
    pub(crate) answer: IssuerOutcome,
    pub(crate) store: Condition,
    /// Whether another gateway was seen to have the turn, and what came of it is not known.
    pub(crate) elsewhere: bool,
    /// Whether this is the one gateway that may redeem without Redis: see [`is_chosen`].
    pub(crate) chosen: bool,
    /// Whether there is time left to ask again.
    pub(crate) patient: bool,
    /// How long a lease lasts that is not renewed.
    pub(crate) lease: Duration,
}

/// Whether Redis may be asked for a turn.
///
/// When it is back, each gateway first says what it has redeemed meanwhile, or is redeeming. Only
/// then is it certain that a turn that is free has not been used.
pub(crate) fn may_ask(store: Condition) -> bool {
    matches!(store, Condition::Usable(lasted) if lasted >= PUBLISH_GRACE)
}

/// What follows from what is known.
pub(crate) fn next_step(known: &RefreshKnowledge) -> RefreshStep {
    match known.answer {
        IssuerOutcome::Done => RefreshStep::Share,
        IssuerOutcome::Over => RefreshStep::End,
        // The other may have redeemed it before it was killed: no reason to lose a session whose token is good.
        IssuerOutcome::Lapsed if known.need == RefreshNeed::Serves => RefreshStep::GiveUp,
        IssuerOutcome::Mine | IssuerOutcome::Lapsed => RefreshStep::Redeem,
        IssuerOutcome::Busy if known.patient => RefreshStep::LookAgain,
        IssuerOutcome::Busy => RefreshStep::GiveUp,
        IssuerOutcome::Silence => without_answer(known),
    }
}

fn without_answer(known: &RefreshKnowledge) -> RefreshStep {
    // A good token wins over every doubt.
    if known.need == RefreshNeed::Serves {
        return RefreshStep::GiveUp;
    }
    let no_lease_is_left = matches!(
        known.store,
        Condition::Unusable(lasted) if lasted >= alone_after(known.lease)
    );
    match known.need {
        RefreshNeed::Ended if no_lease_is_left && known.chosen && !known.elsewhere => {
            RefreshStep::RedeemAlone
        }
        // It will not be said in time who may.
        _ if no_lease_is_left || !known.patient => RefreshStep::GiveUp,
        _ => RefreshStep::LookAgain,
    }
}

/// How long Redis must have been of no use before a token is redeemed without it: no lease that it
/// has given lasts longer, and every gateway has noticed.
pub(crate) fn alone_after(lease: Duration) -> Duration {
    lease.max(OUTAGE_NOTICE)
}

/// Whether `me` is the one gateway that may redeem without Redis.
///
/// The one that has got the session's tokens, `home`, if it was among the `members` when they were last
/// heard of; else the one of them whose `weight` for this refresh token is the highest. A gateway
/// that has not heard of any knows of no other than itself, and may redeem only what it has got itself.
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

/// How long each gateway has, once Redis is back, to say what it has redeemed: more than it takes to notice.
pub(crate) const PUBLISH_GRACE: Duration = Duration::from_millis(500);
/// Every gateway has noticed by then that Redis is away: it is looked after every second, for half a second.
const OUTAGE_NOTICE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod model;

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(3);

    fn known(need: RefreshNeed, answer: IssuerOutcome, store: Condition) -> RefreshKnowledge {
        RefreshKnowledge {
            need,
            answer,
            store,
            elsewhere: false,
            chosen: true,
            patient: true,
            lease: LEASE,
        }
    }

    #[test]
    fn nothing_is_redeemed_without_redis_while_the_access_token_serves() {
        for seconds in [0, 1, 3, 1_000_000] {
            let away = Condition::Unusable(Duration::from_secs(seconds));
            let known = known(RefreshNeed::Serves, IssuerOutcome::Silence, away);
            assert_eq!(next_step(&known), RefreshStep::GiveUp, "{seconds} s");
        }
    }

    #[test]
    fn a_turn_that_another_gateway_never_gave_back_is_used_only_for_want_of_a_good_token() {
        let usable = Condition::Usable(PUBLISH_GRACE);
        for (need, step) in [
            (RefreshNeed::Serves, RefreshStep::GiveUp),
            (RefreshNeed::Refused, RefreshStep::Redeem),
            (RefreshNeed::Ended, RefreshStep::Redeem),
        ] {
            assert_eq!(next_step(&known(need, IssuerOutcome::Lapsed, usable)), step, "{need:?}");
        }
    }

    #[test]
    fn a_token_that_was_refused_before_its_end_is_never_redeemed_without_redis() {
        let away = Condition::Unusable(LEASE);
        assert_eq!(
            next_step(&known(RefreshNeed::Refused, IssuerOutcome::Silence, away)),
            RefreshStep::GiveUp
        );
    }

    #[test]
    fn an_ended_token_is_redeemed_alone_once_no_lease_can_be_left_by_the_one_chosen_gateway() {
        let away = |millis| Condition::Unusable(Duration::from_millis(millis));
        let ended = |store| known(RefreshNeed::Ended, IssuerOutcome::Silence, store);

        assert_eq!(next_step(&ended(away(2_999))), RefreshStep::LookAgain);
        assert_eq!(next_step(&ended(away(3_000))), RefreshStep::RedeemAlone);
        let silent = Condition::Usable(Duration::from_secs(60));
        assert_eq!(
            next_step(&ended(silent)),
            RefreshStep::LookAgain,
            "another gateway may have the turn"
        );
        let other = RefreshKnowledge { chosen: false, ..ended(away(3_000)) };
        assert_eq!(next_step(&other), RefreshStep::GiveUp);
        let seen = RefreshKnowledge { elsewhere: true, ..ended(away(3_000)) };
        assert_eq!(next_step(&seen), RefreshStep::GiveUp, "another gateway may have redeemed it");
    }

    #[test]
    fn exactly_one_of_the_known_gateways_is_chosen() {
        let weight = |token: u64| {
            move |member: u64| {
                let mut weight = [0; 32];
                weight[..8].copy_from_slice(
                    &(member ^ token).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(),
                );
                weight
            }
        };
        for members in [&[1][..], &[1, 2], &[1, 2, 3, 4, 5]] {
            for (token, home) in (0..200).flat_map(|token| (0..=6).map(move |home| (token, home))) {
                let chosen =
                    members.iter().filter(|me| is_chosen(**me, home, members, weight(token)));
                assert_eq!(chosen.count(), 1, "{token} of {home} among {members:?}");
            }
        }
        assert!(is_chosen(1, 1, &[], weight(0)), "what it has got itself");
        assert!(!is_chosen(1, 2, &[], weight(0)), "it does not know of whom there are others");
    }
}
