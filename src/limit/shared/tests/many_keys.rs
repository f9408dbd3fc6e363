//! Shared limits of more keys than have leases here: keys that make room, the counter that the others share, and resets.

use std::collections::VecDeque;

use super::*;
use crate::limit::{KeyPart, Question, Reset, ResetTarget};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever was asked, answered late, refused, given up and ended: afterwards every place is free, that of any key and
    /// those which all keys beyond the bound share.
    #[test]
    fn places_of_any_keys_are_free_again_once_all_requests_have_ended(
        (limit, max_keys) in (1_u32..4, 0_usize..4),
        steps in prop::collection::vec((1_u8..6, 0_u8..4), 1..60),
    ) {
        paused(async {
            let mut settings = Settings::new("slots", Kind::Concurrency(number(limit)));
            settings.max_keys = max_keys;
            let mut fleet = Fleet::new(1, settings);
            fleet.pass(200).await;
            let (mut asking, mut held): (VecDeque<(u8, Question)>, Vec<LimitState>) = Default::default();
            for (host, step) in steps {
                fleet.host = host;
                match step {
                    0 => asking.extend(fleet.try_question(0).map(|question| (host, question))),
                    1 => {
                        if let Some((host, mut question)) = asking.pop_front() {
                            question.send().await;
                            fleet.host = host;
                            held.extend(fleet.settle(0, question));
                        }
                    }
                    2 => drop(held.pop()),
                    _ => fleet.pass(700).await,
                }
            }
            asking.clear();
            held.clear();
            fleet.pass(3_000).await;
            for host in [10, 20] {
                fleet.host = host;
                for _ in 0..limit {
                    held.extend(fleet.begin(0).await);
                }
                // Without a table all keys share the places.
                if max_keys == 0 {
                    break;
                }
            }
            let expected = if max_keys == 0 { 1 } else { 2 } * limit;
            prop_assert_eq!(held.len(), expected as usize);
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_asked_at_the_overflow_is_charged_there() {
    let mut settings = Settings::new("slots", Kind::Concurrency(number(2)));
    settings.max_keys = 1;
    let mut fleet = Fleet::new(1, settings);
    fleet.pass(200).await;
    let first = fleet.begin(0).await.expect("a lease of its own");
    fleet.host = 2;
    let mut question = fleet.question(0);
    drop(first);
    fleet.pass(2_000).await;

    question.send().await;
    drop(fleet.settle(0, question).expect("two places"));
    fleet.pass(2_000).await;

    fleet.host = 3;
    let own = fleet.begin(0).await;
    fleet.host = 4;
    let strangers = [fleet.begin(0).await, fleet.begin(0).await];
    assert!(own.is_some() && strangers.iter().all(Option::is_some), "{strangers:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_shuts_no_newcomer_out_and_the_store_keeps_the_counts() {
    for window in [Window::Flexi, Window::Rolling] {
        let mut fleet = Fleet::new(2, Settings { max_keys: 5, ..quota(10, window) });
        fleet.pass(200).await;

        for host in 0..100 {
            assert_eq!(fleet.admitted(0, host, 1).await, 1, "{host}");
        }

        fleet.pass(1_000).await;
        assert_eq!(fleet.admitted(0, 7, 12).await, 9);
        assert_eq!(fleet.admitted(1, 8, 12).await, 9);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_a_limit_begins_the_overflow_anew() {
    let mut fleet = Fleet::new(1, Settings { max_keys: 0, ..quota(10, Window::Flexi) });
    assert_eq!(fleet.admitted(0, 1, 12).await, 10);

    let reset = fleet.reset(0, &ResetTarget::default()).await;

    assert_eq!(reset, Reset::Partial(0));
    assert_eq!(fleet.admitted(0, 2, 12).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_claim_is_a_list_or_an_object_can_be_reset() {
    for value in [serde_json::json!(["a", "b"]), serde_json::json!({ "id": 7 })] {
        let by = Box::new([KeyPart::Claim("org".into())]);
        let mut fleet = Fleet::new(1, Settings { by, ..quota(10, Window::Flexi) });
        fleet.plan = value.clone();
        assert_eq!(fleet.admitted(0, 1, 12).await, 10);

        let parts = [("claim:org".to_owned(), value)].into_iter().collect();
        let target = ResetTarget { parts, issuers: vec![Box::default()], routes: Vec::new() };
        let reset = fleet.reset(0, &target).await;

        assert_eq!(reset, Reset::Done(1));
        assert_eq!(fleet.admitted(0, 1, 12).await, 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_of_a_key_without_a_lease_leaves_the_overflow_alone() {
    let mut fleet = Fleet::new(2, quota(10, Window::Flexi));
    fleet.reload_at(0, &Settings { max_keys: 0, ..fleet.settings.clone() });
    assert_eq!(fleet.admitted(1, 7, 3).await, 3);
    assert_eq!(fleet.admitted(0, 20, 4).await, 4, "in the overflow");

    let parts = [("ip".to_owned(), "192.0.2.7".into())].into_iter().collect();
    let target = ResetTarget { parts, issuers: vec![Box::default()], routes: Vec::new() };
    let reset = fleet.reset(0, &target).await;
    fleet.pass(1_000).await;

    assert_eq!(reset, Reset::Done(1));
    assert_eq!(fleet.admitted(1, 7, 12).await, 10, "a quota of its own");
    assert_eq!(fleet.admitted(0, 21, 12).await, 6, "the rest of the overflow");
}

#[tokio::test(start_paused = true)]
async fn an_overflow_of_another_window_is_counted_afresh() {
    let mut fleet = Fleet::new(1, Settings { max_keys: 0, ..quota(10, Window::Flexi) });
    assert_eq!(fleet.admitted(0, 1, 12).await, 10);

    fleet.reload(Settings { max_keys: 0, ..quota(10, Window::Rolling) });

    assert_eq!(fleet.admitted(0, 1, 12).await, 10);
}

#[tokio::test(start_paused = true)]
async fn consumers_of_a_new_window_are_listed_although_as_many_as_fit_were_before() {
    let mut fleet = Fleet::new(1, quota(1_000, Window::Flexi));
    for host in 0..128 {
        assert_eq!(fleet.admitted(0, host, 1).await, 1);
    }
    fleet.pass_store_time(86_400_000);
    fleet.pass(1_000).await;
    fleet.gateways[0].registry.sweep(Now::of(&fleet.clock));

    for host in 200..203 {
        assert_eq!(fleet.admitted(0, host, 1).await, 1);
    }

    assert_eq!(fleet.gateways[0].limiter.usage(Now::of(&fleet.clock)).len(), 3);
}

impl Fleet {
    async fn reset(&self, gateway: usize, target: &ResetTarget) -> Reset {
        // A counter that begins anew is told from the earlier one by its time.
        self.pass_store_time(1);
        let Gateway { limiter, registry, .. } = &self.gateways[gateway];
        limiter.reset(registry, target, Now::of(&self.clock)).await
    }
}
