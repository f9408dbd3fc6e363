//! Limits that a reload changes, removes and brings back.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_rolling_quota_of_another_number_keeps_what_was_used() {
    for (before, after, left) in [(100, 1_000, 910), (1_000, 100, 10)] {
        let mut fleet = Fleet::new(2, quota(before, Window::Rolling));
        for turn in 0..90 {
            assert!(fleet.request(turn % 2).await);
        }

        fleet.reload(quota(after, Window::Rolling));
        let mut admitted = 0;
        for turn in 0..1_100 {
            admitted += usize::from(fleet.request(turn % 2).await);
        }

        assert_eq!(admitted, left, "{before} to {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_away_for_a_reload_keeps_what_was_used() {
    for away in [0, 2_000] {
        let mut fleet = Fleet::new(2, quota(2_000, Window::Flexi));
        let mut admitted = 0;
        for turn in 0..1_201 {
            admitted += usize::from(fleet.request(turn % 2).await);
        }

        for _ in 0..3 {
            fleet.reload(quota(2_000, Window::Rolling));
            fleet.pass(away).await;
            fleet.reload(quota(2_000, Window::Flexi));
            admitted += usize::from(fleet.request(0).await);
        }
        for turn in 0..2_000 {
            admitted += usize::from(fleet.request(turn % 2).await);
        }

        assert_eq!(admitted, 2_000, "away for {away} ms");
    }
}

impl Fleet {
    /// Has every gateway continue with other settings of the limit.
    fn reload(&mut self, mut settings: Settings) {
        settings.store = self.settings.store;
        for gateway in &mut self.gateways {
            let limiter = Limiter::new(settings.clone(), &gateway.registry, &gateway.metrics);
            gateway.limiter = Arc::new(limiter);
            let limiters = [Arc::clone(&gateway.limiter)];
            gateway.route = RouteLimits::new(&limiters, "orders", &gateway.metrics);
        }
        self.settings = settings;
    }
}
