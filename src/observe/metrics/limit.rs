//! What is counted for each limit on each route.

use std::sync::Arc;

use super::Source;
use super::family::{self, Scrape};
use super::labels::{LabeledCounters, LimitResult};
use super::primitives::LabeledGauge;

/// The numbers of one limit on one route; exported as long as somebody holds them.
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

    /// A request was measured.
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

/// How many callers a limit keeps count of.
impl Source for LabeledGauge {
    fn report(&self, to: &mut Scrape) {
        to.gauge(&family::LIMIT_KEYS, &[self.name()], self);
    }
}
