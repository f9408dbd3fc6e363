//! Limits that a reload changes, removes and brings back.

use super::plans::told;
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

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_holds_its_place_over_a_reload_of_the_store() {
    let mut fleet = Fleet::new(1, Settings::new("slots", Kind::Concurrency(number(1))));
    let held = fleet.begin(0).await.expect("a place");
    let earlier = fleet.gateways[0].store.as_ref().map(Arc::downgrade).expect("a store");

    fleet.connect_anew(0);
    fleet.pass(30_000).await;

    assert!(fleet.begin(0).await.is_none());
    drop(held);
    fleet.pass(1_000).await;
    assert!(fleet.begin(0).await.is_some());
    assert!(earlier.upgrade().is_none(), "all is told, and the task has ended");
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_is_told_after_a_reload_of_the_store_is_charged() {
    let mut fleet = Fleet::new(1, told(quota(50, Window::Flexi)));
    let mut late = fleet.begin(0).await.expect("nothing is used");
    fleet.connect_anew(0);
    fleet.pass(3_000).await;

    fleet.tell(&mut late, "21");
    drop(late);
    fleet.pass(1_000).await;

    assert_eq!(fleet.admitted(0, 1, 60).await, 29);
}

impl Fleet {
    /// Has every gateway continue with other settings of the limit.
    pub(super) fn reload(&mut self, mut settings: Settings) {
        settings.store = self.settings.store;
        for gateway in 0..self.gateways.len() {
            self.reload_at(gateway, &settings);
        }
        self.settings = settings;
    }

    /// Has one gateway continue with other settings of the limit.
    pub(super) fn reload_at(&mut self, gateway: usize, settings: &Settings) {
        let gateway = &mut self.gateways[gateway];
        let limiter = Limiter::new(settings.clone(), &gateway.registry, &gateway.metrics);
        gateway.limiter = Arc::new(limiter);
        let limiters = [Arc::clone(&gateway.limiter)];
        gateway.route = RouteLimits::new(&limiters, "orders", &gateway.metrics);
    }

    /// Has one gateway connect to the store as another one, as a reload with another timeout or password does.
    fn connect_anew(&mut self, gateway: usize) {
        self.next += 1;
        let connection = ReferenceConnection { model: Arc::clone(&self.model), me: self.next };
        let metrics = &self.gateways[gateway].metrics;
        let store = LimitStore::with_backend(Box::new(connection), &self.clock, metrics);
        self.gateways[gateway].registry.share(Some(Arc::clone(&store)));
        self.gateways[gateway].store = Some(store);
        let settings = self.settings.clone();
        self.reload_at(gateway, &settings);
    }
}
