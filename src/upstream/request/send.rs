//! Sends a request: attempts at one endpoint after another until there is a response.

use core::time::Duration;
use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use tokio::time::{Instant, timeout_at};

use super::attempt_result::{Answered, Failed};
use super::extra_headers::OutgoingRequest;
use super::send_options::{RequestContent, SendOptions};
use super::tunnel::Tunnel;
use crate::base::body::Body;
use crate::base::method::is_idempotent;
use crate::http1::BodyWriter;
use crate::observe::metrics::UpstreamFailure;
use crate::upstream::Upstream;
use crate::upstream::balancing::attempted_endpoints::{AttemptedEndpoints, Refund};
use crate::upstream::balancing::endpoint::{Dial, Endpoint};
use crate::upstream::error::UpstreamError;
use crate::upstream::health::circuit_breaker::CircuitState;
use crate::upstream::settings::Retries;

/// The head of an upstream's response, with data about the attempts.
#[derive(Debug)]
pub struct UpstreamResponse {
    /// The response, without hop-by-hop fields; its body streams.
    pub response: Response<Body>,
    /// The connection itself, if the upstream switched protocols (status 101).
    pub tunnel: Option<Box<Tunnel>>,
    /// The endpoint that responded.
    pub endpoint: Arc<Endpoint>,
    /// The number of attempts, at least 1.
    pub attempts: u32,
    /// The time spent waiting for the response head, all attempts together.
    pub waited: Duration,
}

/// A request without a response, after its last attempt.
#[derive(Debug)]
pub struct SendFailure {
    /// The reason.
    pub failure: UpstreamError,
    /// The endpoint of the last attempt; `None` if there was none.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The cause, for the log: of the last attempt, or why no endpoint is available.
    pub cause: Cow<'static, str>,
    /// The number of attempts.
    pub attempts: u32,
    /// Whether the upstream may have processed the request.
    pub sent: bool,
    /// The content for another upstream; `None` if a part of it is lost.
    pub content: Option<RequestContent>,
}

impl SendFailure {
    /// Creates the failure of a request for which there was no attempt.
    fn unsent(failure: UpstreamError, cause: Cow<'static, str>, content: RequestContent) -> Self {
        let content = Some(content);
        Self { failure, endpoint: None, cause, attempts: 0, sent: false, content }
    }
}

impl Upstream {
    /// Sends a request and waits for the response head.
    ///
    /// `Host` and the framing are decided here.
    ///
    /// # Errors
    ///
    /// [`SendFailure`] of the last attempt.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the connection.
    pub async fn send(
        &self,
        request: &OutgoingRequest<'_>,
        content: RequestContent,
        options: SendOptions<'_>,
    ) -> Result<UpstreamResponse, Box<SendFailure>> {
        if let Some(failure) = self.open_circuit(options.began) {
            let failed = SendFailure::unsent(failure, failure.cause(), content);
            return Err(Box::new(self.lost(failed)));
        }
        self.budget.requested();
        let mut began = options.began;
        let selected = match self.select(&AttemptedEndpoints::default(), began, options.key) {
            Some(endpoint) if *endpoint.dial() != Dial::Unresolved => Some(endpoint),
            unresolved => {
                let selected = Box::pin(self.select_waiting(unresolved, options.key)).await;
                began = self.clock.uptime();
                selected
            }
        };
        let Some(mut endpoint) = selected else {
            let failed =
                SendFailure::unsent(UpstreamError::NoEndpoint, self.unavailable(), content);
            return Err(Box::new(self.lost(failed)));
        };
        let RequestContent { mut writer, whole } = content;
        let mut sending = Sending::new(self, request, whole, options);
        loop {
            let next = match sending.attempt(&endpoint, writer, began).await {
                Ok(answered) => sending.after_response(answered, began),
                // Boxed: few attempts fail.
                Err(failed) => Box::pin(sending.after_failure(failed, began)).await,
            };
            match next {
                Next::Attempt(again, other) => {
                    (writer, endpoint) = (again, other);
                    began = self.clock.uptime();
                }
                Next::End(result) => return result,
            }
        }
    }

    /// Returns the failure of a request that the circuit refuses.
    fn open_circuit(&self, now: Duration) -> Option<UpstreamError> {
        let (settings, circuit) = self.circuit.as_ref()?;
        let is_closed = circuit.state() == CircuitState::Closed;
        let seconds = || circuit.seconds_to_probe(settings, now);
        (!is_closed).then(|| UpstreamError::CircuitOpen { seconds: seconds() })
    }

    /// Counts the failure of a request as the upstream's.
    fn lost(&self, failed: SendFailure) -> SendFailure {
        self.count(failed.failure);
        if failed.attempts > 1 {
            self.metrics.retried(false);
        }
        failed
    }

    fn count(&self, failure: UpstreamError) {
        if let Some(reason) = failure.reason() {
            self.metrics.failed(reason);
        }
    }
}

/// A request and the attempts that it has had.
struct Sending<'a> {
    upstream: &'a Upstream,
    request: &'a OutgoingRequest<'a>,
    /// The whole content, if it is in memory: a part that was sent can be sent again.
    whole: Option<Bytes>,
    options: SendOptions<'a>,
    retries: &'a Retries,
    tried: AttemptedEndpoints,
}

/// The step that follows an attempt.
enum Next {
    /// Another one, at this endpoint.
    Attempt(Box<BodyWriter>, Arc<Endpoint>),
    End(Result<UpstreamResponse, Box<SendFailure>>),
}

impl<'a> Sending<'a> {
    fn new(
        upstream: &'a Upstream,
        request: &'a OutgoingRequest<'a>,
        whole: Option<Bytes>,
        options: SendOptions<'a>,
    ) -> Self {
        let retries = options.retries.unwrap_or(&upstream.settings.retries);
        let tried = AttemptedEndpoints::default();
        Self { upstream, request, whole, options, retries, tried }
    }

    /// Makes one attempt, which ends with the deadline of the request. A small response is waited for to its end where the
    /// request could be repeated if it broke off, any other for the beginning of its content.
    async fn attempt(
        &mut self,
        endpoint: &Arc<Endpoint>,
        writer: Box<BodyWriter>,
        began: Duration,
    ) -> Result<Answered, Failed> {
        self.tried.add(endpoint);
        let Self { upstream, request, options, tried, .. } = self;
        let answered = match options.deadline {
            None => upstream.attempt(endpoint, request, writer, options, tried, began).await?,
            Some(deadline) => {
                let attempt = upstream.attempt(endpoint, request, writer, options, tried, began);
                // Boxed: few requests have a deadline, and all carry this future.
                let outcome = Box::pin(timeout_at(deadline, attempt)).await;
                outcome.unwrap_or_else(|_| Err(Failed::overdue(Arc::clone(endpoint))))?
            }
        };
        if answered.may_be_small() && self.may_repeat() {
            let limit = answered.max_hold(self.options.within(Instant::now()));
            return Box::pin(self.upstream.hold(answered, limit)).await;
        }
        if answered.awaits_content() && !self.options.reads_content {
            return Box::pin(self.upstream.await_content(answered)).await;
        }
        Ok(answered)
    }

    /// Whether the request may be sent once more after it was processed, here or to the fallback.
    fn may_repeat(&self) -> bool {
        let method = &self.request.head.method;
        let has_other = || self.upstream.endpoints.load().members.len() > 1;
        self.whole.is_some()
            && is_idempotent(method)
            && (self.options.has_fallback
                || self.tried.permit_another(self.retries, method, false) && has_other())
    }

    /// Returns the content from its beginning; `None` if a part of it is lost.
    fn content_again(&self) -> Option<Box<BodyWriter>> {
        self.whole.clone().map(|whole| Box::new(BodyWriter::new(whole.into())))
    }

    /// Passes the response on, or has another endpoint asked for a better one.
    fn after_response(&self, answered: Answered, began: Duration) -> Next {
        let upstream = self.upstream;
        upstream.judge_response(&answered, began);
        let status = answered.response.status();
        let asks_again = self.retries.on_status(status);
        if asks_again
            && !self.options.is_over()
            && let Some(again) = self.content_again()
            && let Some(other) = upstream.select(&self.tried, answered.at, self.options.key)
            && self.tried.permit_another(self.retries, &self.request.head.method, true)
            && upstream.has_budget(self.retries)
        {
            return Next::Attempt(again, other);
        }
        if self.tried.count() > 1 {
            upstream.metrics.retried(!asks_again);
        }
        Next::End(Ok(UpstreamResponse {
            response: answered.response,
            tunnel: answered.tunnel,
            endpoint: answered.endpoint,
            attempts: self.tried.count(),
            waited: answered.at.saturating_sub(self.options.began),
        }))
    }

    /// Has another attempt made where one is permitted, and ends the request otherwise.
    async fn after_failure(&mut self, mut failed: Failed, began: Duration) -> Next {
        let upstream = self.upstream;
        let cause = upstream.judge_failure(&mut failed, began);
        let failure = failed.error.failure;
        if failure.is_deadline() {
            // No time is left for another attempt, here or elsewhere.
            failed.error.sent = true;
            return self.give_up(failed, cause, None);
        }
        let repeated = || if failed.error.sent { self.content_again() } else { None };
        let again = failed.error.remaining_content.take().or_else(repeated);
        let Some(again) = again else { return self.give_up(failed, cause, None) };
        let (target, refunded) = self.next_target(&failed).await;
        if let Some(target) = target
            && !self.options.is_over()
            && (refunded || self.permits_retry(&failed, &target, began))
        {
            if !failed.error.stale && !failed.counted {
                upstream.count(failure);
            }
            if failed.connection_lost {
                self.tried.share_no_connection();
            }
            if failed.refund == Refund::Once {
                self.tried.use_new_connection();
            }
            return Next::Attempt(again, target);
        }
        let content = RequestContent { writer: again, whole: self.whole.take() };
        self.give_up(failed, cause, Some(content))
    }

    /// Returns the endpoint of the attempt after a failed one, and whether that one does not count against the retries.
    async fn next_target(&mut self, failed: &Failed) -> (Option<Arc<Endpoint>>, bool) {
        let (upstream, key) = (self.upstream, self.options.key);
        let Failed { error, endpoint: at, .. } = failed;
        let mut refunded = self.tried.refund(failed.refund);
        // A new connection to the same endpoint may work where an idle one was closed, but not always.
        let in_place = refunded
            && failed.refund == Refund::Always
            && self.tried.refunds() < MAX_REFUNDS_IN_PLACE;
        let now = upstream.clock.uptime();
        let other = if in_place { None } else { upstream.select(&self.tried, now, key) };
        if error.failure == UpstreamError::Overflow
            && other.as_ref().is_some_and(|other| other.load() < other.capacity())
        {
            // Of an endpoint without a place, nothing was asked.
            refunded = self.tried.refund(Refund::Always);
        }
        // So may another stream where one was refused without being processed, and another connection where one was lost
        // with many streams, whichever of them was the cause.
        let same = error.stale || error.failure == UpstreamError::Refused || failed.connection_lost;
        let mut target = other.or_else(|| same.then(|| Arc::clone(at)));
        if target.is_none() && !error.sent {
            // All are out: one that is back by now can still take it.
            target = Box::pin(upstream.select_after_check(key)).await;
        }
        (target, refunded)
    }

    /// Whether the retries, the method and the budget permit an attempt at `target` after one that failed.
    fn permits_retry(&self, failed: &Failed, target: &Arc<Endpoint>, began: Duration) -> bool {
        let Failed { error, connection_lost, .. } = failed;
        let (failure, sent) = (error.failure, error.sent);
        let is_retriable = error.stale
            || self.retries.on_failure(failure)
            || *connection_lost && self.retries.on_failure(UpstreamError::Reset);
        // A request that another one's response took along with their connection is no further load either.
        let ended_by_another = *connection_lost && failed.blameless;
        is_retriable
            && self.tried.permit_another(self.retries, &self.request.head.method, sent)
            && (ended_by_another
                || is_no_further_load(failed, target, began, self.upstream.clock.uptime())
                || self.upstream.has_budget(self.retries))
    }

    /// Ends the request with the failure of its last attempt.
    fn give_up(
        &self,
        failed: Failed,
        cause: Cow<'static, str>,
        content: Option<RequestContent>,
    ) -> Next {
        let Failed { error, endpoint, counted, .. } = failed;
        let failure = SendFailure {
            failure: error.failure,
            endpoint: Some(endpoint),
            cause,
            attempts: self.tried.count(),
            sent: error.sent,
            content,
        };
        Next::End(Err(Box::new(if counted { failure } else { self.upstream.lost(failure) })))
    }
}

/// Whether the repetition of a request is no further load for the upstream: a dead endpoint takes no requests, and one that
/// refuses has processed none, so that another endpoint that is well may take those that it had in flight.
fn is_no_further_load(
    failed: &Failed,
    target: &Arc<Endpoint>,
    began: Duration,
    now: Duration,
) -> bool {
    let Failed { error, endpoint: at, .. } = failed;
    let is_reset = error.failure.reason() == Some(UpstreamFailure::Reset);
    let died = error.stale || at.health.was_lost_after(began);
    (!error.sent || is_reset && died) && !Arc::ptr_eq(target, at) && target.health.is_available(now)
}

/// How often a request of which nothing was received is sent to the same endpoint again before others are tried.
const MAX_REFUNDS_IN_PLACE: u32 = 3;
