//! The retry budget of an upstream: bounds retries to a share of its requests.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use core::time::Duration;
use std::sync::Mutex;

use crate::base::lock::IgnorePoison;

/// Bounds retries to a share of the requests of the last ten seconds, so that an upstream
/// in trouble does not receive twice the load. A minimum is allowed at any load.
#[derive(Debug, Default)]
pub(in crate::upstream) struct RetryBudget {
    requests: AtomicU64,
    window: Mutex<BudgetWindow>,
}

#[derive(Debug, Default)]
struct BudgetWindow {
    /// The uptime in whole seconds at which `retried` and the shared count began.
    began: u64,
    retried: u64,
}

impl RetryBudget {
    pub(in crate::upstream) fn requested(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// Takes one retry from the budget of `percent` of the requests, if there is one left.
    pub(in crate::upstream) fn take(&self, percent: u8, now: Duration) -> bool {
        let mut window = self.window.lock().ignore_poison();
        if now.as_secs().saturating_sub(window.began) >= WINDOW_SECS {
            // Half of the previous window is carried over, so that the share is smooth across the edge.
            let requests = self.requests.load(Relaxed);
            self.requests.fetch_sub(requests / 2, Relaxed);
            *window = BudgetWindow { began: now.as_secs(), retried: window.retried / 2 };
        }
        let max =
            (self.requests.load(Relaxed) * u64::from(percent) / 100).max(MIN_RETRIES_PER_WINDOW);
        let allowed = percent > 0 && window.retried < max;
        window.retried += u64::from(allowed);
        allowed
    }
}

const WINDOW_SECS: u64 = 10;
/// The retries per window that an upstream with hardly any traffic may have.
const MIN_RETRIES_PER_WINDOW: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_stay_a_share_of_the_requests() {
        let budget = RetryBudget::default();
        (0..1000).for_each(|_| budget.requested());

        let granted = (0..1000).filter(|_| budget.take(20, Duration::from_secs(1))).count();

        assert_eq!(granted, 200);
    }

    #[test]
    fn an_upstream_without_traffic_has_a_minimum_of_retries() {
        let budget = RetryBudget::default();
        budget.requested();

        assert!(budget.take(20, Duration::ZERO));
    }

    #[test]
    fn the_budget_is_refilled() {
        let budget = RetryBudget::default();
        while budget.take(20, Duration::ZERO) {}

        assert!(budget.take(20, Duration::from_secs(10)));
    }

    #[test]
    fn a_budget_of_zero_allows_no_retry() {
        assert!(!RetryBudget::default().take(0, Duration::ZERO));
    }
}
