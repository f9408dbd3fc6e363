//! Records the end of HTTP/2 response content as an outcome of its request: the content may break off, and the status
//! of a gRPC call arrives in its trailers.

use core::task::Poll;
use core::time::Duration;
use std::sync::Arc;

use http::{HeaderMap, Response};
use http_body::Body as _;

use super::endpoint_health::Outcome;
use super::passive_health::PassiveHealth;
use crate::base::body::Body;
use crate::base::grpc;
use crate::base::watched_body::{Polled, Watch, Watched};
use crate::observe::metrics::UpstreamFailure;
use crate::upstream::balancing::endpoint::Endpoint;
use crate::upstream::health::client_pauses::ClientPauses;
use crate::upstream::request::long_lived_response::is_endless;

/// The recorder of the outcome of one response's content.
pub(in crate::upstream) struct ContentOutcome {
    kind: Kind,
    passive: Arc<PassiveHealth>,
    endpoint: Arc<Endpoint>,
    /// The uptime at which the request was sent.
    began: Duration,
    pauses: ClientPauses,
}

/// The sign by which the content ends well or not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// Whether it is complete.
    Content,
    /// The status of a gRPC call. A call that breaks off is no evidence: it may be as long as its client likes.
    Call,
    /// Nothing, or nothing more.
    Nothing,
}

impl ContentOutcome {
    /// Creates the recorder for `response` of `endpoint` to a request that was sent at `began`.
    pub(in crate::upstream) fn of(
        response: &Response<Body>,
        passive: &Arc<PassiveHealth>,
        endpoint: &Arc<Endpoint>,
        began: Duration,
    ) -> Self {
        let kind = if grpc::is_grpc(response.headers()) {
            Kind::Call
        } else if is_endless(response.headers()) {
            Kind::Nothing
        } else {
            Kind::Content
        };
        let pauses = ClientPauses::new(passive.clock.uptime());
        Self { kind, passive: Arc::clone(passive), endpoint: Arc::clone(endpoint), began, pauses }
    }

    /// Whether these fields, of a head without content or of trailers, end a gRPC call in a failure of the service.
    pub(in crate::upstream) fn is_failed_call(&self, fields: &HeaderMap) -> bool {
        let status = grpc::status_of(fields).filter(|_| self.kind == Kind::Call);
        let failed = status.is_some_and(grpc::is_service_failure);
        if failed && let Some(status) = status {
            self.endpoint.health.failed(&format!("status {status} of a gRPC call"));
            self.passive.metrics.failed(UpstreamFailure::GrpcStatus);
        }
        failed
    }

    /// Returns the same content, whose end is recorded.
    pub(in crate::upstream) fn watch(self, body: Body) -> Body {
        if body.is_end_stream() || self.kind == Kind::Nothing {
            return body;
        }
        body.wrapped(|body| Watched::new(body, self))
    }

    fn completed(&mut self) {
        if core::mem::replace(&mut self.kind, Kind::Nothing) == Kind::Content {
            self.passive.completed(&self.endpoint, self.began);
        }
    }
}

impl Watch for ContentOutcome {
    fn polled(&mut self, polled: &Polled, body: &Body) {
        self.pauses.polled(polled, self.passive.clock.uptime());
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref()
                    && self.kind == Kind::Call
                {
                    let outcome = Outcome::of_content(!self.is_failed_call(trailers));
                    self.kind = Kind::Nothing;
                    let now = self.passive.clock.uptime();
                    self.passive.judge(&self.endpoint, outcome, self.began, now);
                } else if body.is_end_stream() {
                    self.completed();
                }
            }
            Poll::Ready(Some(Err(error))) => {
                let kind = core::mem::replace(&mut self.kind, Kind::Nothing);
                if kind == Kind::Content && !self.pauses.may_have_cut() {
                    self.passive.broke_off(&self.endpoint, error, self.began);
                }
            }
            Poll::Ready(None) => self.completed(),
            Poll::Pending => {}
        }
    }
}
