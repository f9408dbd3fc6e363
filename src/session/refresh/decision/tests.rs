//! Tests of single decisions; [`interleavings`] tries their sequences.

mod interleavings;

use super::*;

const LEASE: Duration = Duration::from_secs(3);

fn facts(need: RefreshNeed, response: LockResponse, store: Condition) -> RefreshKnowledge {
    RefreshKnowledge {
        need,
        response,
        store,
        elsewhere: false,
        chosen: true,
        patient: true,
        lease: LEASE,
    }
}

#[test]
fn no_token_is_redeemed_without_redis_while_the_access_token_is_valid() {
    for seconds in [0, 1, 3, 1_000_000] {
        let away = Condition::Unusable(Duration::from_secs(seconds));
        let facts = facts(RefreshNeed::Serves, LockResponse::NoResponse, away);
        assert_eq!(next_step(&facts), RefreshStep::GiveUp, "{seconds} s");
    }
}

#[test]
fn a_lapsed_lock_is_used_only_without_a_valid_access_token() {
    let usable = Condition::Usable(PUBLISH_GRACE);
    for (need, step) in [
        (RefreshNeed::Serves, RefreshStep::GiveUp),
        (RefreshNeed::Refused, RefreshStep::Redeem),
        (RefreshNeed::Ended, RefreshStep::Redeem),
    ] {
        assert_eq!(
            next_step(&facts(need, LockResponse::AcquiredAfterExpiry, usable)),
            step,
            "{need:?}"
        );
    }
}

#[test]
fn a_token_refused_before_its_expiry_is_never_redeemed_without_redis() {
    let away = Condition::Unusable(LEASE);
    assert_eq!(
        next_step(&facts(RefreshNeed::Refused, LockResponse::NoResponse, away)),
        RefreshStep::GiveUp
    );
}

#[test]
fn the_chosen_instance_redeems_an_expired_token_once_no_lock_can_be_left() {
    let away = |millis| Condition::Unusable(Duration::from_millis(millis));
    let ended = |store| facts(RefreshNeed::Ended, LockResponse::NoResponse, store);

    assert_eq!(next_step(&ended(away(2_999))), RefreshStep::LookAgain);
    assert_eq!(next_step(&ended(away(3_000))), RefreshStep::RedeemAlone);
    let silent = Condition::Usable(Duration::from_secs(60));
    assert_eq!(
        next_step(&ended(silent)),
        RefreshStep::LookAgain,
        "another instance may hold the lock"
    );
    let other = RefreshKnowledge { chosen: false, ..ended(away(3_000)) };
    assert_eq!(next_step(&other), RefreshStep::GiveUp);
    let seen = RefreshKnowledge { elsewhere: true, ..ended(away(3_000)) };
    assert_eq!(next_step(&seen), RefreshStep::GiveUp, "another gateway may have redeemed it");
}

#[test]
fn exactly_one_of_the_known_instances_is_chosen() {
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
            let chosen = members.iter().filter(|me| is_chosen(**me, home, members, weight(token)));
            assert_eq!(chosen.count(), 1, "{token} of {home} among {members:?}");
        }
    }
    assert!(is_chosen(1, 1, &[], weight(0)), "what it has got itself");
    assert!(!is_chosen(1, 2, &[], weight(0)), "it does not know of whom there are others");
}
