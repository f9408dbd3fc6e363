//! Refusals of shared limits: how long they are remembered, and how they are told.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_refusal_is_remembered_only_until_another_gateway_may_have_returned_its_lease() {
    for window in [Window::Rolling, Window::Flexi] {
        // One request of a rolling day is renewed in 4.32 seconds.
        let mut fleet = Fleet::new(2, quota(20_000, window.clone()));
        while fleet.unused(0) < 10 {
            assert!(fleet.request(0).await);
        }
        while fleet.request(1).await {}

        fleet.pass(2_000).await;

        assert!(fleet.request(1).await, "{window:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_is_told_the_whole_wait_also_from_memory() {
    let mut fleet = Fleet::new(1, quota(24, Window::Rolling));
    while fleet.request(0).await {}

    assert_eq!(fleet.retry_after(0).await, Some(3_600));
    let calls = fleet.model.calls.load(Relaxed);
    assert_eq!(fleet.retry_after(0).await, Some(3_600));
    assert_eq!(fleet.model.calls.load(Relaxed), calls, "the store was asked again");
}

#[tokio::test(start_paused = true)]
async fn small_content_passes_although_large_content_was_refused_just_before() {
    let mut settings = quota(100, Window::Flexi);
    settings.cost = Cost::RequestSize(core::num::NonZeroU64::MIN);
    let mut fleet = Fleet::new(2, settings);
    assert!(fleet.begin_sized(0, Some(60)).await.is_ok());

    assert!(fleet.begin_sized(0, Some(50)).await.is_err());
    let small = fleet.begin_sized(0, Some(10)).await;

    assert!(small.is_ok(), "{small:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_responds_but_refuses_every_message_is_bridged_by_the_whole_share() {
    let mut fleet = Fleet::new(1, quota(1_000, Window::Flexi));
    fleet.model.refuses_messages.store(true, Relaxed);
    let mut admitted = 0;

    for _ in 0..15 {
        for _ in 0..100 {
            admitted += usize::from(fleet.request(0).await);
        }
        fleet.pass(200).await;
    }

    assert_eq!(admitted, 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_an_outage_refuses_is_told_to_return_soon() {
    let mut fleet = Fleet::new(2, quota(1_000, Window::Flexi));
    for turn in 0..20 {
        assert!(fleet.request(turn % 2).await);
    }
    fleet.model.fails.store(true, Relaxed);
    while fleet.request(0).await {}

    // 980 are left as far as the gateway knows; of its share only a part is given out in the first moments.
    assert_eq!(fleet.retry_after(0).await, Some(1));
    let text = fleet.gateways[0].metrics.render();
    let refused =
        r#"northgate_limit_decisions_total{limit="daily",route="orders",result="limited"} 0"#;
    assert!(text.contains(refused), "the store has refused none: {text}");
}

#[tokio::test(start_paused = true)]
async fn a_client_whose_quota_is_used_up_in_an_outage_is_told_the_whole_wait() {
    let mut fleet = Fleet::new(1, quota(20, Window::Flexi));
    assert!(fleet.request(0).await);
    fleet.model.fails.store(true, Relaxed);
    fleet.pass(3_000).await;
    while fleet.request(0).await {}

    let wait = fleet.retry_after(0).await;

    assert!(wait > Some(86_000), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_beside_a_limit_that_asks_its_store_counts_once() {
    let dry = |name: &str| {
        let mut settings = quota(1, Window::Flexi);
        (settings.name, settings.dry_run) = (name.into(), true);
        settings
    };
    let names = ["one", "two", "three", "four", "five", "six"];
    let mut shared = quota(100, Window::Flexi);
    shared.store = Store::Redis { exact: true, on_error: OnStoreError::Local };
    let mut fleet = Fleet::with_others(1, shared, names.map(dry).to_vec());

    for _ in 0..4 {
        assert!(fleet.request(0).await);
    }

    let text = fleet.gateways[0].metrics.render();
    for name in names {
        for (result, count) in [("allowed", 1), ("dry_run", 3)] {
            let series = format!(
                r#"northgate_limit_decisions_total{{limit="{name}",route="orders",result="{result}"}} {count}"#
            );
            assert!(text.contains(&series), "{series}: {text}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_exact_limit_is_not_exceeded_beside_a_dry_run_that_is_used_up() {
    let exact = Store::Redis { exact: true, on_error: OnStoreError::Local };
    let mut dry = quota(1, Window::Flexi);
    (dry.name, dry.dry_run, dry.store) = ("dry".into(), true, exact);
    let enforced = Settings { store: exact, ..quota(2, Window::Flexi) };
    let mut fleet = Fleet::with_others(2, enforced, vec![dry]);
    fleet.pass(200).await;
    assert!(fleet.request(0).await);

    let mut questions = [fleet.question(0), fleet.question(1)];
    for question in &mut questions {
        question.send().await;
    }
    let settled =
        questions.into_iter().enumerate().map(|(at, question)| fleet.settle(at, question));

    assert_eq!(settled.flatten().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_store_answers_too_late_counts_once() {
    let slots = Settings::new("slots", Kind::Concurrency(number(1)));
    for settings in [quota(1, Window::Flexi), slots] {
        let mut fleet = Fleet::new(1, settings);
        fleet.pass(200).await;
        fleet.model.fails.store(true, Relaxed);

        let first = fleet.begin(0).await;

        assert!(first.is_some(), "the whole share is left");
        assert!(fleet.begin(0).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn operators_see_the_keys_of_a_shared_limit() {
    let mut fleet = Fleet::new(2, quota(20, Window::Flexi));
    for turn in 0..18 {
        assert!(fleet.request(turn % 2).await);
    }
    let report = |fleet: &Fleet| {
        let report = fleet.gateways[1].limiter.report(Now::of(&fleet.clock));
        ["keys", "near_exhaustion", "used_up"].map(|name| report[name].as_u64())
    };

    assert_eq!(report(&fleet), [Some(1), Some(1), Some(0)]);
    assert!(fleet.request(0).await && fleet.request(1).await);
    assert_eq!(report(&fleet), [Some(1), Some(1), Some(1)]);
}
