//! One attempt to send a request: a connection to an endpoint, and the exchange on it.

use core::cell::RefCell;
use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{HOST, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderValue, Response, StatusCode};

use super::attempt_result::{Answered, Failed, MAX_HELD_BYTES, MAX_WAIT_FOR_CONTENT};
use super::extra_headers::OutgoingRequest;
use super::long_lived_response::is_endless;
use super::send_options::SendOptions;
use crate::base::body::Body;
use crate::base::header_fields::fields_bytes;
use crate::base::method::is_idempotent;
use crate::base::read_ahead::{first_part, read_ahead};
use crate::http1::{BodyWriter, Length};
use crate::upstream::Upstream;
use crate::upstream::attempt_error::AttemptError;
use crate::upstream::balancing::attempted_endpoints::AttemptedEndpoints;
use crate::upstream::balancing::endpoint::{Endpoint, EndpointPermit};
use crate::upstream::balancing::endpoint_set::EndpointSet;
use crate::upstream::connections::connect::{ConnectError, FreshRead, Stream, connect, race};
use crate::upstream::connections::pooled_body::{Held, PooledBody};
use crate::upstream::connections::tls_connectors::Offer;
use crate::upstream::error::UpstreamError;
use crate::upstream::health::client_pauses::ClientPauses;
use crate::upstream::health::content_outcome::ContentOutcome;
use crate::upstream::health::endpoint_health::EndpointState;
use crate::upstream::http1::{self, BodyKind, Connection};
use crate::upstream::http2::{self, Acquired, PoolSettings};
use crate::upstream::settings::HostHeader;

impl Upstream {
    /// Makes one attempt at `endpoint`, or at another address of its target, begun at the uptime `began`.
    pub(super) async fn attempt(
        &self,
        endpoint: &Arc<Endpoint>,
        request: &OutgoingRequest<'_>,
        sending: Box<BodyWriter>,
        options: &SendOptions<'_>,
        tried: &mut AttemptedEndpoints,
        began: Duration,
    ) -> Result<Answered, Failed> {
        let (idle, wait) = (options.idle, options.wait);
        // Time in the gateway's own queue does not count towards the response timeout.
        let (load, mut began) = if let Some(load) = endpoint.try_admit() {
            (load, began)
        } else if let Some(load) = endpoint.admit(self.settings.connect_timeout.min(wait)).await {
            (load, self.clock.uptime())
        } else {
            let error = AttemptError::not_sent(UpstreamError::Overflow, sending);
            return Err(Failed::of(error, Arc::clone(endpoint), None));
        };
        let (mut endpoint, mut load) = (Arc::clone(endpoint), load);
        let (mut sending, mut opened) = (sending, None);
        let may_be_http2 = self.settings.http2.is_possible(endpoint.scheme());
        let upgrades = may_be_http2 && request.head.headers.contains_key(UPGRADE);
        // An upgrade needs HTTP/1.1, unless streams take WebSockets; an endpoint that speaks HTTP/2 only must not be
        // blamed for refusing it.
        let mut blameless = upgrades;
        if upgrades && let Some(key) = request.head.headers.get(SEC_WEBSOCKET_KEY) {
            let acquired = Box::pin(self.websocket_stream(&endpoint, tried, options, began)).await;
            began = self.clock.uptime();
            match acquired {
                Some(Acquired::Http2(permit)) => {
                    let exchange =
                        self.http2_request(request, &endpoint, Some(key), options, began);
                    let reply = run_http2(exchange, permit, load, Body::empty(), options);
                    return self.over_http2(Box::pin(reply).await, request, endpoint, tried, began);
                }
                Some(Acquired::Http1(stream)) => opened = stream,
                None => {}
            }
        }
        if may_be_http2 && !upgrades {
            sending = match sending.into_untouched() {
                Err(sending) => sending,
                Ok(body) => {
                    if has_large_head(request) {
                        tried.share_no_connection();
                    }
                    let keep_alive = self.settings.keep_alive;
                    let ready = idle.http2().ready(&endpoint, tried.sharing(), keep_alive, began);
                    let acquired = if let Some(acquired) = ready {
                        Ok((acquired, endpoint, load))
                    } else {
                        let acquired = self.acquire(&endpoint, load, tried, options, began);
                        let acquired = Box::pin(acquired).await;
                        began = self.clock.uptime();
                        acquired
                    };
                    let acquired = match acquired {
                        Ok((acquired, at, permit)) => {
                            (endpoint, load) = (at, permit);
                            acquired
                        }
                        Err((error, at)) => {
                            return Err(not_connected(error, at, Box::new(BodyWriter::new(body))));
                        }
                    };
                    match acquired {
                        Acquired::Http1(stream) => {
                            opened = stream;
                            Box::new(BodyWriter::new(body))
                        }
                        Acquired::Http2(permit) => {
                            let exchange =
                                self.http2_request(request, &endpoint, None, options, began);
                            // Boxed: it is large, and requests in HTTP/1.1 would carry it.
                            let reply = run_http2(exchange, permit, load, body, options);
                            let reply = Box::pin(reply).await;
                            return self.over_http2(reply, request, endpoint, tried, began);
                        }
                    }
                }
            };
        }
        // A request that cannot be sent twice looks whether the upstream has just closed the connection.
        let is_repeatable =
            is_idempotent(&request.head.method) && sending.length() == Length::Exact(0);
        let read = if is_repeatable { FreshRead::OfLastWait } else { FreshRead::OfNow };
        // All idle connections may be closed by now: only the first attempt uses one.
        let may_use_idle = tried.count() == 1 && opened.is_none();
        let kept = if may_use_idle {
            idle.take(&endpoint, began, read, self.settings.keep_alive)
        } else {
            None
        };
        let is_reused = kept.is_some();
        let connection = match (kept, opened) {
            (Some(connection), _) => {
                blameless = false;
                connection
            }
            (None, Some(stream)) => {
                blameless &= !stream.selected_http1();
                self.http1_connection(stream, &endpoint)
            }
            (None, None) => {
                let limit = self.settings.connect_timeout.min(wait);
                let opening = self.connection(&endpoint, load, tried, limit, began, blameless);
                match Box::pin(opening).await {
                    Ok((stream, at, permit)) => {
                        (endpoint, load) = (at, permit);
                        blameless &= !stream.selected_http1();
                        self.http1_connection(stream, &endpoint)
                    }
                    Err(error) => {
                        let is_tls = error.failure == UpstreamError::Tls;
                        if is_tls {
                            idle.http2().forget_http1(&endpoint);
                        }
                        let failed = not_connected(error, endpoint, sending);
                        return Err(Failed { blameless: blameless && is_tls, ..failed });
                    }
                }
            }
        };
        let host = self.host_for(request, &endpoint);
        let since = self.clock.instant(began);
        let wait = options.within(since);
        let before = options.begin_exchange();
        let reply = connection.exchange(request, host, sending, wait, since).await;
        match reply {
            Ok(reply)
                if is_reused
                    && is_repeatable
                    && reply.response.status() == StatusCode::REQUEST_TIMEOUT =>
            {
                // The upstream ended an idle connection with it, and has not read the request (RFC 9110 §15.5.9).
                let error = AttemptError {
                    failure: UpstreamError::Reset,
                    sent: true,
                    stale: true,
                    client_was_silent: false,
                    remaining_content: None,
                };
                Err(Failed { blameless, ..Failed::of(error, endpoint, None) })
            }
            Ok(reply) => Ok(self.over_http1(reply, endpoint, load, began, options)),
            Err(lost) => {
                if !lost.sent {
                    options.was_unsent(before);
                }
                let failed = lost_in_http1(lost, endpoint, is_reused, options);
                Err(Failed { blameless, ..failed })
            }
        }
    }

    /// Turns a response in HTTP/1.1 into that of any attempt; its connection is used again after its content.
    fn over_http1(
        &self,
        reply: http1::Reply,
        endpoint: Arc<Endpoint>,
        load: EndpointPermit,
        began: Duration,
        options: &SendOptions<'_>,
    ) -> Answered {
        let now = self.clock.uptime();
        self.metrics.answered(reply.response.status().as_u16(), now.saturating_sub(began));
        let held = |load| Held {
            endpoint: Arc::clone(&endpoint),
            load,
            idle: options.idle.clone(),
            time_limit: options.wait,
            passive: Arc::clone(&self.passive),
            began,
        };
        let (body, tunnel) = match reply.content {
            BodyKind::Whole(whole, rest) if rest.is_over() => {
                if let Some(connection) = rest.reusable() {
                    options.idle.put(&endpoint, connection, now, self.settings.keep_alive);
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
            BodyKind::Tunnel(tunnel) => (Body::empty(), Some(Box::new(tunnel.holding(load)))),
        };
        let response = reply.response.map(|()| body);
        let client_was_silent = reply.client_was_silent;
        Answered { response, tunnel, endpoint, at: now, client_was_silent, is_failed_call: false }
    }

    /// Waits up to `limit` for the rest of a small response, so that one that breaks off, since its endpoint has died, can
    /// be replaced by that of another endpoint.
    pub(super) async fn hold(
        &self,
        mut answered: Answered,
        limit: Duration,
    ) -> Result<Answered, Failed> {
        let body = core::mem::take(answered.response.body_mut());
        let deadline = tokio::time::Instant::now() + limit;
        match read_ahead(body, MAX_HELD_BYTES, Some(deadline)).await {
            Ok(body) => {
                *answered.response.body_mut() = body;
                answered.at = self.clock.uptime();
                Ok(answered)
            }
            Err(error) => Err(Failed::without_content(&error, answered.endpoint)),
        }
    }

    /// Waits a moment for the beginning of the content, so that a response that breaks off before it is no success
    /// without content.
    pub(super) async fn await_content(&self, mut answered: Answered) -> Result<Answered, Failed> {
        let body = core::mem::take(answered.response.body_mut());
        match first_part(body, tokio::time::Instant::now() + MAX_WAIT_FOR_CONTENT).await {
            Ok(body) => {
                *answered.response.body_mut() = body;
                Ok(answered)
            }
            Err(error) => Err(Failed::without_content(&error, answered.endpoint)),
        }
    }

    /// Returns the `Host` field that replaces the one of the request.
    fn host_for<'a>(
        &'a self,
        request: &OutgoingRequest<'_>,
        endpoint: &'a Endpoint,
    ) -> Option<&'a HeaderValue> {
        match &self.settings.host_header {
            HostHeader::Fixed(name) => Some(name),
            HostHeader::Preserve if request.head.headers.contains_key(HOST) => None,
            // HTTP/1.0 clients need not send `Host`; HTTP/1.1 upstreams require it.
            HostHeader::Target | HostHeader::Preserve => Some(endpoint.host()),
        }
    }

    /// Uses `stream`, a new connection to `endpoint`, for HTTP/1.1.
    fn http1_connection(&self, stream: Stream, endpoint: &Endpoint) -> Box<Connection> {
        self.metrics.target_version(endpoint.name()).set(1);
        Connection::new(stream, Arc::clone(&self.metrics))
    }

    /// Opens a connection in HTTP/1.1 within `limit` to `endpoint`, or to another address of the same name if that is faster
    /// (RFC 8305).
    /// With `blameless`, a failed TLS handshake is not recorded as a failure: the endpoint may speak HTTP/2 only.
    async fn connection(
        &self,
        endpoint: &Arc<Endpoint>,
        load: EndpointPermit,
        tried: &mut AttemptedEndpoints,
        limit: Duration,
        began: Duration,
        blameless: bool,
    ) -> Result<(Stream, Arc<Endpoint>, EndpointPermit), ConnectError> {
        race(
            self.with_other_addresses(endpoint, load, tried),
            async |endpoint| connect(&endpoint, limit, Offer::Http1).await,
            |other, error| {
                tried.exclude(other);
                match error {
                    Some(error) if !(blameless && error.failure == UpstreamError::Tls) => {
                        self.passive.refused(other, error, began);
                    }
                    // An address that lost the race has not failed: a health check decides.
                    _ => other.suspect(),
                }
            },
        )
        .await
    }

    /// Finds a way to send a request to an endpoint that may speak HTTP/2, or to another address of the same name.
    async fn acquire(
        &self,
        endpoint: &Arc<Endpoint>,
        load: EndpointPermit,
        tried: &mut AttemptedEndpoints,
        options: &SendOptions<'_>,
        began: Duration,
    ) -> Result<(Acquired, Arc<Endpoint>, EndpointPermit), (ConnectError, Arc<Endpoint>)> {
        let settings = self.pool_settings(options);
        let sharing = tried.sharing();
        race(
            self.with_other_addresses(endpoint, load, tried),
            async |endpoint| {
                let pool = options.idle.http2();
                pool.acquire(&endpoint, &settings, sharing, began).await
            },
            |other, error| {
                tried.exclude(other);
                match error {
                    Some(error) if error.failure.is_endpoint_fault() => {
                        self.passive.refused(other, error, began);
                    }
                    // The endpoint accepts connections and refuses requests.
                    Some(error) if error.failure == UpstreamError::Refused => {
                        self.passive.failed(other, &error.cause, began);
                    }
                    Some(_) => {}
                    None => other.suspect(),
                }
            },
        )
        .await
        .map_err(|error| (error, Arc::clone(endpoint)))
    }

    /// Returns the exchange of `request` with `endpoint` in HTTP/2, which gets it at the uptime `began`; `websocket` is the key of
    /// an opening handshake.
    fn http2_request<'a, 'r>(
        &'a self,
        request: &'a OutgoingRequest<'r>,
        endpoint: &'a Endpoint,
        websocket: Option<&'a HeaderValue>,
        options: &SendOptions<'_>,
        began: Duration,
    ) -> http2::Http2Request<'a, 'r> {
        let since = self.clock.instant(began);
        http2::Http2Request {
            request,
            host: self.host_for(request, endpoint),
            scheme: endpoint.scheme(),
            websocket,
            wait: options.within(since),
            since,
            deadline: options.deadline,
            idle_timeout: self.settings.idle_timeout,
            metrics: Arc::clone(&self.metrics),
        }
    }

    /// Finds a stream for a WebSocket (RFC 8441); `None` if the endpoint takes none there, or at the moment: the
    /// upgrade of HTTP/1.1 is tried then.
    async fn websocket_stream(
        &self,
        endpoint: &Arc<Endpoint>,
        tried: &AttemptedEndpoints,
        options: &SendOptions<'_>,
        began: Duration,
    ) -> Option<Acquired> {
        let settings = self.pool_settings(options);
        let pool = options.idle.http2();
        let acquired = pool.acquire(endpoint, &settings, tried.sharing(), began).await.ok()?;
        match &acquired {
            Acquired::Http2(permit) if !permit.takes_websocket() => None,
            Acquired::Http2(_) | Acquired::Http1(_) => Some(acquired),
        }
    }

    fn pool_settings<'a>(&'a self, options: &SendOptions<'_>) -> PoolSettings<'a> {
        PoolSettings {
            connect_timeout: self.settings.connect_timeout,
            wait: options.wait,
            keep_alive: self.settings.keep_alive,
            metrics: &self.metrics,
        }
    }

    /// Turns the outcome of an attempt in HTTP/2 into that of any attempt.
    fn over_http2(
        &self,
        reply: Result<http2::Reply, http2::SendError>,
        request: &OutgoingRequest<'_>,
        endpoint: Arc<Endpoint>,
        tried: &AttemptedEndpoints,
        began: Duration,
    ) -> Result<Answered, Failed> {
        match reply {
            Ok(http2::Reply { response, tunnel, client_was_silent }) => {
                let now = self.clock.uptime();
                self.metrics.answered(response.status().as_u16(), now.saturating_sub(began));
                let content = ContentOutcome::of(&response, &self.passive, &endpoint, began);
                let is_failed_call = content.is_failed_call(response.headers());
                let response = response.map(|body| content.watch(body));
                let tunnel = tunnel.map(Box::new);
                Ok(Answered {
                    response,
                    tunnel,
                    endpoint,
                    at: now,
                    client_was_silent,
                    is_failed_call,
                })
            }
            Err(http2::SendError {
                failure,
                sent,
                stale,
                connection_lost,
                loss_reported,
                closed_unprocessed,
                refund,
                client_was_silent,
                remaining_content,
            }) => {
                // After the first attempt, only GOAWAY says that another connection may work.
                let stale = stale && (tried.count() == 1 || !sent);
                let remaining_content =
                    remaining_content.map(|body| Box::new(BodyWriter::new(body)));
                let error =
                    AttemptError { failure, sent, stale, client_was_silent, remaining_content };
                let is_refused = failure == UpstreamError::Refused;
                let failed = Failed::of(error, endpoint, None);
                // The head may be too large for the endpoint, which then refuses it in a way of its own.
                let is_large = has_large_head(request);
                Err(Failed {
                    connection_lost,
                    closed_unprocessed: closed_unprocessed && !is_large,
                    refund,
                    blameless: loss_reported || is_large && (connection_lost || is_refused),
                    ..failed
                })
            }
        }
    }

    /// Returns `endpoint`, and the other addresses that take its place if it is silent or refuses. Each of these gets its
    /// permit when its turn comes, and is left out if there is none.
    fn with_other_addresses(
        &self,
        endpoint: &Arc<Endpoint>,
        load: EndpointPermit,
        tried: &AttemptedEndpoints,
    ) -> impl Iterator<Item = (Arc<Endpoint>, EndpointPermit)> + use<> {
        let set = self.endpoints.load_full();
        let others = self.other_addresses(&set, endpoint, tried);
        let others = others.into_iter().filter_map(|other| {
            let load = other.try_admit()?;
            Some((other, load))
        });
        core::iter::once((Arc::clone(endpoint), load)).chain(others)
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
        let judges = !endless;
        let pauses = ClientPauses::new(self.clock.uptime());
        Body::streaming(PooledBody { content, held: Some(held), judges, pauses }).with_cut(upload)
    }
}

/// Returns the failure of an attempt that got no connection, whose cause was recorded already.
fn not_connected(error: ConnectError, endpoint: Arc<Endpoint>, sending: Box<BodyWriter>) -> Failed {
    let ConnectError { failure, cause } = error;
    Failed::of(AttemptError::not_sent(failure, sending), endpoint, Some(cause.into()))
}

/// Returns the failure of an attempt on a connection in HTTP/1.1.
fn lost_in_http1(
    mut lost: AttemptError,
    endpoint: Arc<Endpoint>,
    is_reused: bool,
    options: &SendOptions<'_>,
) -> Failed {
    if lost.failure == UpstreamError::Timeout && options.is_over() {
        // One timeout cannot show whether the endpoint is silent, or slower than the deadline of this client.
        lost.failure = UpstreamError::Deadline { silent: false };
    }
    // The upstream has just closed an idle connection: `send` decides whether the request is sent again.
    lost.stale = is_reused && lost.failure == UpstreamError::Reset;
    if matches!(lost.failure, UpstreamError::Invalid(_)) {
        options.idle.http2().forget_http1(&endpoint);
    }
    Failed::of(lost, endpoint, None)
}

/// Whether the head of a request is larger than some services accept, a few of which end the connection for it.
fn has_large_head(request: &OutgoingRequest<'_>) -> bool {
    let target = request.head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    target + fields_bytes(&request.head.headers) > LARGE_HEAD_BYTES
}

/// Runs an exchange in HTTP/2, and records whether something of the request may have arrived.
async fn run_http2(
    exchange: http2::Http2Request<'_, '_>,
    permit: http2::StreamPermit,
    load: EndpointPermit,
    body: Body,
    options: &SendOptions<'_>,
) -> Result<http2::Reply, http2::SendError> {
    let before = options.begin_exchange();
    let reply = exchange.run(permit, load, body).await;
    if reply.as_ref().is_err_and(|lost| !lost.sent) {
        options.was_unsent(before);
    }
    reply
}

/// The size of a head from which a request shares no connection in HTTP/2: nginx accepts fields of up to 8 KiB, others heads of
/// up to 16 KiB.
const LARGE_HEAD_BYTES: usize = 8 * 1024;
/// The maximum number of addresses of a name that are tried with one attempt, besides the selected one.
const MAX_RACED_ADDRESSES: usize = 6;
