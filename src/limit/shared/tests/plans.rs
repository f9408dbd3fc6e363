//! Plans of a shared limit: one counter under several amounts.

use http::{HeaderName, HeaderValue};

use super::*;
use crate::limit::{Plan, Plans, ResponseCost};

#[tokio::test(start_paused = true)]
async fn a_refusal_of_one_plan_refuses_no_other_and_no_lease_of_one_serves_another() {
    let mut fleet = Fleet::new(1, by_plan());
    fleet.plan = "gold".into();
    while fleet.unused(0) < 10 {
        assert!(fleet.request(0).await);
    }

    for _ in 0..20 {
        fleet.plan = "free".into();
        assert!(!fleet.request(0).await, "more than the plan's ten are used");
        fleet.plan = "gold".into();
        assert!(fleet.request(0).await);
    }
    fleet.model.fails.store(true, Relaxed);
    fleet.pass(200).await;
    assert!(fleet.request(0).await, "the lease is of this plan");
    fleet.plan = "free".into();
    assert!(!fleet.request(0).await, "without the store");
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_told_what_its_own_plan_has_left() {
    let mut fleet = Fleet::new(1, by_plan());
    fleet.plan = "gold".into();
    for _ in 0..4 {
        assert!(fleet.request(0).await);
    }

    fleet.plan = "free".into();

    let state = fleet.begin(0).await.expect("five of ten are used");
    assert_eq!(state.left[0].remaining, 5);
}

#[tokio::test(start_paused = true)]
async fn a_cost_beyond_the_lease_is_in_the_balance_at_once() {
    let mut settings = quota(50, Window::Flexi);
    settings.response_cost = Some(ResponseCost::Header(HeaderName::from_static("x-cost")));
    let mut fleet = Fleet::new(1, settings);
    let mut state = fleet.begin(0).await.expect("nothing is used");

    let told = [(HeaderName::from_static("x-cost"), HeaderValue::from_static("20"))];
    state.settle_by_head(&told.into_iter().collect(), Now::of(&fleet.clock));

    assert_eq!(state.left[0].remaining, 30);
}

#[tokio::test(start_paused = true)]
async fn a_cost_below_the_default_is_given_back_in_the_window_that_was_charged() {
    let mut settings = quota(50, Window::Flexi);
    settings.response_cost = Some(ResponseCost::Header(HeaderName::from_static("x-cost")));
    let mut fleet = Fleet::new(1, settings);
    let mut late = fleet.begin(0).await.expect("nothing is used");
    fleet.pass_store_time(86_400_000);
    fleet.begin(0).await.expect("a new window");

    let told = [(HeaderName::from_static("x-cost"), HeaderValue::from_static("0"))];
    late.settle_by_head(&told.into_iter().collect(), Now::of(&fleet.clock));

    let last = fleet.begin(0).await.expect("48 are left");
    assert_eq!(last.left[0].remaining, 48);
}

/// Returns a quota of 10 a day for `free`, and of 100 000 for `gold`.
fn by_plan() -> Settings {
    let mut settings = quota(10, Window::Flexi);
    let plan =
        |name: &str, count| Plan { name: name.into(), kind: quota(count, Window::Flexi).kind };
    settings.plans = Some(Plans {
        claim: Some("plan".into()),
        values: Box::new([plan("free", 10), plan("gold", 100_000)]),
        clients: Box::default(),
        has_default: true,
    });
    settings
}
