//! Metrics of one limit on one route.

use std::sync::Arc;

use super::family::Source;
use super::family::{self, Scrape};
use super::labels::{LabeledCounters, LimitResult};
use super::primitives::LabeledGauge;

/// The metrics of one limit on one route; exported while a handle exists.
#[derive(Debug)]
pub struct LimitMetrics {
    limit: Arc<str>,
    route: Arc<str>,
    decisions: LabeledCounters<LimitResult>,
}

impl LimitMetrics {
    pub(super) fn new(limit: &str, route: &str) -> Self {
        Self { limit: limit.into(), route: route.into(), decisions: LabeledCounters::new() }
    }

    /// Counts a decision.
    pub fn decided(&self, result: LimitResult) {
        self.decisions.inc(result);
    }
}

impl Source for LimitMetrics {
    fn report(&self, to: &mut Scrape) {
        for (result, count) in self.decisions.iter() {
            to.counter(&family::LIMIT_DECISIONS, &[&self.limit, &self.route, result], count);
        }
    }
}

/// The number of keys with a counter of their own.
impl Source for LabeledGauge {
    fn report(&self, to: &mut Scrape) {
        to.gauge(&family::LIMIT_KEYS, &[self.name()], self);
    }
}
