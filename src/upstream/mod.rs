//! Upstreams: load balancing, retries, and clients of HTTP/1.1 and HTTP/2 (floor 2).
//!
//! An *upstream* is a service; an *endpoint* is one address of it. A request is
//! sent on one of this thread's idle connections to the endpoint that `load_balancer`
//! selects, or on a new one; `retry` decides about another attempt. The HTTP/1.1 client
//! (`http1`) is written for the gateway, because it is the
//! largest part of a request's cost: a connection belongs to the request that
//! uses it, so there is no second task and no channel between them. In HTTP/2 (`http2`,
//! with hyper) a connection is shared by many requests.

mod connect;
mod connection_pool;
mod counted;
mod endless;
mod endpoint;
mod error;
mod extra_headers;
mod http1;
mod http2;
mod load_balancer;
mod retry;
mod settings;
mod tls_connectors;
mod tls_records;

use core::cell::RefCell;
use core::pin::Pin;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use core::task::{Context, Poll};
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, UPGRADE};
use http::{Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};

use self::connect::connect;
pub use self::connect::enable_keep_alive;
pub use self::connection_pool::IdlePool;
use self::endless::is_endless;
use self::endpoint::EndpointPermit;
pub use self::endpoint::{Endpoint, EndpointKey};
pub use self::error::UpstreamError;
pub use self::extra_headers::{ExtraHeaders, OutgoingRequest};
pub use self::http1::Tunnel;
#[cfg(fuzzing)]
pub use self::http1::fuzz;
use self::http1::{BodyKind, Connection, RemainingUpload};
#[cfg(fuzzing)]
pub use self::http2::fuzz as http2_fuzz;
use self::http2::{Acquired, PoolSettings};
use self::load_balancer::{AttemptedEndpoints, round_robin, scatter, two_of};
pub use self::settings::{
    Address, Balance, HostHeader, Http2, Outlier, Retries, RetryOn, Scheme, Settings, Target, Tls,
};
use self::tls_connectors::Offer;
use crate::base::body::{self, Body};
use crate::base::clock::Clock;
use crate::base::weak_map::WeakMap;
use crate::http1::BodyWriter;
use crate::observe::metrics::{LabeledGauge, Metrics, UpstreamMetrics};
use crate::tls::TlsError;

/// One upstream. Shared by all workers.
#[derive(Debug)]
pub struct Upstream {
    settings: Settings,
    endpoints: Box<[Arc<Endpoint>]>,
    /// Indices of `endpoints` in the order of round robin.
    turns: Box<[u16]>,
    turn: AtomicUsize,
    budget: retry::Budget,
    /// One gauge per endpoint; the series are exported while this value exists.
    healthy: Box<[Arc<LabeledGauge>]>,
    metrics: Arc<UpstreamMetrics>,
    clock: Clock,
}

/// The head of an upstream's response, with data about the attempts.
#[derive(Debug)]
pub struct UpstreamResponse {
    /// The response, without hop-by-hop fields; its body streams.
    pub response: Response<Body>,
    /// The connection itself, if the upstream switched protocols (status 101).
    pub tunnel: Option<Tunnel>,
    /// The endpoint that responded.
    pub endpoint: Arc<Endpoint>,
    /// The number of attempts, at least 1.
    pub attempts: u32,
    /// The time spent waiting for the response head, all attempts together.
    pub waited: Duration,
}

impl Upstream {
    /// Creates the upstream; existing endpoints are shared, with their load and health.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if the authorities or the identity cannot be used.
    pub fn new(
        settings: Settings,
        registry: &WeakMap<EndpointKey, Endpoint>,
        clock: Clock,
        metrics: &Metrics,
    ) -> Result<Self, TlsError> {
        let metrics = metrics.upstream(&settings.name);
        let connectors = tls_connectors::connectors(&settings)?;
        let endpoints = settings
            .targets
            .iter()
            .map(|target| {
                let tls = match (&connectors, target.address.scheme) {
                    (Some(connectors), Scheme::Https) => {
                        Some((connectors.clone(), tls_connectors::server_name(&settings, target)?))
                    }
                    _ => None,
                };
                Ok(registry.get_or_insert_with(EndpointKey::new(&settings, target), || {
                    Endpoint::new(&settings, target, tls)
                }))
            })
            .collect::<Result<Box<[_]>, TlsError>>()?;
        let healthy = endpoints.iter().map(|endpoint| metrics.target(endpoint.name())).collect();
        let turns = load_balancer::round_robin_schedule(&settings.targets);
        let budget = retry::Budget::new(settings.retries.budget);
        Ok(Self {
            settings,
            endpoints,
            turns,
            turn: AtomicUsize::new(0),
            budget,
            healthy,
            metrics,
            clock,
        })
    }

    /// Returns the settings.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns its endpoints, each with whether it is healthy at the moment.
    pub fn endpoints(&self) -> impl Iterator<Item = (&Endpoint, bool)> {
        let now = self.clock.uptime();
        self.endpoints.iter().map(move |endpoint| (&**endpoint, !endpoint.is_ejected(now)))
    }

    /// Sends a request and waits for the response head.
    ///
    /// `Host` and the framing are decided here. `wait` is the timeout until the response
    /// head, `began` the uptime of this moment.
    ///
    /// # Errors
    ///
    /// [`UpstreamError`] of the last attempt.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the connection.
    pub async fn send(
        &self,
        request: OutgoingRequest<'_>,
        body: Body,
        idle: &IdlePool,
        wait: Duration,
        began: Duration,
    ) -> Result<UpstreamResponse, UpstreamError> {
        let (mut tried, mut last) = (AttemptedEndpoints::default(), None);
        // Only a request without a body can be sent again after a response.
        let repeatable = body.is_end_stream();
        let mut sending = BodyWriter::new(body);
        let mut now = began;
        // The endpoint whose idle connection turned out to be closed: a new connection may work.
        let mut anew = None;
        // The endpoint that refused the request without processing it, for want of another one.
        let mut refused = None;
        self.budget.requested();
        loop {
            let selected = anew.take().or_else(|| self.select(&tried, now));
            let Some(index) = selected.or_else(|| refused.take()) else {
                // Without a further endpoint, the previous failure is the result.
                return Err(last.unwrap_or_else(|| self.lost(UpstreamError::NoEndpoint, &tried)));
            };
            tried.add(index);
            let endpoint = &self.endpoints[index];
            match self.attempt(endpoint, &request, sending, idle, &tried, wait, now).await {
                Ok(Answered { response, tunnel, at, early }) => {
                    now = at;
                    let status = response.status();
                    let blamed = blames_endpoint(status) && !early;
                    if !blames_endpoint(status) || blamed {
                        self.judge(index, !blamed, now);
                    }
                    let again = repeatable && self.settings.retries.on_status(status);
                    if again && self.may_retry(&request.head.method, &tried, true) {
                        sending = BodyWriter::new(Body::empty());
                        continue;
                    }
                    if tried.count() > 1 {
                        self.metrics.retried(!again);
                    }
                    let endpoint = Arc::clone(endpoint);
                    let waited = now.saturating_sub(began);
                    return Ok(UpstreamResponse {
                        response,
                        tunnel,
                        endpoint,
                        attempts: tried.count(),
                        waited,
                    });
                }
                Err(http1::SendError { failure, sent, stale, early, anew: request_anew }) => {
                    now = self.clock.uptime();
                    if failure.is_endpoint_fault() && !stale && !early {
                        self.judge(index, false, now);
                    }
                    let again = stale || self.settings.retries.on_failure(failure);
                    // An idle connection that accepts nothing costs that connection, whose attempt is counted, but not the
                    // request.
                    let unsent = stale && !sent;
                    match request_anew {
                        Some(request_anew)
                            if unsent
                                || again && self.may_retry(&request.head.method, &tried, sent) =>
                        {
                            if stale {
                                anew = Some(index);
                            } else {
                                self.count(failure);
                                refused = (failure == UpstreamError::Refused).then_some(index);
                            }
                            last = Some(failure);
                            sending = request_anew;
                        }
                        // An upstream that closes on a client that is slow has not failed.
                        _ if early => return Err(failure),
                        _ => return Err(self.lost(failure, &tried)),
                    }
                }
            }
        }
    }

    /// Returns the endpoint for the next attempt; `None` if all were attempted or are ejected.
    fn select(&self, tried: &AttemptedEndpoints, now: Duration) -> Option<usize> {
        if let ([_], 0) = (&*self.endpoints, tried.count()) {
            return Some(0);
        }
        let open = |index: usize, backup: bool| {
            self.settings.targets[index].backup == backup
                && !tried.contains(index)
                && !self.may_be_selected(&self.endpoints[index], now)
        };
        self.pick_among(|index| open(index, false))
            .or_else(|| self.pick_among(|index| open(index, true)))
    }

    fn pick_among(&self, open: impl Fn(usize) -> bool) -> Option<usize> {
        let candidates = 0..self.endpoints.len();
        match self.settings.balance {
            Balance::RoundRobin => {
                let turn = self.turn.fetch_add(1, Relaxed);
                round_robin(&self.turns, turn, open)
            }
            Balance::LeastRequests => {
                candidates.filter(|&i| open(i)).min_by(|&a, &b| self.busier(a, b))
            }
            Balance::RandomTwo => {
                let chance = scatter(self.turn.fetch_add(1, Relaxed) as u64);
                let candidates: Vec<_> = candidates.filter(|&i| open(i)).collect();
                let (a, b) = two_of(&candidates, chance)?;
                Some(if self.busier(a, b).is_le() { a } else { b })
            }
        }
    }

    /// Compares requests in flight per weight, by cross multiplication.
    fn busier(&self, a: usize, b: usize) -> core::cmp::Ordering {
        let load = |i: usize| u64::from(self.endpoints[i].load());
        let weight = |i: usize| u64::from(self.settings.targets[i].weight);
        (load(a) * weight(b)).cmp(&(load(b) * weight(a)))
    }

    /// Whether an ejected endpoint is selected anyway: at most `max_ejected` percent of them are left out.
    fn may_be_selected(&self, endpoint: &Endpoint, now: Duration) -> bool {
        if !endpoint.is_ejected(now) {
            return false;
        }
        let ejected = self.endpoints.iter().filter(|e| e.is_ejected(now)).count();
        ejected * 100 <= self.endpoints.len() * usize::from(self.settings.outlier.max_ejected)
    }

    /// Makes one attempt at one endpoint, begun at the uptime `began`.
    #[expect(clippy::too_many_arguments, reason = "the state of an attempt belongs to the loop")]
    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &OutgoingRequest<'_>,
        sending: BodyWriter,
        idle: &IdlePool,
        tried: &AttemptedEndpoints,
        wait: Duration,
        began: Duration,
    ) -> Result<Answered, http1::SendError> {
        let host = match &self.settings.host_header {
            HostHeader::Fixed(name) => Some(name),
            HostHeader::Preserve if request.head.headers.contains_key(HOST) => None,
            // HTTP/1.0 clients need not send `Host`; HTTP/1.1 upstreams require it.
            HostHeader::Target | HostHeader::Preserve => Some(endpoint.host()),
        };
        let Some(load) = endpoint.admit(self.settings.connect_timeout).await else {
            return Err(http1::SendError::not_sent(UpstreamError::Overflow, sending));
        };
        let since = self.clock.instant(began);
        let (mut sending, mut opened) = (sending, None);
        if self.settings.http2.is_possible(endpoint.address().scheme)
            && !request.head.headers.contains_key(UPGRADE)
        {
            sending = match sending.into_untouched() {
                Err(sending) => *sending,
                Ok(body) => match self.place(endpoint, idle, began).await {
                    Err(failure) => {
                        return Err(http1::SendError::not_sent(failure, BodyWriter::new(body)));
                    }
                    Ok(Acquired::Http1(stream)) => {
                        opened = stream;
                        BodyWriter::new(body)
                    }
                    Ok(Acquired::Http2(place)) => {
                        let exchange = http2::Exchange {
                            request,
                            host,
                            scheme: endpoint.address().scheme,
                            wait,
                            since,
                            idle_timeout: self.settings.idle_timeout,
                            metrics: Arc::clone(&self.metrics),
                        };
                        // Boxed: it is large, and requests in HTTP/1.1 would carry it.
                        let reply = Box::pin(exchange.run(place, load, body)).await;
                        return self.over_http2(reply, tried, began);
                    }
                },
            };
        }
        // All idle connections may be closed by now: only the first attempt uses one.
        let kept =
            if tried.count() == 1 && opened.is_none() { idle.take(endpoint, began) } else { None };
        let reply = if let Some(connection) = kept {
            let stale = |lost: http1::SendError| {
                // The upstream has just closed an idle connection: `send` decides whether the request is sent
                // again.
                http1::SendError { stale: lost.failure == UpstreamError::Reset, ..lost }
            };
            connection.exchange(request, host, sending, wait, since).await.map_err(stale)?
        } else {
            let connected = match opened {
                Some(stream) => Ok(stream),
                None => connect(endpoint, self.settings.connect_timeout, Offer::Http1).await,
            };
            match connected {
                Ok(stream) => {
                    let connection = Connection::new(stream, Arc::clone(&self.metrics));
                    connection.exchange(request, host, sending, wait, since).await?
                }
                Err(failure) => return Err(http1::SendError::not_sent(failure, sending)),
            }
        };
        let now = self.clock.uptime();
        self.metrics.answered(reply.response.status().as_u16(), now.saturating_sub(began));
        let held = |load| Held {
            endpoint: Arc::clone(endpoint),
            load,
            idle: idle.clone(),
            keep_alive: self.settings.keep_alive,
            time_limit: wait,
            clock: self.clock.clone(),
        };
        let (body, tunnel) = match reply.content {
            BodyKind::Whole(whole, rest) if rest.is_over() => {
                if let Some(connection) = rest.reusable() {
                    idle.put(endpoint, connection, now, self.settings.keep_alive);
                }
                (whole.into(), None)
            }
            BodyKind::Whole(whole, rest) => {
                held(load).release(rest);
                (whole.into(), None)
            }
            BodyKind::Streaming(content) => {
                (self.flowing(content, &reply.response, held(load)), None)
            }
            BodyKind::Tunnel(tunnel) => (Body::empty(), Some(tunnel)),
        };
        let response = reply.response.map(|()| body);
        Ok(Answered { response, tunnel, at: now, early: reply.early })
    }

    /// Finds a way to send a request to an endpoint that may speak HTTP/2.
    async fn place(
        &self,
        endpoint: &Arc<Endpoint>,
        idle: &IdlePool,
        now: Duration,
    ) -> Result<Acquired, UpstreamError> {
        let settings = PoolSettings {
            connect_timeout: self.settings.connect_timeout,
            keep_alive: self.settings.keep_alive,
            metrics: Arc::clone(&self.metrics),
        };
        idle.http2().acquire(endpoint, &settings, now).await
    }

    /// Turns the outcome of an attempt in HTTP/2 into that of any attempt.
    fn over_http2(
        &self,
        reply: Result<http2::Reply, http2::SendError>,
        tried: &AttemptedEndpoints,
        began: Duration,
    ) -> Result<Answered, http1::SendError> {
        match reply {
            Ok(http2::Reply { response, early }) => {
                let now = self.clock.uptime();
                self.metrics.answered(response.status().as_u16(), now.saturating_sub(began));
                Ok(Answered { response, tunnel: None, at: now, early })
            }
            Err(http2::SendError { failure, sent, stale, early, anew }) => {
                // An upstream that closes every connection at once is not asked for ever.
                let stale = stale && tried.count() == 1;
                let anew = anew.map(BodyWriter::new);
                Err(http1::SendError { failure, sent, stale, early, anew })
            }
        }
    }

    /// Wraps a response body that holds its permit at the endpoint until it ends.
    fn flowing(
        &self,
        content: Rc<RefCell<http1::ResponseBody>>,
        response: &Response<()>,
        held: Held,
    ) -> Body {
        // Silence is not an error there.
        let endless = is_endless(response.headers());
        content.borrow_mut().within((!endless).then_some(self.settings.idle_timeout));
        let upload = http1::ResponseBody::upload(&content);
        Body::streaming(PooledBody { content, held: Some(held) }).with_cut(upload)
    }

    /// Updates the metrics of the endpoints' health.
    pub fn refresh_health(&self) {
        for ((_, healthy), gauge) in self.endpoints().zip(&self.healthy) {
            gauge.set(i64::from(healthy));
        }
    }

    /// Records the outcome of an attempt for passive health checks.
    fn judge(&self, index: usize, well: bool, now: Duration) {
        if self.endpoints[index].answered(well, &self.settings.outlier, now) {
            self.healthy[index].set(i64::from(well));
        }
    }

    fn lost(&self, failure: UpstreamError, tried: &AttemptedEndpoints) -> UpstreamError {
        self.count(failure);
        if tried.count() > 1 {
            self.metrics.retried(false);
        }
        failure
    }

    fn count(&self, failure: UpstreamError) {
        if let Some(reason) = failure.reason() {
            self.metrics.failed(reason);
        }
    }
}

/// The result of an attempt with a response.
struct Answered {
    response: Response<Body>,
    tunnel: Option<Tunnel>,
    /// The uptime of the response head.
    at: Duration,
    /// Whether the request had not ended.
    early: bool,
}

/// Whether a status shows that the endpoint is unhealthy, and not only that the request is unsupported.
fn blames_endpoint(status: StatusCode) -> bool {
    let asked_for = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
    status.is_server_error() && !asked_for.contains(&status)
}

/// A permit at an endpoint during one exchange.
struct Held {
    endpoint: Arc<Endpoint>,
    load: EndpointPermit,
    idle: IdlePool,
    keep_alive: Duration,
    /// The timeout for an upstream that reads nothing of the request.
    time_limit: Duration,
    clock: Clock,
}

impl Held {
    /// Releases the permit: the response is complete; once the request is too, the connection is idle again.
    fn release(self, rest: RemainingUpload) {
        if rest.is_over() {
            return self.keep(rest.reusable());
        }
        // The rest of the request is sent independently of the response, which may end long before.
        tokio::task::spawn_local(async move {
            let connection = rest.send(self.time_limit).await;
            self.keep(connection);
        });
    }

    fn keep(self, connection: Option<Box<Connection>>) {
        let Self { endpoint, load, idle, keep_alive, clock, .. } = self;
        if let Some(connection) = connection {
            idle.put(&endpoint, connection, clock.uptime(), keep_alive);
        }
        drop(load);
    }
}

/// A response body on its way to the client.
struct PooledBody {
    content: Rc<RefCell<http1::ResponseBody>>,
    /// `None` once the body has ended.
    held: Option<Held>,
}

impl http_body::Body for PooledBody {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let this = self.get_mut();
        let mut content = this.content.borrow_mut();
        let polled = Pin::new(&mut *content).poll_frame(cx);
        if let Some(rest) = content.rest()
            && let Some(held) = this.held.take()
        {
            held.release(rest);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.content.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.content.borrow().size_hint()
    }
}

#[cfg(test)]
mod tests;
