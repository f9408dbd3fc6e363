//! Tests of limits against simple models, and under concurrent threads.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

proptest! {
    /// The model counts in a map.
    #[test]
    fn quotas_agree_with_a_simple_counter(
        limit in 1_u64..5,
        unit in prop::sample::select(vec![Unit::Minute, Unit::Hour, Unit::Day]),
        flexi in any::<bool>(),
        requests in prop::collection::vec((0_u64..40_000, 0_usize..3), 1..150),
    ) {
        let desk = Desk::default();
        let window = if flexi { Window::Flexi } else { Window::Calendar(Zone::utc()) };
        let quota = Quota::new(Rate::new(limit, unit).unwrap(), window).unwrap();
        let limits = Settings::new("quota", Kind::Quota(quota));
        let route = desk.route(vec![by(limits, [KeyPart::Client])]);

        let mut model: HashMap<usize, (u64, u64)> = HashMap::new();
        for (gap, client) in requests {
            desk.wait_millis(gap * 1_000);
            let now = desk.clock.now().as_secs();
            let fresh = if flexi { now } else { now - now % unit.secs() };
            let (start, used) = model.entry(client).or_insert((fresh, 0));
            if now >= *start + unit.secs() {
                (*start, *used) = (fresh, 0);
            }
            let expected = *used < limit;
            *used += u64::from(expected);
            let end = *start + unit.secs();

            let caller = Caller::named(["a", "b", "c"][client]);
            match desk.check(&route, &caller).0 {
                Ok(()) => prop_assert!(expected),
                Err(LimitExceeded::Limited(limited)) => {
                    prop_assert!(!expected);
                    prop_assert_eq!(limited.retry_after, end - now);
                }
                Err(_) => prop_assert!(false, "every client has a name"),
            }
        }
    }

    /// The model charges all of a request's limits, or none.
    #[test]
    fn several_limits_agree_with_a_model_that_asks_all_before_it_charges_one(
        bought in prop::collection::vec(1_u64..12, 1..5),
        requests in prop::collection::vec((0_usize..3, 0_usize..16), 1..200),
    ) {
        let desk = Desk::default();
        let parts = [KeyPart::Global, KeyPart::Client, KeyPart::Ip, KeyPart::Route];
        let limits = bought.iter().zip(&parts).enumerate().map(|(n, (count, part))| {
            let name = ["one", "two", "three", "four"][n];
            by(quota(name, *count, Unit::Day), [part.clone()])
        });
        let limiters: Vec<_> = limits.map(|settings| desk.limiter(settings)).collect();
        // Sixteen routes, each with another choice of the limits.
        let routes: Vec<RouteLimits> = (0..16_usize)
            .map(|choice| {
                let chosen = limiters.iter().enumerate().filter(|(n, _)| choice >> n & 1 == 1);
                let chosen: Vec<_> = chosen.map(|(_, limiter)| Arc::clone(limiter)).collect();
                RouteLimits::new(&chosen, "orders", &desk.metrics)
            })
            .collect();

        let mut used: HashMap<(usize, usize), u64> = HashMap::new();
        for (client, choice) in requests {
            // Only the second limit tells clients apart.
            let of = |n: usize| (n, if n == 1 { client } else { 0 });
            let chosen = || (0..bought.len()).filter(|n| choice >> n & 1 == 1);
            let expected = chosen().all(|n| used.get(&of(n)).is_none_or(|used| *used < bought[n]));
            for n in chosen().filter(|_| expected) {
                *used.entry(of(n)).or_default() += 1;
            }

            let caller = Caller::named(["a", "b", "c"][client]);
            prop_assert_eq!(desk.ask(&routes[choice], &caller).is_ok(), expected);
        }
    }
}

#[test]
fn eight_threads_are_never_admitted_beyond_the_limit_and_waste_none_of_it() {
    const THREADS: u64 = 8;
    let desk = Desk::default();
    let client = by(quota("client", 1_000, Unit::Day), [KeyPart::Client]);
    let all = by(quota("all", 3_000, Unit::Day), [KeyPart::Global]);
    let burst = by(rate("burst", 1, Unit::Day, Some(2_500)), [KeyPart::Route, KeyPart::Client]);
    // The orders of the two routes differ; the order of locking may not.
    let routes = [
        desk.route(vec![client.clone(), all.clone(), burst.clone()]),
        desk.route(vec![burst, all, client]),
    ];
    let admitted = [const { AtomicU64::new(0) }; 4];

    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (desk, routes, admitted) = (&desk, &routes, &admitted);
            scope.spawn(move || {
                for n in 0..2_000 {
                    let who = (n + thread) % 4;
                    let name = ["a", "b", "c", "d"][who as usize];
                    let route = &routes[(n % 2) as usize];
                    if desk.ask(route, &Caller::named(name)).is_ok() {
                        admitted[who as usize].fetch_add(1, Relaxed);
                    }
                }
            });
        }
    });

    let admitted = admitted.map(AtomicU64::into_inner);
    assert!(admitted.iter().all(|count| *count <= 1_000), "{admitted:?}");
    assert_eq!(
        admitted.iter().sum::<u64>(),
        3_000,
        "a refused request charged something: {admitted:?}"
    );
}

#[test]
fn eight_threads_are_never_in_flight_beyond_the_limit() {
    let desk = Desk::default();
    let route = desk.route(vec![concurrency("slots", 3)]);
    let (now, max) = (AtomicU64::new(0), AtomicU64::new(0));

    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    let (admitted, standing) = desk.check(&route, &Caller::default());
                    if admitted.is_ok() {
                        max.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
                        now.fetch_sub(1, Relaxed);
                    }
                    drop(standing);
                }
            });
        }
    });

    assert!((1..=3).contains(&max.into_inner()));
    assert!(desk.metrics.render().contains(r#"northgate_limit_keys{limit="slots"} 0"#));
}
