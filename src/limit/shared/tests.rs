//! Several gateways and one store, against a model in plain arithmetic: numbers of admitted requests per window.

mod bodies;
mod costs;
mod fleet;
mod lost_data;
mod many_keys;
mod plans;
mod rates;
pub(super) mod reference_store;
mod refusals;
mod reloads;

use core::net::IpAddr;
use core::num::NonZeroU32;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, Method};
use proptest::prelude::*;

use self::fleet::{Fleet, Gateway};
use super::LimitStore;
use super::lease_size::{first_share, max_lease, overrun_bound};
use super::protocol::Shape;
use super::store_epoch::to_epoch_nanos;
use crate::base::clock::{Clock, Timestamp};
use crate::limit::{
    Cost, Decision, Kind, LimitExceeded, LimitKeySource, LimitRegistry, LimitState, Limiter, Now,
    OnStoreError, Quota, Rate, RouteLimits, Settings, SpikeArrest, Stage, Store, Unit, Window,
    Zone,
};
use crate::observe::metrics::Metrics;
use reference_store::{ReferenceConnection, ReferenceStore};

#[tokio::test(start_paused = true)]
async fn gateways_never_admit_more_than_the_quota_together_nor_less() {
    let mut fleet = Fleet::new(3, quota(1_000, Window::Calendar(Zone::utc())));
    let mut admitted = [0; 3];

    for turn in 0..3_000 {
        admitted[turn % 3] += usize::from(fleet.request(turn % 3).await);
    }

    assert_eq!(admitted.iter().sum::<usize>(), 1_000);
    let calls = fleet.model.calls.load(Relaxed);
    assert!(calls < 700, "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn an_exact_limit_asks_for_every_request() {
    let mut settings = quota(100, Window::Flexi);
    settings.store = Store::Redis { exact: true, on_error: OnStoreError::Local };
    let mut fleet = Fleet::new(2, settings);

    for turn in 0..50 {
        assert!(fleet.request(turn % 2).await);
    }

    assert_eq!(fleet.model.calls.load(Relaxed), 50);
}

#[tokio::test(start_paused = true)]
async fn an_idle_gateway_returns_its_lease() {
    let mut fleet = Fleet::new(2, quota(100, Window::Flexi));
    let mut admitted = 0;
    for _ in 0..20 {
        admitted += usize::from(fleet.request(0).await);
    }

    fleet.pass(2_000).await;
    for _ in 0..200 {
        admitted += usize::from(fleet.request(1).await);
    }

    assert_eq!(admitted, 100);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_each_gateway_admits_its_share_and_reports_it_afterwards() {
    let mut fleet = Fleet::new(2, quota(60, Window::Flexi));
    for turn in 0..20 {
        assert!(fleet.request(turn % 2).await);
    }

    fleet.model.fails.store(true, Relaxed);
    fleet.pass(200).await;
    let mut during = 0;
    for turn in 0..100 {
        during += usize::from(fleet.request(turn % 2).await);
    }
    fleet.model.fails.store(false, Relaxed);
    fleet.pass(1_000).await;
    let mut after = 0;
    for turn in 0..100 {
        after += usize::from(fleet.request(turn % 2).await);
    }

    assert!((30..=46).contains(&during), "{during}");
    // The stated bound of two gateways: what each may admit before it knows what the other has.
    let bound = 60 + 2 * usize::try_from(first_share(60, 2, 1)).expect("small");
    assert!(20 + during + after <= bound, "{during} {after}");
}

#[tokio::test(start_paused = true)]
async fn use_before_the_first_contact_is_told_to_the_store_without_another_request() {
    let mut fleet = Fleet::new(2, quota(60, Window::Flexi));
    fleet.model.fails.store(true, Relaxed);
    for _ in 0..10 {
        assert!(fleet.request(0).await);
    }

    fleet.model.fails.store(false, Relaxed);
    fleet.pass(1_000).await;
    let mut after = 0;
    for _ in 0..100 {
        after += usize::from(fleet.request(1).await);
    }

    assert_eq!(after, 50);
}

#[tokio::test(start_paused = true)]
async fn the_operator_decides_what_an_outage_does() {
    for (on_error, expected) in
        [(OnStoreError::Allow, 50), (OnStoreError::Deny, 0), (OnStoreError::Local, 20)]
    {
        let mut settings = quota(20, Window::Flexi);
        settings.store = Store::Redis { exact: true, on_error };
        let mut fleet = Fleet::new(1, settings);
        fleet.model.fails.store(true, Relaxed);
        fleet.pass(200).await;

        let mut admitted = 0;
        for _ in 0..50 {
            admitted += usize::from(fleet.request(0).await);
        }

        assert_eq!(admitted, expected, "{on_error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_its_data_learns_it_again() {
    let mut fleet = Fleet::new(3, quota(900, Window::Calendar(Zone::utc())));
    let mut admitted = 0;
    for turn in 0..600 {
        admitted += usize::from(fleet.request(turn % 3).await);
    }

    fleet.model.lose_data();
    for turn in 0..2_000 {
        admitted += usize::from(fleet.request(turn % 3).await);
    }

    assert!((890..=906).contains(&admitted), "{admitted}");
}

#[tokio::test(start_paused = true)]
async fn lost_responses_lose_no_requests() {
    let mut settings = quota(500, Window::Flexi);
    settings.store = Store::Redis { exact: false, on_error: OnStoreError::Deny };
    let mut fleet = Fleet::new(2, settings);
    let mut admitted = 0;
    for turn in 0..2_000 {
        fleet.model.loses_responses.store(turn % 50 == 7, Relaxed);
        admitted += usize::from(fleet.request(turn % 2).await);
        if turn % 50 == 7 {
            fleet.model.loses_responses.store(false, Relaxed);
            fleet.pass(400).await;
        }
    }

    assert_eq!(admitted, 500);
}

#[tokio::test(start_paused = true)]
async fn places_of_a_killed_gateway_are_free_after_their_lifetime() {
    let mut fleet = Fleet::new(2, Settings::new("slots", Kind::Concurrency(number(4))));
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(fleet.begin(0).await.expect("a place"));
    }
    assert!(fleet.begin(1).await.is_none());

    // While it lives, the gateway renews them.
    fleet.pass(30_000).await;
    assert!(fleet.begin(1).await.is_none());
    fleet.kill(0);
    core::mem::forget(held);
    fleet.pass(12_000).await;
    let other = fleet.begin(1).await;
    assert!(other.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_place_that_one_gateway_frees_is_anothers() {
    let mut fleet = Fleet::new(2, Settings::new("slots", Kind::Concurrency(number(2))));
    let first = fleet.begin(0).await.expect("a place");
    let second = fleet.begin(1).await.expect("a place");
    assert!(fleet.begin(0).await.is_none());

    drop(first);
    fleet.pass(50).await;
    let third = fleet.begin(1).await;
    assert!(third.is_some());
    assert!(fleet.begin(0).await.is_none());
    drop((second, third));
    fleet.pass(50).await;
    assert!(fleet.begin(0).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_shared_rate_keeps_its_bound_over_all_gateways() {
    let rate = SpikeArrest::new(Rate::new(100, Unit::Second).expect("a rate"), Some(10));
    let mut fleet = Fleet::new(3, Settings::new("rate", Kind::Rate(rate.expect("a rate"))));
    let mut admitted = 0;

    // Three seconds with one request per millisecond.
    for turn in 0..3_000 {
        admitted += usize::from(fleet.request(turn % 3).await);
        fleet.pass_store_time(1);
    }

    assert!((300..=313).contains(&admitted), "{admitted}");
}

#[tokio::test(start_paused = true)]
async fn a_killed_gateways_lease_is_anothers_after_its_lifetime() {
    for window in [Window::Flexi, Window::Calendar(Zone::utc()), Window::Rolling] {
        let mut fleet = Fleet::new(2, quota(20_000, window.clone()));
        let mut admitted = 0;
        while fleet.unused(0) < 10 {
            admitted += usize::from(fleet.request(0).await);
        }
        let lost = fleet.unused(0);

        fleet.kill(0);
        fleet.pass_store_time(6_000);
        for _ in 0..21_000 {
            admitted += usize::from(fleet.request(1).await);
        }

        // Six seconds of a rolling day renew one request.
        assert!((20_000..=20_000 + lost + 1).contains(&admitted), "{window:?}: {admitted}, {lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_hung_does_not_use_a_lease_that_another_was_granted() {
    let mut fleet = Fleet::new(2, quota(20_000, Window::Flexi));
    let mut admitted = 0;
    while fleet.unused(0) < 10 {
        admitted += usize::from(fleet.request(0).await);
    }

    let lost = fleet.unused(0);

    fleet.pass_store_time(6_000);
    for _ in 0..21_000 {
        admitted += usize::from(fleet.request(1).await);
    }

    assert!(!fleet.request(0).await);
    // What it used since its last message is known to it alone.
    assert!((20_000..=20_000 + lost).contains(&admitted), "{admitted}, {lost}");
}

#[tokio::test(start_paused = true)]
async fn a_gateway_keeps_a_lease_that_it_uses_slowly() {
    let mut fleet = Fleet::new(2, quota(2_000, Window::Flexi));
    let mut admitted = 0;

    for _ in 0..100 {
        for gateway in 0..2 {
            admitted += usize::from(fleet.request(gateway).await);
        }
        fleet.pass(400).await;
    }
    for turn in 0..3_000 {
        admitted += usize::from(fleet.request(turn % 2).await);
    }

    assert_eq!(admitted, 2_000);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, ..ProptestConfig::default() })]

    /// While the store responds, no window of any zone admits more than its quota, whatever the gateways' calendars say;
    /// with lost data, outages, killed and hung gateways the stated bound holds.
    #[test]
    fn windows_admit_their_quota_under_any_traffic(
        count in 1_u64..200,
        zone in zone(),
        steps in prop::collection::vec(step(40), 1..60),
    ) {
        admit_at_most_the_bound(count, zone, steps)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// The same with leases of several requests.
    #[test]
    fn windows_admit_their_quota_with_any_leases(
        count in 3_000_u64..9_000,
        zone in zone(),
        steps in prop::collection::vec(step(800), 1..60),
    ) {
        admit_at_most_the_bound(count, zone, steps)?;
    }
}

/// Returns calendar windows of a zone, or windows that begin with their first request.
fn zone() -> impl Strategy<Value = Option<&'static str>> {
    prop::option::of(prop::sample::select(vec![
        "UTC",
        "Europe/Berlin",
        "America/St_Johns",
        "Asia/Kathmandu",
    ]))
}

/// Sends the traffic of `steps` at a quota of `count` per minute, and compares what was admitted with the stated bound.
fn admit_at_most_the_bound(
    count: u64,
    zone: Option<&'static str>,
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    paused(async {
        let window =
            zone.map_or(Window::Flexi, |zone| Window::Calendar(Zone::named(zone).expect("a zone")));
        let rate = Rate::new(count, Unit::Minute).expect("a rate");
        let kind = Kind::Quota(Quota::new(rate, window).expect("a quota"));
        let mut fleet = Fleet::new(3, Settings::new("daily", kind));
        let mut by_window = BTreeMap::<u64, u64>::new();
        let (mut disturbed, mut killed, mut hung) = (0_u64, 0_u64, 0_u64);
        // Requests that were admitted while the store knew no window: they belong to the next one.
        let mut unplaced = 0;
        for step in steps {
            match step {
                Step::Requests(gateway, times) => {
                    for _ in 0..times {
                        let now = fleet.model.now.load(Relaxed);
                        if fleet.request(gateway).await {
                            let window = match zone {
                                None => fleet.model.window_end(),
                                Some(_) => Some(to_epoch_nanos(now) / 60_000_000_000),
                            };
                            unplaced += 1;
                            if let Some(window) = window {
                                *by_window.entry(window).or_default() +=
                                    core::mem::take(&mut unplaced);
                            }
                        }
                    }
                }
                Step::Hang(_) => {
                    hung += 1;
                    // No gateway reports what it remembers in time.
                    killed += u64::from(fleet.is_loss_unnoticed());
                }
                Step::Kill(_) => killed += 1,
                Step::LoseData | Step::LoseDataUnnoticed | Step::Outage(_) => disturbed += 1,
                Step::Pass(_) | Step::Calendar(..) => {}
            }
            fleet.undergo(step).await;
        }
        let shape = Shape::Window { limit: count, end: 0, next: 1, span: 1, debts: false };
        let lease = max_lease(&shape, 1);
        // The use of a killed gateway is known to the store alone, but for a lease; so is that of each gateway after
        // a time in which none could report it.
        let forgotten = if disturbed > 0 { killed * count } else { killed * lease };
        let bound = count + forgotten + hung * 3 * lease + disturbed * overrun_bound(&shape, 3, 1);
        for (window, admitted) in by_window {
            prop_assert!(
                admitted <= bound,
                "window {window}: {admitted} of {count}, bound {bound}"
            );
        }
        Ok(())
    })
}

/// Runs `future` on a runtime whose time stands still.
fn paused<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(future)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Requests(usize, usize),
    Pass(u64),
    /// Time passes, and no gateway does anything.
    Hang(u64),
    Calendar(usize, i64),
    Kill(usize),
    LoseData,
    /// The store loses its data, which gateways that do not ask it notice a second later.
    LoseDataUnnoticed,
    Outage(u64),
}

fn step(max_requests: usize) -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..3_usize, 1..max_requests).prop_map(|(gateway, times)| Step::Requests(gateway, times)),
        4 => (1..30_000_u64).prop_map(Step::Pass),
        1 => (1..10_000_u64).prop_map(Step::Hang),
        2 => (0..3_usize, -100_000..100_000_i64).prop_map(|(gateway, step)| Step::Calendar(gateway, step)),
        1 => (0..3_usize).prop_map(Step::Kill),
        1 => Just(Step::LoseData),
        1 => Just(Step::LoseDataUnnoticed),
        1 => (1..2_000_u64).prop_map(Step::Outage),
    ]
}

fn quota(count: u64, window: Window) -> Settings {
    let rate = Rate::new(count, Unit::Day).expect("a rate");
    Settings::new("daily", Kind::Quota(Quota::new(rate, window).expect("a quota")))
}

fn number(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).expect("above zero")
}

/// A moment in 2026.
const STORE_TIME: u64 = 90_000_000_000_000;
