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
    let mut fleet = Fleet::new(1, told(quota(50, Window::Flexi)));
    let mut state = fleet.begin(0).await.expect("nothing is used");

    fleet.tell(&mut state, "20");

    assert_eq!(state.left[0].remaining, 30);
}

#[tokio::test(start_paused = true)]
async fn a_cost_below_the_default_is_given_back_in_the_window_that_was_charged() {
    let mut fleet = Fleet::new(1, told(quota(50, Window::Flexi)));
    let mut late = fleet.begin(0).await.expect("nothing is used");
    fleet.pass_store_time(86_400_000);
    fleet.begin(0).await.expect("a new window");

    fleet.tell(&mut late, "0");

    let last = fleet.begin(0).await.expect("48 are left");
    assert_eq!(last.left[0].remaining, 48);
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_is_told_after_its_window_is_charged_to_the_next() {
    for (window, exact, upkeep) in [
        (Window::Flexi, false, 0),
        (Window::Flexi, true, 1_000),
        (Window::Calendar(Zone::utc()), true, 0),
        (Window::Calendar(Zone::utc()), false, 1_000),
        (Window::Rolling, false, 1_000),
    ] {
        let mut settings = told(quota(50, window.clone()));
        settings.store = Store::Redis { exact, on_error: OnStoreError::Local };
        let mut fleet = Fleet::new(2, settings);
        let mut late = fleet.begin(0).await.expect("nothing is used");
        fleet.pass_store_time(86_400_000);
        fleet.pass(upkeep).await;

        fleet.tell(&mut late, "21");
        fleet.pass(1_000).await;

        // One was charged before.
        assert_eq!(fleet.admitted(1, 1, 60).await, 30, "{window:?}, {exact}, {upkeep}");
        fleet.pass_store_time(2 * 86_400_000);
        fleet.pass(1_000).await;
        let report = fleet.gateways[0].limiter.report(Now::of(&fleet.clock));
        assert_eq!(report["keys"].as_u64(), Some(0), "{window:?}: its lease is over as well");
    }
}

#[tokio::test(start_paused = true)]
async fn metered_usage_names_the_window_that_the_store_has_begun() {
    let mut fleet = Fleet::new(1, Settings { metered: true, ..quota(50, Window::Flexi) });
    assert!(fleet.request(0).await);
    fleet.pass(1_234).await;
    assert!(fleet.request(0).await);

    let usage = fleet.gateways[0].registry.collect_usage(Now::of(&fleet.clock));

    let end = fleet.model.window_end().expect("a window");
    let end = (to_epoch_nanos(end) + 500_000_000) / 1_000_000_000;
    assert_eq!(usage.len(), 1, "{usage:?}");
    assert_eq!((usage[0].window_end, usage[0].units), (Some(end), 2));
}

impl Fleet {
    /// Has a response tell what its request cost.
    pub(super) fn tell(&self, state: &mut LimitState, cost: &str) {
        let cost = HeaderValue::from_str(cost).expect("a number");
        let head = [(HeaderName::from_static("x-cost"), cost)].into_iter().collect();
        state.settle_by_head(&head, Now::of(&self.clock));
    }
}

/// Returns the limit with costs that responses tell.
pub(super) fn told(mut settings: Settings) -> Settings {
    settings.response_cost = Some(ResponseCost::Header(HeaderName::from_static("x-cost")));
    settings
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
