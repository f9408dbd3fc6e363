//! A store that loses its data, all or a part of it: whichever gateway asks first, what the others remember counts.

use super::reference_store::RESTORE_MICROS;
use super::*;

#[tokio::test(start_paused = true)]
async fn a_gateway_without_a_record_is_not_granted_a_limit_that_others_have_used_up() {
    for exact in [false, true] {
        for settings in all_kinds(100) {
            let name = format!("{:?}", settings.kind);
            let mut fleet = Fleet::new(3, Settings { store: redis(exact), ..settings });
            let used = fleet.times(0, 60).await + fleet.times(1, 60).await;
            assert!((100..=101).contains(&used), "{name}: {used}");

            fleet.lose_data_unnoticed();
            let mut more = fleet.times(2, 110).await;
            fleet.pass(1_500).await;
            for _ in 0..3 {
                for gateway in 0..3 {
                    more += fleet.times(gateway, 110).await;
                }
                fleet.pass(1_000).await;
            }

            assert!(more <= 3 * 17 + 1, "{name}, exact: {exact}: {more} more");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn use_that_gateways_report_after_the_loss_of_one_counter_counts_once() {
    for settings in all_kinds(100) {
        let name = format!("{:?}", settings.kind);
        let mut fleet = Fleet::new(3, settings);
        let mut used = fleet.times(0, 40).await + fleet.times(1, 20).await;
        fleet.pass(3_000).await;

        fleet.model.evict();
        used += fleet.times(2, 10).await;
        fleet.pass(1_000).await;
        // Each asks again, and so reports what it remembers; several times, which changes nothing.
        for _ in 0..3 {
            for gateway in 0..3 {
                used += fleet.times(gateway, 1).await;
                fleet.pass(1_000).await;
            }
        }
        assert_eq!(used, 79, "{name}");
        for gateway in [2, 0, 1] {
            used += fleet.times(gateway, 100).await;
            fleet.pass(1_000).await;
        }

        // A rate loses what a lease has not used within 50 ms.
        let least = if name.starts_with("Rate") { 89 } else { 99 };
        assert!((least..=101).contains(&used), "{name}: {used}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_alone_decides_as_soon_as_it_has_reported_what_it_remembers() {
    let mut fleet = Fleet::new(1, quota(100, Window::Flexi));
    assert_eq!(fleet.times(0, 30).await, 30);

    fleet.model.lose_data();
    fleet.pass(100).await;

    assert_eq!(fleet.times(0, 100).await, 70);
    assert_eq!(fleet.store_errors(0), 0);
}

#[tokio::test(start_paused = true)]
async fn gateways_that_begin_with_an_empty_store_decide_by_it_at_once() {
    let mut fleet = Fleet::new(3, quota(100, Window::Flexi));
    fleet.model.lose_data();
    fleet.pass(100).await;

    let mut used = 0;
    for gateway in 0..3 {
        used += fleet.times(gateway, 100).await;
    }

    assert_eq!(used, 100);
    assert_eq!((0..3).map(|gateway| fleet.store_errors(gateway)).sum::<u64>(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_waits_for_a_gateway_in_vain_decides_again_after_two_seconds() {
    let mut fleet = Fleet::new(3, quota(1_000, Window::Flexi));
    fleet.pass(100).await;

    fleet.lose_data_unnoticed();
    let first = fleet.times(2, 100).await;
    fleet.pass_store_time(RESTORE_MICROS / 1_000 + 1);

    assert!(first <= 17, "{first}");
    assert_eq!(fleet.times(2, 100).await, 100);
}

#[tokio::test(start_paused = true)]
async fn places_in_flight_at_other_gateways_are_not_handed_out_again() {
    let mut fleet = Fleet::new(3, Settings::new("slots", Kind::Concurrency(number(60))));
    let mut held = Vec::new();
    for turn in 0..60 {
        held.push(fleet.begin(turn % 2).await.expect("a place"));
    }

    fleet.lose_data_unnoticed();
    for _ in 0..60 {
        held.extend(fleet.begin(2).await);
    }
    let first = held.len() - 60;
    fleet.pass(1_500).await;
    for _ in 0..60 {
        held.extend(fleet.begin(2).await);
    }

    assert!(first <= 17, "{first} places");
    assert_eq!(held.len() - 60, first);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    /// However often the store loses its data, and whichever gateway asks first: a day's quota is admitted once, and the
    /// stated bound more for each loss.
    #[test]
    fn a_quota_is_handed_out_once_whatever_the_store_loses(
        count in 60_u64..3_000,
        kind in 0..3_usize,
        steps in prop::collection::vec(loss_step(), 1..30),
    ) {
        paused(async {
            let windows = [Window::Flexi, Window::Calendar(Zone::utc()), Window::Rolling];
            let mut fleet = Fleet::new(3, quota(count, windows[kind].clone()));
            let (mut admitted, mut losses) = (0, 0);
            for step in steps {
                losses += u64::from(matches!(step, Step::LoseData | Step::LoseDataUnnoticed));
                match step {
                    Step::Requests(gateway, times) => admitted += fleet.times(gateway, times).await,
                    step => fleet.undergo(step).await,
                }
            }
            fleet.pass(3_000).await;
            for _ in 0..2 {
                for gateway in 0..3 {
                    admitted += fleet.times(gateway, usize::try_from(count).expect("small")).await;
                }
                fleet.pass(1_000).await;
            }

            let shape = Shape::Window { limit: count, end: 0, next: 1, span: 1, debts: false };
            // A total that a gateway remembers may have unused leases in it; a rolling day renews some.
            let least = count - (losses * 3 * max_lease(&shape, 1)).min(count);
            let most = count + losses * overrun_bound(&shape, 3, 1) + count / 200 + 1;
            let admitted = admitted as u64;
            prop_assert!((least..=most).contains(&admitted), "{admitted}: {least} to {most}");
            Ok(())
        })?;
    }
}

fn loss_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize, 1..400_usize).prop_map(|(gateway, times)| Step::Requests(gateway, times)),
        3 => (1..4_000_u64).prop_map(Step::Pass),
        1 => Just(Step::LoseData),
        2 => Just(Step::LoseDataUnnoticed),
    ]
}

/// Returns a limit of `count` units of every kind, but for requests in flight.
fn all_kinds(count: u32) -> Vec<Settings> {
    let windows = [Window::Flexi, Window::Calendar(Zone::utc()), Window::Rolling];
    let mut all: Vec<_> = windows.map(|window| quota(count.into(), window)).into();
    let rate = SpikeArrest::new(Rate::new(1, Unit::Minute).expect("a rate"), Some(count));
    all.push(Settings::new("rate", Kind::Rate(rate.expect("a rate"))));
    all
}

fn redis(exact: bool) -> Store {
    Store::Redis { exact, on_error: OnStoreError::Local }
}
