//! Sends a request: attempts at one endpoint after another until there is a response.

use core::time::Duration;
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use http::{Response, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::attempt_result::Failed;
use super::extra_headers::OutgoingRequest;
use super::send_options::{RequestContent, SendOptions};
use super::tunnel::Tunnel;
use crate::base::body::Body;
use crate::http1::BodyWriter;
use crate::observe::metrics::UpstreamFailure;
use crate::upstream::Upstream;
use crate::upstream::balancing::attempted_endpoints::AttemptedEndpoints;
use crate::upstream::balancing::endpoint::{Dial, Endpoint};
use crate::upstream::balancing::load_balancer::Choice;
use crate::upstream::error::UpstreamError;
use crate::upstream::health::circuit_breaker::CircuitState;
use crate::upstream::health::endpoint_health::{EndpointState, Outcome};
use crate::upstream::http1;

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
        let retries = options.retries.unwrap_or(&self.settings.retries);
        let method = &request.head.method;
        let mut tried = AttemptedEndpoints::default();
        let RequestContent { mut writer, whole } = content;
        let anew = || whole.clone().map(|whole| Box::new(BodyWriter::new(whole.into())));
        let mut now = options.began;
        if let Some((settings, circuit)) = &self.circuit
            && circuit.state() != CircuitState::Closed
        {
            let content = RequestContent { writer, whole };
            let seconds = circuit.seconds_to_probe(settings, now);
            let failure = UpstreamError::CircuitOpen { seconds };
            return Err(Box::new(self.lost(SendFailure::unsent(
                failure,
                failure.cause(),
                content,
            ))));
        }
        let mut next = self.select(&tried, now, options.key);
        self.budget.requested();
        if next.as_ref().is_some_and(|endpoint| *endpoint.dial() == Dial::Unresolved) {
            next = Box::pin(self.select_resolved(options.key)).await;
            now = self.clock.uptime();
        }
        if next.is_none() {
            next = Box::pin(self.select_after_check(options.key)).await;
        }
        let Some(mut endpoint) = next else {
            let content = RequestContent { writer, whole };
            let failure = UpstreamError::NoEndpoint;
            return Err(Box::new(self.lost(SendFailure::unsent(
                failure,
                self.unavailable(),
                content,
            ))));
        };
        loop {
            tried.add(&endpoint);
            let began = now;
            let mut outcome = match options.deadline {
                None => self.attempt(&endpoint, request, writer, &options, &mut tried, now).await,
                Some(deadline) => {
                    let attempt =
                        self.attempt(&endpoint, request, writer, &options, &mut tried, now);
                    // Boxed: few requests have a deadline, and all carry this future.
                    let outcome = Box::pin(timeout_at(deadline, attempt)).await;
                    outcome.unwrap_or_else(|_| Err(Failed::overdue(Arc::clone(&endpoint))))
                }
            };
            let may_repeat = || {
                let has_other = || self.endpoints.load().members.len() > 1;
                whole.is_some()
                    && method.is_idempotent()
                    && (options.has_fallback
                        || tried.permit_another(retries, method, false) && has_other())
            };
            if matches!(&outcome, Ok(answered) if answered.may_be_small())
                && may_repeat()
                && let Ok(answered) = outcome
            {
                let limit = answered.max_hold(options.within(Instant::now()));
                outcome = Box::pin(self.hold(answered, limit)).await;
            }
            match outcome {
                Ok(answered) => {
                    now = answered.at;
                    let status = answered.response.status();
                    let blames = blames_endpoint(status) || answered.is_failed_call;
                    let blamed = blames && !answered.early;
                    if blamed && !answered.is_failed_call {
                        answered.endpoint.health.failed(&format!("status {}", status.as_u16()));
                    }
                    if !blames || blamed {
                        let outcome = answered.outcome(!blamed);
                        self.passive.judge(&answered.endpoint, outcome, began, now);
                    }
                    if retries.on_status(status)
                        && !options.is_over()
                        && let Some(again) = anew()
                        && let Some(other) = self.select(&tried, now, options.key)
                        && tried.permit_another(retries, method, true)
                        && self.has_budget(retries)
                    {
                        (writer, endpoint) = (again, other);
                        continue;
                    }
                    if tried.count() > 1 {
                        self.metrics.retried(!retries.on_status(status));
                    }
                    return Ok(UpstreamResponse {
                        response: answered.response,
                        tunnel: answered.tunnel,
                        endpoint: answered.endpoint,
                        attempts: tried.count(),
                        waited: now.saturating_sub(options.began),
                    });
                }
                Err(Failed {
                    error: http1::SendError { failure, .. }, endpoint, cause, ..
                }) if matches!(failure, UpstreamError::Deadline { .. }) => {
                    let cause = cause.map_or_else(|| failure.cause(), Cow::Owned);
                    if failure == (UpstreamError::Deadline { silent: true }) {
                        // The client chose the time: that takes out one of several endpoints, but opens no circuit.
                        self.passive.failed(&endpoint, &cause, began);
                    }
                    let (endpoint, attempts) = (Some(endpoint), tried.count());
                    let (sent, content) = (true, None);
                    let failed = SendFailure { failure, endpoint, cause, attempts, sent, content };
                    return Err(Box::new(self.lost(failed)));
                }
                Err(failed) => {
                    let Failed { error, endpoint: at, cause, counted, .. } = failed;
                    let Failed { connection_lost, in_vain, alone_in_vain, blameless, .. } = failed;
                    now = self.clock.uptime();
                    let http1::SendError { failure, sent, stale, early, anew: unsent } = error;
                    let refused = failure == UpstreamError::Refused;
                    let is_fault = (failure.is_endpoint_fault() || refused) && !stale && !early;
                    let blames = is_fault && !blameless || in_vain;
                    let is_recorded = cause.is_some();
                    let cause = cause.map_or_else(|| failure.cause(), Cow::Owned);
                    if is_recorded && blames {
                        // The addresses that the attempt tried were recorded where they failed.
                        self.passive.judge_circuit(&at, Outcome::Failed, began, now);
                    } else if blames {
                        at.health.failed(&cause);
                        let is_lost = failure.is_lost_connection();
                        if !counted {
                            let outcome = if is_lost { Outcome::Lost } else { Outcome::Failed };
                            self.passive.judge(&at, outcome, began, now);
                        }
                        if is_lost {
                            // Its process may have ended: the control runtime finds out before another request does.
                            at.suspect();
                        }
                    }
                    let failed = |tried: &AttemptedEndpoints, content| {
                        let (attempts, endpoint) = (tried.count(), Some(Arc::clone(&at)));
                        let failed =
                            SendFailure { failure, endpoint, cause, attempts, sent, content };
                        Box::new(if counted { failed } else { self.lost(failed) })
                    };
                    let again = unsent.or_else(|| if sent { anew() } else { None });
                    let Some(again) = again else { return Err(failed(&tried, None)) };
                    // An idle connection that accepts nothing costs that connection, but not the request.
                    let mut refunded = stale && !sent && tried.refund(alone_in_vain);
                    let other = || self.select(&tried, now, options.key);
                    // A new connection to the same endpoint may work where an idle one was closed, but not always.
                    let other = if refunded && tried.refunds() < MAX_REFUNDS_IN_PLACE {
                        None
                    } else {
                        other()
                    };
                    if failure == UpstreamError::Overflow
                        && other.as_ref().is_some_and(|other| other.load() < other.capacity())
                    {
                        // Of an endpoint without a place, nothing was asked.
                        refunded = tried.refund(false);
                    }
                    // So may another stream where one was refused without being processed, and another connection where
                    // one was lost with many streams, whichever of them was the cause.
                    let same = stale || refused || connection_lost;
                    let mut target = other.or_else(|| same.then(|| Arc::clone(&at)));
                    if target.is_none() && !sent {
                        // All are out: one that is back by now can still take it.
                        target = Box::pin(self.select_after_check(options.key)).await;
                    }
                    let retriable = stale
                        || retries.on_failure(failure)
                        || connection_lost && retries.on_failure(UpstreamError::Reset);
                    // A dead endpoint takes no requests, and one that refuses has processed none: where another is well,
                    // those that it had in flight are no further load for the upstream.
                    let died = stale || at.health.was_lost_after(began);
                    // Nor is a request that another one's response took along with their connection.
                    let taken_along = connection_lost && blameless;
                    let is_reset = failure.reason() == Some(UpstreamFailure::Reset);
                    let moves = |target: &Arc<Endpoint>| {
                        (!sent || is_reset && died)
                            && !Arc::ptr_eq(target, &at)
                            && target.health.is_available(now)
                    };
                    if let Some(target) = target
                        && !options.is_over()
                        && (refunded
                            || retriable
                                && tried.permit_another(retries, method, sent)
                                && (taken_along || moves(&target) || self.has_budget(retries)))
                    {
                        if !stale && !counted {
                            self.count(failure);
                        }
                        if connection_lost {
                            tried.share_no_connection();
                        }
                        (writer, endpoint) = (again, target);
                        continue;
                    }
                    let content = Some(RequestContent { writer: again, whole });
                    return Err(failed(&tried, content));
                }
            }
        }
    }

    /// Returns the endpoint for the next attempt; `None` if all were attempted or are out.
    fn select(
        &self,
        tried: &AttemptedEndpoints,
        now: Duration,
        key: Option<u64>,
    ) -> Option<Arc<Endpoint>> {
        let set = self.endpoints.load();
        if let [only] = &*set.members
            && tried.count() == 0
            && only.endpoint.state(now, Duration::ZERO) == EndpointState::Healthy
        {
            return Some(Arc::clone(&only.endpoint));
        }
        // One turn for each request, however many attempts it has: else retries would decide who has the first.
        let turn = match tried.count() {
            0 => self.turn.fetch_add(1, Relaxed),
            _ => self.turn.load(Relaxed),
        };
        let balance = self.settings.balance;
        let choice = Choice { balance, turns: &set.turns, turn, key };
        let view = set.view(&self.settings, now, |endpoint| tried.contains(endpoint));
        let index = choice.among(set.members.len(), view)?;
        Some(Arc::clone(&set.members[index].endpoint))
    }

    /// Selects an endpoint after the control runtime has tried anew to connect to those that are unreachable, if it does
    /// so within [`CHECK_WAIT`]: no request is needed to find out, and none fails after a restart of the upstream.
    async fn select_after_check(&self, key: Option<u64>) -> Option<Arc<Endpoint>> {
        if self.settings.health_check.is_some() {
            return None;
        }
        let set = self.endpoints.load_full();
        let unreachable = set.members.iter().filter(|member| {
            let state = member.endpoint.state(self.clock.uptime(), Duration::ZERO);
            state == EndpointState::Unreachable
        });
        let deadline = tokio::time::Instant::now() + CHECK_WAIT;
        // Enabled before the checks begin: none of them is missed.
        let mut checked = core::pin::pin!(self.checked.notified());
        checked.as_mut().enable();
        let count = unreachable.map(|member| member.endpoint.report_refusal()).count();
        for _ in 0..count {
            tokio::time::timeout_at(deadline, checked.as_mut()).await.ok()?;
            checked.set(self.checked.notified());
            checked.as_mut().enable();
            let now = self.clock.uptime();
            if let Some(endpoint) = self.select(&AttemptedEndpoints::default(), now, key) {
                return Some(endpoint);
            }
        }
        None
    }

    /// Selects an endpoint after the first answer of name resolution, which is waited for up to `connect_timeout`.
    async fn select_resolved(&self, key: Option<u64>) -> Option<Arc<Endpoint>> {
        let mut resolved = core::pin::pin!(self.resolved.notified());
        resolved.as_mut().enable();
        let select = || self.select(&AttemptedEndpoints::default(), self.clock.uptime(), key);
        let selected = select();
        if selected.as_ref().is_some_and(|endpoint| *endpoint.dial() != Dial::Unresolved) {
            return selected;
        }
        // Without an answer, the attempt at the unresolved endpoint fails with the cause.
        let _ = tokio::time::timeout(self.settings.connect_timeout, resolved).await;
        select()
    }

    /// Describes for the log why no endpoint is available.
    fn unavailable(&self) -> Cow<'static, str> {
        let out = self.endpoints();
        let each = out.iter().take(MAX_DESCRIBED_ENDPOINTS).map(|(endpoint, state, _)| {
            let cause = endpoint.last_failure();
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{} is {}{cause}", endpoint.name(), state.word())
        });
        each.collect::<Vec<_>>().join("; ").into()
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

/// Whether a status shows that the endpoint is unhealthy, and not only that the request is unsupported.
pub(crate) fn blames_endpoint(status: StatusCode) -> bool {
    let asked_for = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
    status.is_server_error() && !asked_for.contains(&status)
}

/// How often a request that nothing of was processed is sent to the same endpoint again before others are tried.
const MAX_REFUNDS_IN_PLACE: u32 = 3;
/// How long a request waits for the control runtime to connect to an upstream all of whose endpoints are unreachable.
const CHECK_WAIT: Duration = Duration::from_millis(60);
/// The maximum number of endpoints that the log describes.
const MAX_DESCRIBED_ENDPOINTS: usize = 4;
