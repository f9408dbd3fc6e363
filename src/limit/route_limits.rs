//! The limits of one route, decided all or nothing.

use std::sync::Arc;

use http::HeaderMap;

use super::counters::limit_counters::Now;
use super::key::LimitKeySource;
use super::limiter::Limiter;
use super::request::decision::{Decision, Question};
use super::request::evaluation::{Evaluation, LimitCheck};
use super::request::limit_exceeded::{LimitExceeded, Limited};
use super::request::limit_state::LimitState;
use super::request::response_cost::ResponseCost;
use super::request::response_headers::RateLimitFields;
use crate::observe::metrics::Metrics;

/// All limits of one route.
#[derive(Debug)]
pub struct RouteLimits {
    /// The limits before authentication, and the others; each in locking order.
    early: Box<[LimitCheck]>,
    late: Box<[LimitCheck]>,
    fields: Option<RateLimitFields>,
    reads_responses: bool,
}

impl RouteLimits {
    /// Creates the limits of `route`, in the order of the file: if several refuse, the first determines the response.
    pub fn new(limiters: &[Arc<Limiter>], route: &str, metrics: &Metrics) -> Self {
        let mut checks: Vec<LimitCheck> = Vec::with_capacity(limiters.len());
        for limiter in limiters {
            // A limit named by the defaults and by the route is one limit.
            if checks.iter().all(|other| !Arc::ptr_eq(&other.limiter.counts, &limiter.counts)) {
                let metrics = metrics.limit(&limiter.settings().name, route);
                checks.push(LimitCheck {
                    limit_index: checks.len(),
                    limiter: Arc::clone(limiter),
                    metrics,
                });
            }
        }
        let reads = |check: &LimitCheck| {
            matches!(check.limiter.settings().response_cost, Some(ResponseCost::Json { .. }))
        };
        let reads_responses = checks.iter().any(reads);
        let fields = RateLimitFields::new(checks.iter().map(|check| &*check.limiter));
        checks.sort_unstable_by_key(|check| Arc::as_ptr(&check.limiter.counts).addr());
        let early = |check: &LimitCheck| check.limiter.settings().runs_before_authentication();
        let (early, late): (Vec<_>, Vec<_>) = checks.into_iter().partition(early);
        Self { early: early.into(), late: late.into(), fields, reads_responses }
    }

    /// Whether [`RouteLimits::before_authentication`] has anything to check, and needs the clocks.
    pub fn asks_before_authentication(&self) -> bool {
        !self.early.is_empty()
    }

    /// Whether [`RouteLimits::after_authorization`] has anything to check.
    pub fn asks_after_authorization(&self) -> bool {
        !self.late.is_empty()
    }

    /// Decides the limits of one stage by what this gateway knows.
    pub fn decide(
        &self,
        stage: Stage,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
    ) -> Decision {
        let mut evaluation = Evaluation::first(subject, moment, standing);
        let refusal = evaluation.ask(self.stage(stage), None);
        match (refusal, evaluation.asks) {
            (Some(refusal), _) => Decision::Made(Err(refusal)),
            (None, false) => Decision::Made(Ok(())),
            (None, true) => Decision::Ask(Question { tickets: evaluation.tickets, moment }),
        }
    }

    /// Decides the limits of a stage once the store has responded to `question`, or has not.
    ///
    /// # Errors
    ///
    /// As [`RouteLimits::after_authorization`].
    pub fn settle(
        &self,
        stage: Stage,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
        question: Question,
    ) -> Result<(), LimitExceeded> {
        let evaluation = Evaluation::first(subject, moment, standing);
        evaluation.settled(question.tickets).ask(self.stage(stage), None).map_or(Ok(()), Err)
    }

    /// Checks the limits that do not depend on the caller, such as a rate per address, without asking a store.
    ///
    /// # Errors
    ///
    /// Returns [`LimitExceeded::Limited`] if one of them refuses; then none has been charged.
    pub fn before_authentication(
        &self,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
    ) -> Result<(), LimitExceeded> {
        self.decide_alone(Stage::BeforeAuthentication, subject, moment, standing)
    }

    /// Checks all other limits, without asking a store.
    ///
    /// # Errors
    ///
    /// Returns [`LimitExceeded::Limited`] if one of them refuses, and [`LimitExceeded::KeyMissing`] if one has no key for
    /// the request; then none has been charged.
    pub fn after_authorization(
        &self,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
    ) -> Result<(), LimitExceeded> {
        self.decide_alone(Stage::AfterAuthorization, subject, moment, standing)
    }

    fn decide_alone(
        &self,
        stage: Stage,
        subject: &LimitKeySource<'_>,
        moment: Now,
        standing: &mut LimitState,
    ) -> Result<(), LimitExceeded> {
        match self.decide(stage, subject, moment, standing) {
            Decision::Made(result) => result,
            Decision::Ask(question) => self.settle(stage, subject, moment, standing, question),
        }
    }

    fn stage(&self, stage: Stage) -> &[LimitCheck] {
        match stage {
            Stage::BeforeAuthentication => &self.early,
            Stage::AfterAuthorization => &self.late,
        }
    }

    /// Adds the header fields about limits to any response. Costs one small allocation.
    pub fn write(&self, standing: &LimitState, headers: &mut HeaderMap) {
        if let Some(fields) = &self.fields {
            fields.write(&standing.left, headers);
        }
    }

    /// Returns the name of the limit that refused, for the log.
    pub fn name(&self, limited: &Limited) -> &str {
        self.name_of(limited.limit_index)
    }

    /// Returns the name of the first limit that would have refused a request, were it no dry run; once.
    pub fn take_dry_run(&self, standing: &mut LimitState) -> Option<&str> {
        standing.dry_run.take().map(|limit_index| self.name_of(limit_index))
    }

    /// Returns the name of the limit with this index, for the log.
    pub fn name_of(&self, limit_index: u16) -> &str {
        let mut checks = self.early.iter().chain(&self.late);
        let named = checks.find(|check| check.limit_index == usize::from(limit_index));
        named.map_or("", |check| &check.limiter.settings().name)
    }

    /// Whether a limit reads the cost of a request from the response's content.
    pub fn reads_responses(&self) -> bool {
        self.reads_responses
    }
}

/// A moment in the life of a request at which limits are decided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Limits that do not depend on the caller, such as a rate per address.
    BeforeAuthentication,
    /// All other limits.
    AfterAuthorization,
}
