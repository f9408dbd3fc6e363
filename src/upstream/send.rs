//! Sends a request: attempts at one endpoint after another until there is a response.

use core::cell::RefCell;
use core::time::Duration;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::header::{HOST, UPGRADE};
use http::{Response, StatusCode};
use http_body::Body as _;

use super::Upstream;
use super::attempts::AttemptedEndpoints;
use super::connect::{ConnectError, Stream, connect, race};
use super::connection_pool::IdlePool;
use super::endless::is_endless;
use super::endpoint::{Endpoint, EndpointPermit};
use super::endpoint_set::EndpointSet;
use super::error::{SendFailure, UpstreamError};
use super::extra_headers::OutgoingRequest;
use super::health::EndpointState;
use super::http1::{self, BodyKind, Connection, Tunnel};
use super::http2::{self, Acquired, PoolSettings};
use super::load_balancer::Choice;
use super::pooled_body::{Held, PooledBody};
use super::settings::{HostHeader, Retries};
use super::tls_connectors::Offer;
use crate::base::body::Body;
use crate::http1::BodyWriter;

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

/// The settings of one request.
#[derive(Clone, Copy, Debug)]
pub struct SendOptions<'a> {
    /// The idle connections of this thread.
    pub idle: &'a IdlePool,
    /// The timeout until the response head.
    pub wait: Duration,
    /// The uptime of this moment.
    pub began: Duration,
    /// The retry policy; `None` is the upstream's.
    pub retries: Option<&'a Retries>,
    /// The hash of the value that selects the endpoint, where the upstream balances by hash.
    pub key: Option<u64>,
}

/// The content of a request, until it is sent.
#[derive(Debug)]
pub struct RequestContent {
    writer: BodyWriter,
    /// The whole content, if it is in memory: it can be sent again after a part of it was sent.
    whole: Option<Bytes>,
}

impl RequestContent {
    /// Prepares `body` for sending.
    pub fn new(body: Body) -> Self {
        // A body that has ended is empty, whatever its kind.
        let whole = if body.is_end_stream() { Some(Bytes::new()) } else { body.buffered() };
        Self { writer: BodyWriter::new(body), whole }
    }

    /// Whether the content can be sent again after a response.
    pub const fn is_repeatable(&self) -> bool {
        self.whole.is_some()
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
        let anew = || whole.clone().map(|whole| BodyWriter::new(whole.into()));
        let mut now = options.began;
        let mut next = self.select(&tried, now, options.key);
        self.budget.requested();
        if next.is_none() {
            next = Box::pin(self.select_after_check(options.key)).await;
        }
        let Some(mut endpoint) = next else {
            let content = Some(RequestContent { writer, whole });
            let cause = self.unavailable();
            return Err(self.lost(UpstreamError::NoEndpoint, None, cause, &tried, false, content));
        };
        loop {
            tried.add(&endpoint);
            match self.attempt(&endpoint, request, writer, &options, &mut tried, now).await {
                Ok(answered) => {
                    now = answered.at;
                    let status = answered.response.status();
                    let blamed = blames_endpoint(status) && !answered.early;
                    if !blames_endpoint(status) || blamed {
                        self.judge(&answered.endpoint, !blamed, now);
                    }
                    if retries.on_status(status)
                        && let Some(again) = anew()
                        && let Some(other) = self.select(&tried, now, options.key)
                        && self.may_retry(retries, method, &tried, true)
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
                Err(Failed { error, endpoint: at, cause }) => {
                    now = self.clock.uptime();
                    let http1::SendError { failure, sent, stale, early, anew: unsent } = error;
                    // Failures to connect were recorded where they happened.
                    if cause.is_none() && failure.is_endpoint_fault() && !stale && !early {
                        at.health.failed(failure.cause());
                        self.judge(&at, false, now);
                    }
                    let cause = cause.map_or(Cow::Borrowed(failure.cause()), Cow::Owned);
                    let again = unsent.or_else(|| if sent { anew() } else { None });
                    let Some(again) = again else {
                        return Err(self.failed(early, failure, at, cause, &tried, sent, None));
                    };
                    // An idle connection that accepts nothing costs that connection, but not the request.
                    let refunded = stale && !sent && tried.refund();
                    let other = || self.select(&tried, now, options.key);
                    // Without another endpoint, a new connection to the same one may work where an idle one was closed.
                    let other = if refunded { None } else { other() };
                    // So may another stream where one was refused without being processed.
                    let same = stale || failure == UpstreamError::Refused;
                    let target = other.or_else(|| same.then(|| Arc::clone(&at)));
                    let retriable = stale || retries.on_failure(failure);
                    if let Some(target) = target
                        && (refunded || retriable && self.may_retry(retries, method, &tried, sent))
                    {
                        if !stale {
                            self.count(failure);
                        }
                        (writer, endpoint) = (again, target);
                        continue;
                    }
                    let content = Some(RequestContent { writer: again, whole });
                    return Err(self.failed(early, failure, at, cause, &tried, sent, content));
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
        let (balance, turn) = (self.settings.balance, self.turn.fetch_add(1, Relaxed));
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
        let count = unreachable.map(|member| member.endpoint.suspect()).count();
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

    /// Makes one attempt at `endpoint`, or at another address of its target, begun at the uptime `began`.
    async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &OutgoingRequest<'_>,
        sending: BodyWriter,
        options: &SendOptions<'_>,
        tried: &mut AttemptedEndpoints,
        began: Duration,
    ) -> Result<Answered, Failed> {
        let (idle, wait) = (options.idle, options.wait);
        let failed = |error, endpoint: &Arc<Endpoint>| Failed {
            error,
            endpoint: Arc::clone(endpoint),
            cause: None,
        };
        let Some(load) = endpoint.admit(self.settings.connect_timeout).await else {
            let error = http1::SendError::not_sent(UpstreamError::Overflow, sending);
            return Err(failed(error, endpoint));
        };
        let since = self.clock.instant(began);
        let (mut endpoint, mut load) = (Arc::clone(endpoint), load);
        let (mut sending, mut opened) = (sending, None);
        if self.settings.http2.is_possible(endpoint.scheme())
            && !request.head.headers.contains_key(UPGRADE)
        {
            sending = match sending.into_untouched() {
                Err(sending) => *sending,
                Ok(body) => {
                    let acquired = match idle.http2().ready(&endpoint, began) {
                        Some(acquired) => Ok((acquired, endpoint, load)),
                        None => Box::pin(self.place(&endpoint, load, tried, idle, began)).await,
                    };
                    let acquired = match acquired {
                        Ok((acquired, at, permit)) => {
                            (endpoint, load) = (at, permit);
                            acquired
                        }
                        Err((ConnectError { failure, cause }, at)) => {
                            let error = http1::SendError::not_sent(failure, BodyWriter::new(body));
                            return Err(Failed { error, endpoint: at, cause: Some(cause.into()) });
                        }
                    };
                    match acquired {
                        Acquired::Http1(stream) => {
                            opened = stream;
                            BodyWriter::new(body)
                        }
                        Acquired::Http2(place) => {
                            let exchange = http2::Exchange {
                                request,
                                host: self.host_for(request, &endpoint),
                                scheme: endpoint.scheme(),
                                wait,
                                since,
                                idle_timeout: self.settings.idle_timeout,
                                metrics: Arc::clone(&self.metrics),
                            };
                            // Boxed: it is large, and requests in HTTP/1.1 would carry it.
                            let reply = Box::pin(exchange.run(place, load, body)).await;
                            return self.over_http2(reply, endpoint, tried, began);
                        }
                    }
                }
            };
        }
        // All idle connections may be closed by now: only the first attempt uses one.
        let kept =
            if tried.count() == 1 && opened.is_none() { idle.take(&endpoint, began) } else { None };
        let reply = if let Some(connection) = kept {
            let stale = |lost: http1::SendError| {
                // The upstream has just closed an idle connection: `send` decides whether the request is sent
                // again.
                let stale = lost.failure == UpstreamError::Reset;
                failed(http1::SendError { stale, ..lost }, &endpoint)
            };
            let host = self.host_for(request, &endpoint);
            let reply = connection.exchange(request, host, sending, wait, since).await;
            reply.map_err(stale)?
        } else {
            let stream = match opened {
                Some(stream) => stream,
                None => match Box::pin(self.connection(&endpoint, load, tried)).await {
                    Ok((stream, at, permit)) => {
                        (endpoint, load) = (at, permit);
                        stream
                    }
                    Err(ConnectError { failure, cause }) => {
                        let error = http1::SendError::not_sent(failure, sending);
                        return Err(Failed { error, endpoint, cause: Some(cause.into()) });
                    }
                },
            };
            let connection = Connection::new(stream, Arc::clone(&self.metrics));
            let host = self.host_for(request, &endpoint);
            let reply = connection.exchange(request, host, sending, wait, since).await;
            reply.map_err(|error| failed(error, &endpoint))?
        };
        let now = self.clock.uptime();
        self.metrics.answered(reply.response.status().as_u16(), now.saturating_sub(began));
        let held = |load| Held {
            endpoint: Arc::clone(&endpoint),
            load,
            idle: idle.clone(),
            keep_alive: self.settings.keep_alive,
            time_limit: wait,
            clock: self.clock.clone(),
        };
        let (body, tunnel) = match reply.content {
            BodyKind::Whole(whole, rest) if rest.is_over() => {
                if let Some(connection) = rest.reusable() {
                    idle.put(&endpoint, connection, now, self.settings.keep_alive);
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
        Ok(Answered { response, tunnel, endpoint, at: now, early: reply.early })
    }

    /// Returns the `Host` field that replaces the one of the request.
    fn host_for<'a>(
        &'a self,
        request: &OutgoingRequest<'_>,
        endpoint: &'a Endpoint,
    ) -> Option<&'a http::HeaderValue> {
        match &self.settings.host_header {
            HostHeader::Fixed(name) => Some(name),
            HostHeader::Preserve if request.head.headers.contains_key(HOST) => None,
            // HTTP/1.0 clients need not send `Host`; HTTP/1.1 upstreams require it.
            HostHeader::Target | HostHeader::Preserve => Some(endpoint.host()),
        }
    }

    /// Opens a connection in HTTP/1.1 to `endpoint`, or to another address of the same name if that is faster (RFC 8305).
    async fn connection(
        &self,
        endpoint: &Arc<Endpoint>,
        load: EndpointPermit,
        tried: &mut AttemptedEndpoints,
    ) -> Result<(Stream, Arc<Endpoint>, EndpointPermit), ConnectError> {
        let limit = self.settings.connect_timeout;
        let all = self.with_other_addresses(endpoint, load, tried);
        race(
            all.into_iter(),
            async |endpoint| connect(&endpoint, limit, Offer::Http1).await,
            |slow, error| {
                tried.exclude(slow);
                self.refused(slow, error, self.clock.uptime());
            },
        )
        .await
    }

    /// Finds a way to send a request to an endpoint that may speak HTTP/2, or to another address of the same name.
    async fn place(
        &self,
        endpoint: &Arc<Endpoint>,
        load: EndpointPermit,
        tried: &mut AttemptedEndpoints,
        idle: &IdlePool,
        now: Duration,
    ) -> Result<(Acquired, Arc<Endpoint>, EndpointPermit), (ConnectError, Arc<Endpoint>)> {
        let settings = PoolSettings {
            connect_timeout: self.settings.connect_timeout,
            keep_alive: self.settings.keep_alive,
            metrics: Arc::clone(&self.metrics),
        };
        let all = self.with_other_addresses(endpoint, load, tried);
        race(
            all.into_iter(),
            async |endpoint| {
                let acquired = idle.http2().acquire(&endpoint, &settings, now).await;
                acquired.map_err(|failure| {
                    let connects = matches!(failure, UpstreamError::Connect | UpstreamError::Tls);
                    let cause = endpoint.last_failure().filter(|_| connects);
                    ConnectError { failure, cause: cause.unwrap_or(failure.cause().into()) }
                })
            },
            |slow, error| {
                tried.exclude(slow);
                if error.failure.is_endpoint_fault() {
                    self.refused(slow, error, self.clock.uptime());
                }
            },
        )
        .await
        .map_err(|error| (error, Arc::clone(endpoint)))
    }

    /// Turns the outcome of an attempt in HTTP/2 into that of any attempt.
    fn over_http2(
        &self,
        reply: Result<http2::Reply, http2::SendError>,
        endpoint: Arc<Endpoint>,
        tried: &AttemptedEndpoints,
        began: Duration,
    ) -> Result<Answered, Failed> {
        match reply {
            Ok(http2::Reply { response, early }) => {
                let now = self.clock.uptime();
                self.metrics.answered(response.status().as_u16(), now.saturating_sub(began));
                Ok(Answered { response, tunnel: None, endpoint, at: now, early })
            }
            Err(http2::SendError { failure, sent, stale, early, anew }) => {
                // An upstream that closes every connection at once is not asked for ever.
                let stale = stale && tried.count() == 1;
                let anew = anew.map(BodyWriter::new);
                let error = http1::SendError { failure, sent, stale, early, anew };
                Err(Failed { error, endpoint, cause: None })
            }
        }
    }

    /// Returns `endpoint`, and the other addresses that take its place if it is silent or refuses.
    fn with_other_addresses(
        &self,
        endpoint: &Arc<Endpoint>,
        load: EndpointPermit,
        tried: &AttemptedEndpoints,
    ) -> Vec<(Arc<Endpoint>, EndpointPermit)> {
        let set = self.endpoints.load_full();
        let others = self.other_addresses(&set, endpoint, tried);
        let others = others.into_iter().filter_map(|other| {
            let load = other.try_admit()?;
            Some((other, load))
        });
        core::iter::once((Arc::clone(endpoint), load)).chain(others).collect()
    }

    /// Returns the other available addresses of the name that `endpoint` is an address of, those of the other family
    /// first.
    fn other_addresses(
        &self,
        set: &EndpointSet,
        endpoint: &Arc<Endpoint>,
        tried: &AttemptedEndpoints,
    ) -> Vec<Arc<Endpoint>> {
        let own = set.members.iter().find(|member| Arc::ptr_eq(&member.endpoint, endpoint));
        let Some(own) = own else { return Vec::new() };
        let now = self.clock.uptime();
        let mut others: Vec<_> = set
            .members
            .iter()
            .filter(|other| other.target == own.target && other.tier == own.tier)
            .map(|other| &other.endpoint)
            .filter(|other| !tried.contains(other))
            .filter(|other| other.state(now, Duration::ZERO) == EndpointState::Healthy)
            .map(Arc::clone)
            .collect();
        let is_ipv6 = |endpoint: &Endpoint| endpoint.address().is_some_and(|a| a.is_ipv6());
        others.sort_by_key(|other| is_ipv6(other) == is_ipv6(endpoint));
        others.truncate(MAX_RACED_ADDRESSES);
        others
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

    /// Describes for the log why no endpoint is available.
    fn unavailable(&self) -> Cow<'static, str> {
        let out = self.endpoints();
        let each = out.iter().take(MAX_DESCRIBED_ENDPOINTS).map(|(endpoint, state)| {
            let cause = endpoint.last_failure();
            let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{} is {}{cause}", endpoint.name(), state.word())
        });
        each.collect::<Vec<_>>().join("; ").into()
    }

    /// Returns the failure of a request; one of a slow client is not counted as the upstream's.
    #[expect(clippy::too_many_arguments, reason = "the parts of a failure")]
    fn failed(
        &self,
        early: bool,
        failure: UpstreamError,
        endpoint: Arc<Endpoint>,
        cause: Cow<'static, str>,
        tried: &AttemptedEndpoints,
        sent: bool,
        content: Option<RequestContent>,
    ) -> Box<SendFailure> {
        if early {
            let attempts = tried.count();
            let endpoint = Some(endpoint);
            return Box::new(SendFailure { failure, endpoint, cause, attempts, sent, content });
        }
        self.lost(failure, Some(endpoint), cause, tried, sent, content)
    }

    fn lost(
        &self,
        failure: UpstreamError,
        endpoint: Option<Arc<Endpoint>>,
        cause: Cow<'static, str>,
        tried: &AttemptedEndpoints,
        sent: bool,
        content: Option<RequestContent>,
    ) -> Box<SendFailure> {
        self.count(failure);
        if tried.count() > 1 {
            self.metrics.retried(false);
        }
        let attempts = tried.count();
        Box::new(SendFailure { failure, endpoint, cause, attempts, sent, content })
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
    endpoint: Arc<Endpoint>,
    /// The uptime of the response head.
    at: Duration,
    /// Whether the request had not ended.
    early: bool,
}

/// The result of an attempt without a response.
struct Failed {
    error: http1::SendError,
    endpoint: Arc<Endpoint>,
    /// The cause of a failure to connect, which was recorded already.
    cause: Option<String>,
}

/// Whether a status shows that the endpoint is unhealthy, and not only that the request is unsupported.
fn blames_endpoint(status: StatusCode) -> bool {
    let asked_for = [StatusCode::NOT_IMPLEMENTED, StatusCode::HTTP_VERSION_NOT_SUPPORTED];
    status.is_server_error() && !asked_for.contains(&status)
}

/// How long a request waits for the control runtime to connect to an upstream all of whose endpoints are unreachable.
const CHECK_WAIT: Duration = Duration::from_millis(60);
/// The maximum number of addresses of a name that are tried with one attempt, besides the selected one.
const MAX_RACED_ADDRESSES: usize = 6;
/// The maximum number of endpoints that the log describes.
const MAX_DESCRIBED_ENDPOINTS: usize = 4;
