//! Applies the limits of a route before authentication and after authorization.

use http::request::Parts;
use http_body::Body as _;

use super::authorize::Permit;
use crate::base::body::Body;
use crate::gateway::exchange::Exchange;
use crate::gateway::response::rejection::Rejection;
use crate::gateway::routing::route_properties::RouteProperties;
use crate::limit::{Decision, LimitExceeded, LimitKeySource, Stage};
use crate::observe::metrics::LimitResult;

impl RouteProperties {
    /// Checks the limits that protect the upstream, by address or route, before any cryptography.
    ///
    /// # Errors
    ///
    /// [`Rejection::Limited`] if a limit is exceeded; none is charged then.
    pub(crate) async fn check_spike_arrest(
        &self,
        head: &Parts,
        body: &Body,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        if !self.limits.asks_before_authentication() {
            return Ok(());
        }
        let subject = LimitKeySource {
            ip: exchange.client,
            route: &self.id,
            issuer: None,
            client: None,
            subject: None,
            session: None,
            headers: &head.headers,
            claim: &|_| None,
            method: &head.method,
            request_size: body.size_hint().exact(),
        };
        self.decide(Stage::BeforeAuthentication, &subject, exchange).await
    }

    /// Checks the limits of an authorized caller: all are charged or none.
    ///
    /// # Errors
    ///
    /// [`Rejection::Limited`] if a limit is exceeded, [`Rejection::BadRequest`] if the request lacks the key of one,
    /// [`Rejection::AmbiguousField`] if it has a key in several readings,
    /// [`Rejection::Forbidden`] if its caller has no plan, [`Rejection::BodyTooLarge`] if its content never fits.
    pub(crate) async fn check_quotas(
        &self,
        permit: &Permit,
        head: &Parts,
        body: &Body,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        if !self.limits.asks_after_authorization() {
            return Ok(());
        }
        let principal = permit.principal.as_deref();
        let subject = LimitKeySource {
            ip: exchange.client,
            route: &self.id,
            issuer: principal.map(|principal| &*principal.namespace),
            client: principal.and_then(|principal| principal.client.as_deref()),
            subject: principal.and_then(|principal| principal.subject.as_deref()),
            session: principal.and_then(|principal| principal.session.as_deref()),
            headers: &head.headers,
            claim: &|path| principal?.claim(path),
            method: &head.method,
            request_size: body.size_hint().exact(),
        };
        self.decide(Stage::AfterAuthorization, &subject, exchange).await
    }

    /// Decides the limits of one stage; waits only if a limit that several gateways share has no lease for the request.
    async fn decide(
        &self,
        stage: Stage,
        subject: &LimitKeySource<'_>,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        let moment = exchange.moment;
        let checked = match self.limits.decide(stage, subject, moment, &mut exchange.limit_state) {
            Decision::Made(checked) => checked,
            Decision::Ask(mut question) => {
                exchange.measured(question.send()).await;
                let moment = exchange.moment;
                let state = &mut exchange.limit_state;
                self.limits.settle(stage, subject, moment, state, question)
            }
        };
        self.decided(checked, exchange)
    }

    /// Records what a dry run would have refused, and returns the rejection of what was.
    fn decided(
        &self,
        checked: Result<(), LimitExceeded>,
        exchange: &mut Exchange,
    ) -> Result<(), Rejection> {
        if let Some(name) = self.limits.take_dry_run(&mut exchange.limit_state) {
            exchange.limited(name, LimitResult::DryRun);
        }
        checked.map_err(|refusal| self.refuse(refusal, exchange))
    }

    fn refuse(&self, refusal: LimitExceeded, exchange: &mut Exchange) -> Rejection {
        match refusal {
            LimitExceeded::Limited(limited) => {
                exchange.limited(self.limits.name(&limited), LimitResult::Limited);
                Rejection::Limited(limited)
            }
            LimitExceeded::KeyMissing => Rejection::BadRequest,
            LimitExceeded::KeyAmbiguous => Rejection::AmbiguousField,
            LimitExceeded::TooLarge => Rejection::BodyTooLarge,
            LimitExceeded::NoPlan => Rejection::Forbidden,
        }
    }
}
