//! Requests that cost more than one unit, or turn out to cost less than they were charged.

use core::num::NonZeroU64;

use http::{HeaderName, HeaderValue};

use super::*;
use crate::limit::{Question, ResponseCost};

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// While clients keep coming, and none is idle.
    #[test]
    fn gateways_in_turn_admit_all_that_is_left_at_any_cost(
        requests in prop_oneof![1_u64..60, 1_000_u64..4_000],
        cost in 1_u32..900,
        part in 0.0..1.0,
        count in 1_usize..5,
        is_rolling in any::<bool>(),
        exact in any::<bool>(),
    ) {
        paused(async {
            let rest = (f64::from(cost) * part) as u64;
            let window = if is_rolling { Window::Rolling } else { Window::Flexi };
            let mut settings = quota(requests * u64::from(cost) + rest, window);
            settings.cost = Cost::Fixed(number(cost));
            settings.store = Store::Redis { exact, on_error: OnStoreError::Deny };
            let mut fleet = Fleet::new(count, settings);
            let mut admitted = 0;

            for turn in 0..2 * (requests as usize + 20) {
                admitted += u64::from(fleet.request(turn % count).await);
            }

            prop_assert_eq!(admitted, requests);
            Ok(())
        })?;
    }

    /// Nothing is admitted beyond the quota if the store decides everything, whatever asks at a time and is answered
    /// too late or never.
    #[test]
    fn grants_that_a_refused_request_gives_back_are_not_used_twice(
        steps in prop::collection::vec(question_step(), 1..200),
    ) {
        paused(async {
            let mut settings = quota(LIMIT, Window::Flexi);
            settings.cost = Cost::RequestSize(NonZeroU64::MIN);
            settings.store = Store::Redis { exact: false, on_error: OnStoreError::Deny };
            let mut fleet = Fleet::new(3, settings);
            let mut admitted = 0;
            let mut questions = Vec::new();
            for step in steps {
                match step {
                    QuestionStep::Small(gateway, times) => {
                        for _ in 0..times {
                            admitted += u64::from(fleet.begin_sized(gateway, Some(1)).await.is_ok());
                        }
                    }
                    QuestionStep::Begin(gateway, size) => match fleet.decide_sized(gateway, size) {
                        Decision::Made(decided) => admitted += size * u64::from(decided.is_ok()),
                        Decision::Ask(question) => questions.push((gateway, size, question)),
                    },
                    QuestionStep::Answer(place, is_lost) if place < questions.len() => {
                        let (gateway, size, mut question) = questions.swap_remove(place);
                        fleet.model.loses_responses.store(is_lost, Relaxed);
                        question.send().await;
                        fleet.model.loses_responses.store(false, Relaxed);
                        admitted += size * u64::from(fleet.settle_sized(gateway, size, question));
                    }
                    QuestionStep::TooLate(place) if place < questions.len() => {
                        let (_, _, question) = questions.swap_remove(place);
                        give_up(question).await;
                    }
                    QuestionStep::Answer(..) | QuestionStep::TooLate(_) => {
                        fleet.pass(100).await;
                    }
                }
                prop_assert!(admitted <= LIMIT, "{admitted}");
            }
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_leaves_no_part_of_a_lease_behind() {
    for window in [Window::Flexi, Window::Rolling] {
        let mut settings = quota(30_000, window.clone());
        settings.cost = Cost::RequestSize(NonZeroU64::MIN);
        let mut fleet = Fleet::new(2, settings);
        let mut left = 30_000;
        for gateway in 0..2 {
            while fleet.unused(gateway) < 10 {
                assert!(fleet.begin_sized(gateway, Some(1)).await.is_ok());
                left -= 1;
            }
        }

        assert!(fleet.begin_sized(0, Some(left)).await.is_err(), "the other has a lease");
        let second = fleet.begin_sized(1, Some(left)).await;

        assert!(second.is_ok(), "{window:?}: {second:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_store_gets_back_what_a_response_did_not_cost() {
    let per_minute = SpikeArrest::new(Rate::new(20, Unit::Minute).expect("a rate"), Some(20));
    for kind in [
        quota(20, Window::Flexi).kind,
        quota(20, Window::Rolling).kind,
        Kind::Rate(per_minute.expect("a rate")),
    ] {
        for exact in [true, false] {
            let mut settings = Settings::new("tokens", kind.clone());
            settings.cost = Cost::Fixed(number(10));
            settings.response_cost = Some(ResponseCost::Header(HeaderName::from_static("x-cost")));
            settings.store = Store::Redis { exact, on_error: OnStoreError::Deny };
            let mut fleet = Fleet::new(3, settings);
            let head = [(HeaderName::from_static("x-cost"), HeaderValue::from_static("0"))];
            let head: HeaderMap = head.into_iter().collect();

            for turn in 0..30 {
                let state = fleet.begin(turn % 3).await;
                let mut state = state.unwrap_or_else(|| panic!("{kind:?}, {exact}: {turn}"));
                fleet.pass_store_time(100);
                state.settle_by_head(&head, Now::of(&fleet.clock));
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_of_the_store_refuses_no_request_that_costs_much() {
    for (limit, cost) in [(1_000, 100), (10_000, 100), (10_000, 1_000)] {
        let mut settings = quota(limit, Window::Flexi);
        settings.cost = Cost::Fixed(number(cost));
        let mut fleet = Fleet::new(2, settings);
        for gateway in 0..2 {
            assert!(fleet.request(gateway).await);
        }

        fleet.model.fails.store(true, Relaxed);

        for gateway in 0..2 {
            for _ in 0..2 {
                assert!(fleet.request(gateway).await, "{cost} of {limit}");
            }
        }
    }
}

/// Asks the store, and does not wait for the answer, which is applied all the same.
async fn give_up(mut question: Question) {
    tokio::select! {
        biased;
        () = question.send() => {}
        () = core::future::ready(()) => {}
    }
    drop(question);
    for _ in 0..4 {
        tokio::task::yield_now().await;
    }
}

#[derive(Clone, Copy, Debug)]
enum QuestionStep {
    /// Requests of one unit at a gateway.
    Small(usize, usize),
    /// A request of this size begins at a gateway.
    Begin(usize, u64),
    /// The store answers the question at this place, or its answer is lost.
    Answer(usize, bool),
    /// The request at this place has ended when its answer arrives.
    TooLate(usize),
}

fn question_step() -> impl Strategy<Value = QuestionStep> {
    prop_oneof![
        3 => (0..3_usize, 1..80_usize).prop_map(|(gateway, times)| QuestionStep::Small(gateway, times)),
        4 => (0..3_usize, 2..1_500_u64).prop_map(|(gateway, size)| QuestionStep::Begin(gateway, size)),
        3 => (0..4_usize, prop::bool::weighted(0.2))
            .prop_map(|(place, is_lost)| QuestionStep::Answer(place, is_lost)),
        1 => (0..4_usize).prop_map(QuestionStep::TooLate),
    ]
}

/// The quota of traffic with questions at a time, whose leases are of some ten units.
const LIMIT: u64 = 20_000;
