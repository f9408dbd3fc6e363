//! Content of unknown size at a shared limit.

use core::num::NonZeroU64;

use super::*;
use crate::limit::ContentCharge;

#[tokio::test(start_paused = true)]
async fn content_that_arrives_in_parts_ends_with_the_shared_quota() {
    for (exact, window) in [(false, Window::Flexi), (true, Window::Flexi), (false, Window::Rolling)]
    {
        let mut fleet = Fleet::new(2, bytes(100_000, exact, OnStoreError::Local, window.clone()));
        let mut charges = Vec::new();
        for turn in 0..20 {
            let mut state = fleet.begin_sized(turn % 2, None).await.expect("nothing is used");
            charges.push(state.content_charge().expect("bytes are counted"));
        }

        let mut passed = 0;
        for _ in 0..100 {
            for content in &mut charges {
                passed += if fleet.charge(content, 900).await { 900 } else { 0 };
            }
        }

        assert!((90_000..=100_000).contains(&passed), "{passed}, {exact}, {window:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_operator_decides_what_an_outage_does_to_content() {
    for (on_error, expected) in
        [(OnStoreError::Allow, 50), (OnStoreError::Deny, 0), (OnStoreError::Local, 20)]
    {
        let mut fleet = Fleet::new(1, bytes(70, true, on_error, Window::Flexi));
        let mut charges = Vec::new();
        for _ in 0..50 {
            let mut state = fleet.begin_sized(0, None).await.expect("50 of 70");
            charges.push(state.content_charge().expect("bytes are counted"));
        }
        fleet.model.fails.store(true, Relaxed);
        fleet.pass(200).await;

        // The first byte of each is paid for.
        let mut passed = 0;
        for content in &mut charges {
            passed += usize::from(fleet.charge(content, 2).await);
        }

        assert_eq!(passed, expected, "{on_error:?}");
    }
}

impl Fleet {
    /// Charges a part of content, and returns whether it may pass.
    async fn charge(&mut self, content: &mut ContentCharge, bytes: u64) -> bool {
        tokio::task::yield_now().await;
        let moment = Now::of(&self.clock);
        match content.decide(bytes, moment) {
            Decision::Made(made) => made.is_ok(),
            Decision::Ask(mut question) => {
                question.send().await;
                content.settle(bytes, moment, question).is_ok()
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn content_in_parts_that_a_dry_run_would_have_ended_is_reported_once() {
    for exact in [true, false] {
        let mut settings = bytes(100, exact, OnStoreError::Local, Window::Flexi);
        settings.dry_run = true;
        let mut fleet = Fleet::new(1, settings);
        let mut state = fleet.begin_sized(0, None).await.expect("a dry run");
        let mut content = state.content_charge().expect("bytes are counted");

        for _ in 0..4 {
            assert!(fleet.charge(&mut content, 60).await);
        }

        assert_eq!(content.dry_run(), Some(0));
        let seen = fleet.gateways[0].metrics.render();
        assert!(seen.contains("result=\"dry_run\"} 1\n"), "{seen}");
    }
}

fn bytes(count: u64, exact: bool, on_error: OnStoreError, window: Window) -> Settings {
    let mut settings = quota(count, window);
    settings.cost = Cost::RequestSize(NonZeroU64::MIN);
    settings.store = Store::Redis { exact, on_error };
    settings
}
