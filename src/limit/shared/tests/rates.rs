//! Shared rates, rolling quotas and requests in flight, against models in plain arithmetic.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// No period admits more than the burst and what was renewed in it, but for the stated bound of each disturbance.
    #[test]
    fn rates_admit_their_burst_and_what_is_renewed_under_any_traffic(
        count in 2_u64..2_000,
        rolling in any::<bool>(),
        exact in any::<bool>(),
        steps in prop::collection::vec(step(40), 1..60),
    ) {
        let rate = Rate::new(count, Unit::Minute).expect("a rate");
        let kind = if rolling {
            Kind::Quota(Quota::new(rate, Window::Rolling).expect("a quota"))
        } else {
            Kind::Rate(SpikeArrest::new(rate, Some(20)).expect("a spike arrest"))
        };
        let mut settings = Settings::new("rate", kind);
        settings.store = Store::Redis { exact, on_error: OnStoreError::Local };
        let burst = if rolling { count } else { 20 };
        admit_at_most_what_is_renewed(settings, (count, burst), steps)?;
    }

    /// While the store responds, at most the limit is in flight in the fleet, and places that were given back are found.
    #[test]
    fn requests_in_flight_agree_with_a_counter(
        limit in 1_u32..6,
        steps in prop::collection::vec((0..3_usize, any::<bool>()), 1..120),
    ) {
        paused(async {
            let mut fleet = Fleet::new(3, Settings::new("slots", Kind::Concurrency(number(limit))));
            let mut held: [Vec<LimitState>; 3] = Default::default();
            for (gateway, begins) in steps {
                let in_flight: usize = held.iter().map(Vec::len).sum();
                if begins {
                    let state = fleet.begin(gateway).await;
                    prop_assert_eq!(state.is_some(), in_flight < limit as usize);
                    held[gateway].extend(state);
                } else {
                    held[gateway].pop();
                    fleet.pass(500).await;
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_its_data_learns_a_rate_from_what_it_is_told() {
    let rate = SpikeArrest::new(Rate::new(2, Unit::Minute).expect("a rate"), Some(20));
    let mut fleet = Fleet::new(2, Settings::new("rate", Kind::Rate(rate.expect("a rate"))));
    let mut admitted = 0;
    for gateway in [1, 0] {
        for _ in 0..15 {
            admitted += usize::from(fleet.request(gateway).await);
        }
        fleet.model.lose_data();
    }

    assert!((20..=23).contains(&admitted), "{admitted}");
}

/// Sends the traffic of `steps` at `count` per minute with a `burst`, and compares what was admitted with what the burst
/// and the time allow.
fn admit_at_most_what_is_renewed(
    settings: Settings,
    (count, burst): (u64, u64),
    steps: Vec<Step>,
) -> Result<(), TestCaseError> {
    paused(async {
        let shape = Shape::Rate {
            whole: burst as f64 * 60e6 / count as f64,
            interval: 60e6 / count as f64,
            max_debt: 0.0,
            overdraft: false,
            keeps: true,
        };
        let mut fleet = Fleet::new(3, settings);
        let mut admitted = Vec::new();
        let (mut disturbed, mut lost) = (0_u64, 0_u64);
        for step in steps {
            match step {
                Step::Requests(gateway, times) => {
                    for _ in 0..times {
                        if fleet.request(gateway).await {
                            admitted.push(fleet.model.now.load(Relaxed));
                        }
                    }
                }
                Step::Hang(_) => {
                    lost += 3;
                    // No gateway reports what it remembers in time.
                    disturbed += u64::from(fleet.is_loss_unnoticed());
                }
                Step::Kill(_) => lost += 1,
                Step::LoseData | Step::LoseDataUnnoticed | Step::Outage(_) => disturbed += 1,
                Step::Pass(_) | Step::Calendar(..) => {}
            }
            fleet.undergo(step).await;
        }
        // A gateway that is killed after the store has lost its data is known to none.
        let forgotten = if disturbed > 0 { lost * burst } else { 0 };
        // A lease of each gateway may have been granted long before.
        let leases = 3 * max_lease(&shape, 1);
        let first = first_share(burst, 3, 1).min(burst);
        let bound =
            forgotten + leases + (lost + disturbed * 3) * (max_lease(&shape, 1) + 1 + first);
        let (mut level, mut before) = (0.0_f64, 0);
        for now in admitted {
            let renewed = (now - before) as f64 * count as f64 / 60e6;
            level = (level - renewed).max(0.0) + 1.0;
            before = now;
            prop_assert!(level <= (burst + bound) as f64 + 0.001, "{level}: {burst} and {bound}");
        }
        Ok(())
    })
}
