//! Forwards an authorized request to its upstream: rewrite, send, relay the response.

use core::cell::RefCell;
use core::future::poll_fn;
use core::pin::Pin;
use core::time::Duration;
use std::sync::Arc;

use http::header::{CONNECTION, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Body as _;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::affinity;
use super::call_deadline::CallDeadline;
use super::fallback::{Completed, Fallback, Fallible};
use super::header_edits::HeaderEditor;
use super::identity_headers::IdentityHeaders;
use super::mirror::Mirror;
use super::rewrite::TargetRewriter;
use super::route_upstream::RouteUpstream;
use super::split::Split;
use super::stale_responses::StaleKey;
use super::stream_guard::{GuardedBody, StreamGuard, StreamOwner};
use super::trailer_edits;
use super::tunnel;
use super::websocket::Handshake;
use crate::base::body::Body;
use crate::base::read_ahead::read_ahead;
use crate::config::reserved_headers::ReservedHeaders;
use crate::gateway::exchange::Exchange;
use crate::gateway::policy::authorize::Permit;
use crate::gateway::policy::cors;
use crate::gateway::policy::response_cost;
use crate::gateway::request::await_content;
use crate::gateway::request::loop_detection;
use crate::gateway::request::loop_detection::HopDecision;
use crate::gateway::request::request_body::{BodyLimits, OpensTunnel};
use crate::gateway::response::rejection::{Challenge, Rejection};
use crate::gateway::thread_state::ThreadState;
use crate::observe::metrics::FallbackKind;
use crate::upstream::{
    OutgoingRequest, RequestContent, Retries, SendFailure, SendOptions, Tunnel, Upstream,
    UpstreamError,
};

/// The settings by which a route forwards requests.
#[derive(Debug)]
pub(crate) struct Forward {
    /// The route's own upstream.
    pub receiver: RouteUpstream,
    /// The timeout of the response head, if the route has its own.
    pub own_timeout: Option<Duration>,
    /// Whether small content is read before it is sent.
    pub buffer_request: bool,
    /// The fallback.
    pub fallback: Option<Fallback>,
    /// The other upstreams that receive a share of the requests.
    pub split: Option<Split>,
    /// The copies for another upstream.
    pub mirror: Option<Mirror>,
    /// The retry policy; `None` is the upstream's.
    pub retries: Option<Retries>,
    /// The limits of request content.
    pub bounds: BodyLimits,
    /// The rewrite of the path.
    pub target: TargetRewriter,
    /// The edits of request header fields.
    pub request: HeaderEditor,
    /// The fields that the upstream receives in no trailer section of a client: those that the route or the gateway
    /// removes from header sections, or sets.
    pub reserved_trailers: ReservedHeaders,
    /// The edits of response header fields.
    pub response: HeaderEditor,
    /// The identity headers for the upstream, by authentication method.
    pub identity: Box<[IdentityHeaders]>,
    /// The leeway after `exp` within which a token is still accepted, by authentication method.
    pub leeways: Box<[Duration]>,
    /// Whether WebSocket upgrades are allowed.
    pub websocket: bool,
    /// Whether streams end when the token that opened them expires.
    pub close_on_expiry: bool,
}

impl Forward {
    /// Sends an authorized request upstream and returns its response.
    ///
    /// # Errors
    ///
    /// The rejection for the failure of the upstream.
    pub(crate) async fn run(
        &self,
        permit: Permit,
        head: &mut Parts,
        body: Body,
        exchange: &mut Exchange,
        thread: &ThreadState,
    ) -> Result<Response<Body>, Rejection> {
        if loop_detection::check(&head.method, &mut head.headers)? == HopDecision::Respond {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        let handshake = self.read_handshake(head, &body, exchange)?;
        let receiver = self.choose_receiver(&permit, head, exchange);
        let upstream = &receiver.upstream;
        let keys = self.affinity_keys(upstream, &permit, head, exchange);
        let is_private = permit.principal.is_some() || !body.is_end_stream();
        let is_grpc = exchange.response_format.is_grpc();
        let is_stream =
            is_grpc && await_content::shares_connections(head.version, exchange, upstream);
        let bounds = if is_stream { self.bounds.of_stream() } else { self.bounds };
        let content = exchange.receive(body, bounds, &self.reserved_trailers)?;
        let deadline = read_deadline(head, exchange)?;
        self.target.rewrite(&mut head.uri)?;
        let stale_key = self.stale_key(upstream, head, is_private, exchange);
        self.rewrite_references(upstream, head)?;
        if exchange.route().is_some_and(|route| route.limits.reads_responses()) {
            response_cost::request_readable(&mut head.headers);
        }
        let mirror = self.mirror.as_ref();
        let mirror = mirror.filter(|mirror| handshake.is_none() && mirror.wants(&head.method));
        // The messages of a gRPC call may wait for each other: they are never gathered.
        let gathers = (self.buffer_request || mirror.is_some()) && !is_grpc;
        let body = match content {
            None => Body::empty(),
            // Boxed: most requests have no content, and every request carries this future.
            Some(content) => {
                let begun = await_content::begin(content, head.version, exchange, upstream);
                let body = match deadline {
                    Some(deadline) => Box::pin(deadline.limit(begun)).await??,
                    None => Box::pin(begun).await?,
                };
                if gathers { Box::pin(gather(body, exchange)).await? } else { body }
            }
        };
        let timeout = deadline.map(|deadline| deadline.forward(&mut head.headers)).transpose()?;
        let now = exchange.moment;
        let token = receiver.identity_token(&permit, now.now).map_err(|_| Rejection::Internal)?;
        let mut fields = self.prepare(upstream, &permit, token.as_ref(), head, exchange);
        if let (Some(deadline), Some(timeout)) = (deadline, timeout) {
            deadline.count_down(&timeout, &mut head.headers, &mut fields);
        }
        if let Some(handshake) = &handshake {
            handshake.request(&mut head.headers);
        }
        let arrival = exchange.arrival.clone();
        let mut options = self.send_options(upstream, thread, now.uptime);
        options.deadline = deadline.map(CallDeadline::instant);
        (options.key, options.arrival) = (keys.own, arrival.as_deref());
        options.reads_content = exchange.limit_state.has_unsettled();
        let (began, wait) = (options.began, options.wait);
        let interim = RefCell::default();
        let wanted = exchange.interim.as_ref().is_some_and(|sink| sink.is_open());
        let wanted = wanted.then_some(&interim);
        let request = OutgoingRequest { head, fields, interim: wanted };
        if let Some(mirror) = mirror {
            mirror.copy(&request, &body, &permit, &thread.idle, keys.mirror, now);
        }
        let content = RequestContent::new(body);
        let of_fallback = SendOptions { key: keys.fallback, has_fallback: false, ..options };
        let fallback = self.fallible(&request, &content, stale_key, of_fallback, &permit, exchange);
        // Boxed: it is large, and the stages in between would move it.
        let sending = Box::pin(complete(upstream, &request, content, options, fallback));
        exchange.begin_wait();
        let sent = self.relay_interim(sending, &interim, deadline, &permit, exchange).await;
        let (mut response, tunnel) = record(sent, began, exchange)?;
        // A stored response tells the cost of an earlier request, which is charged already.
        let tells_cost = exchange.outcome.fallback != Some(FallbackKind::Stale);
        if tells_cost && exchange.limit_state.has_unsettled() {
            let unfinished = thread.unfinished.begin();
            response = Box::pin(response_cost::settle(response, exchange, unfinished, wait)).await;
        }
        self.edit_response(response.headers_mut(), &permit, exchange);
        let guard = if tunnel.is_some() || !response.body().is_buffered() {
            response = self.without_decided_trailers(response, exchange);
            let responder = self.responder(upstream, exchange);
            self.guard_stream(permit, responder, exchange, thread)?
        } else {
            None
        };
        if let Some(tunnel) = tunnel {
            open_tunnel(*tunnel, handshake, guard, &mut response, exchange)?;
        } else if let Some(guard) = guard {
            exchange.stream_guard = Some(guard.clone());
            response = response.map(|body| GuardedBody::body(body, guard));
        }
        Ok(match deadline {
            Some(deadline) => response.map(|body| deadline.body(body)),
            None => response,
        })
    }

    /// Returns the WebSocket handshake of a request, if the route forwards it as one.
    ///
    /// # Errors
    ///
    /// [`Rejection::UnknownProtocol`] for a tunnel of another protocol, and the rejection of an invalid handshake.
    fn read_handshake(
        &self,
        head: &mut Parts,
        body: &Body,
        exchange: &mut Exchange,
    ) -> Result<Option<Handshake>, Rejection> {
        let protocol = exchange.stripped.remove_remaining(&mut head.headers);
        let protocol = protocol.filter(|_| self.websocket);
        if protocol.is_none() && head.extensions.get::<OpensTunnel>().is_some() {
            return Err(Rejection::UnknownProtocol);
        }
        let handshake = protocol.map(|protocol| Handshake::read(protocol, head, body));
        Ok(handshake.transpose()?.flatten())
    }

    /// Returns the hashes by which the request is assigned to a target of `upstream`, and of the others that may
    /// receive it.
    fn affinity_keys(
        &self,
        upstream: &Upstream,
        permit: &Permit,
        head: &Parts,
        exchange: &Exchange,
    ) -> AffinityKeys {
        let key_of = |upstream: &Upstream| {
            let by = upstream.settings().hash_by.as_ref()?;
            affinity::key(by, head, permit.principal.as_deref(), exchange)
        };
        AffinityKeys {
            own: key_of(upstream),
            mirror: self.mirror.as_ref().and_then(|mirror| key_of(&mirror.receiver.upstream)),
            fallback: self.fallback_upstream().and_then(key_of),
        }
    }

    /// Returns the options of a request that is sent to `upstream` at the uptime `began`.
    fn send_options<'a>(
        &'a self,
        upstream: &Upstream,
        thread: &'a ThreadState,
        began: Duration,
    ) -> SendOptions<'a> {
        SendOptions {
            idle: &thread.idle,
            wait: self.own_timeout.unwrap_or(upstream.settings().timeout),
            deadline: None,
            began,
            retries: self.retries.as_ref(),
            has_fallback: self.fallback.is_some(),
            reads_content: false,
            key: None,
            arrival: None,
        }
    }

    /// Returns the fallback with what it needs of the request, if there is one.
    fn fallible<'a>(
        &'a self,
        request: &'a OutgoingRequest<'a>,
        content: &RequestContent,
        stale_key: Option<StaleKey>,
        options: SendOptions<'a>,
        permit: &'a Permit,
        exchange: &'a Exchange,
    ) -> Option<(&'a Fallback, Box<Fallible<'a>>)> {
        let fallback = self.fallback.as_ref()?;
        let fallible = Fallible {
            request,
            again: content.copy(),
            stale_key,
            options,
            permit,
            now: exchange.moment.now,
            is_grpc: exchange.response_format.is_grpc(),
            timeout: self.own_timeout,
            clock: exchange.clock(),
        };
        Some((fallback, Box::new(fallible)))
    }

    /// Returns the key of the last good response to the request, if the fallback has one.
    fn stale_key(
        &self,
        upstream: &Upstream,
        head: &Parts,
        is_private: bool,
        exchange: &Exchange,
    ) -> Option<StaleKey> {
        self.fallback.as_ref()?.stale.as_ref()?;
        StaleKey::of(head, exchange.host.as_ref(), &upstream.settings().name, is_private)
    }

    /// Removes the trailers of a response that the route decides, and the request id, which is the gateway's.
    fn without_decided_trailers(
        &self,
        response: Response<Body>,
        exchange: &Exchange,
    ) -> Response<Body> {
        let has_cors = exchange.route().is_some_and(|route| route.cors.is_some());
        let own = core::iter::once(&exchange.context().server.request_id_header);
        let decided = self.response.decided().chain(own);
        response.map(|body| trailer_edits::remove(body, decided, has_cors))
    }

    /// Returns the upstream that receives the request: the route's own, or another that receives a share of them.
    fn choose_receiver(
        &self,
        permit: &Permit,
        head: &Parts,
        exchange: &mut Exchange,
    ) -> &RouteUpstream {
        let Some(split) = &self.split else { return &self.receiver };
        let chosen = split.choose(&self.receiver, head, permit.principal.as_deref(), exchange);
        if !core::ptr::eq(chosen, &raw const self.receiver) {
            exchange.outcome.upstream = Some(Arc::clone(&chosen.upstream.settings().name));
        }
        chosen
    }

    /// Returns the upstream of the fallback, if there is one.
    pub(super) fn fallback_upstream(&self) -> Option<&Upstream> {
        self.fallback.as_ref().and_then(Fallback::other)
    }

    /// Returns the upstream whose response the client receives: `chosen`, or the fallback.
    fn responder<'a>(&'a self, chosen: &'a Upstream, exchange: &Exchange) -> &'a Upstream {
        match exchange.outcome.fallback {
            Some(FallbackKind::Upstream) => self.fallback_upstream().unwrap_or(chosen),
            _ => chosen,
        }
    }

    /// Waits for the response head, until the deadline of the call, and passes interim responses on meanwhile.
    ///
    /// # Errors
    ///
    /// [`UpstreamError::Deadline`] if the deadline passes before a target is tried.
    async fn relay_interim(
        &self,
        mut sending: Pin<Box<impl Future<Output = Sent>>>,
        interim: &RefCell<Vec<Response<()>>>,
        deadline: Option<CallDeadline>,
        permit: &Permit,
        exchange: &Exchange,
    ) -> Result<Sent, Rejection> {
        let sent = poll_fn(|cx| {
            let polled = sending.as_mut().poll(cx);
            if !interim.borrow().is_empty() {
                for response in interim.take() {
                    self.pass_interim(response, permit, exchange);
                }
            }
            polled
        });
        match deadline {
            Some(deadline) => Box::pin(deadline.limit(sent))
                .await
                .map_err(|_| UpstreamError::Deadline { silent: false }.into()),
            None => Ok(sent.await),
        }
    }

    /// Removes from a response what its upstream may not decide, and applies the edits of the route.
    fn edit_response(&self, headers: &mut HeaderMap, permit: &Permit, exchange: &Exchange) {
        if exchange.route().is_some_and(|route| route.cors.is_some()) {
            cors::remove_upstream_fields(headers);
        }
        self.response.apply(headers, permit.principal.as_deref(), exchange);
    }

    /// Passes an interim response on to the client, edited like the final one.
    fn pass_interim(&self, mut response: Response<()>, permit: &Permit, exchange: &Exchange) {
        self.edit_response(response.headers_mut(), permit, exchange);
        // Cookies wait for the response, also those of the edits.
        response.headers_mut().remove(SET_COOKIE);
        if let Some(sink) = &exchange.interim {
            sink.send(response);
        }
    }

    /// Guards a stream: it ends with the authorization of its caller and with the upstream's `stream_timeout`. A
    /// public stream without a timeout has no guard, unless it is a gRPC call: that ends with a status when the gateway does.
    ///
    /// # Errors
    ///
    /// [`Rejection::Unauthenticated`] if the authorization was revoked while the upstream processed the request.
    fn guard_stream(
        &self,
        permit: Permit,
        upstream: &Upstream,
        exchange: &Exchange,
        thread: &ThreadState,
    ) -> Result<Option<StreamGuard>, Rejection> {
        let limit = upstream.settings().stream_timeout;
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut challenge =
            Challenge::InvalidToken("The access token has been revoked or has ended");
        let owner = match permit {
            Permit {
                principal: Some(principal), session, auth_method: Some(auth_method), ..
            } => {
                if session.is_some() {
                    challenge = Challenge::SessionEnded;
                }
                let ends =
                    principal.accepted_until(exchange.received_at, self.leeways[auth_method]);
                Some(StreamOwner {
                    principal,
                    ends,
                    session,
                    close_on_expiry: self.close_on_expiry,
                })
            }
            _ => None,
        };
        let is_call = exchange.response_format.is_grpc();
        if owner.is_none() && until.is_none() && !is_call {
            return Ok(None);
        }
        let opened = thread.streams.open(owner, until, is_call, exchange.revocations());
        opened.map(Some).map_err(|_| Rejection::Unauthenticated(challenge))
    }
}

/// Returns the deadline of a gRPC call, if it has one.
///
/// # Errors
///
/// The rejection of a malformed one.
fn read_deadline(head: &Parts, exchange: &Exchange) -> Result<Option<CallDeadline>, Rejection> {
    if !exchange.response_format.is_grpc() {
        return Ok(None);
    }
    let began = exchange.clock().instant(exchange.started());
    CallDeadline::read(&head.headers, began)
}

/// The hashes by which a request is assigned to a target; `None` where the upstream does not hash.
#[derive(Clone, Copy)]
struct AffinityKeys {
    own: Option<u64>,
    mirror: Option<u64>,
    fallback: Option<u64>,
}

/// Connects the two sides of a tunnel once the upstream has switched protocols.
///
/// # Errors
///
/// [`UpstreamError::Protocol`] if the response does not accept the handshake.
fn open_tunnel(
    tunnel: Tunnel,
    handshake: Option<Handshake>,
    guard: Option<StreamGuard>,
    response: &mut Response<Body>,
    exchange: &mut Exchange,
) -> Result<(), Rejection> {
    let client = handshake.and_then(|handshake| handshake.accepted_by(response.headers()));
    let client = client.ok_or(Rejection::Upstream(UpstreamError::Protocol))?;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    // A tunnel counts as a request in flight, and towards every limit, until it ends.
    let held = (exchange.in_flight.take(), exchange.limit_state.hand_over());
    if let Some(route) = exchange.route() {
        let (id, metrics) = (Arc::clone(&route.id), Arc::clone(&route.metrics));
        let tunnel = tunnel::relay(client, tunnel, guard, id, metrics, held);
        exchange.peer.upgraded.replace(Some(spawn_local(tunnel)));
    }
    Ok(())
}

/// The response to a request, or its failure.
type Sent = Result<Completed, Box<SendFailure>>;

/// Sends a request to `upstream`, and to the fallback where that gives no response.
async fn complete(
    upstream: &Upstream,
    request: &OutgoingRequest<'_>,
    content: RequestContent,
    options: SendOptions<'_>,
    fallback: Option<(&Fallback, Box<Fallible<'_>>)>,
) -> Sent {
    let sent = upstream.send(request, content, options).await;
    match fallback {
        None => sent.map(Completed::from),
        Some((fallback, fallible)) => Box::pin(fallback.complete(upstream, sent, *fallible)).await,
    }
}

/// Records the time and the outcome of the wait for an upstream, and returns the response, with the upstream's side of
/// a tunnel after an upgrade.
///
/// # Errors
///
/// The rejection for the failure of the upstream, or of the client's content.
fn record(
    sent: Result<Sent, Rejection>,
    began: Duration,
    exchange: &mut Exchange,
) -> Result<(Response<Body>, Option<Box<Tunnel>>), Rejection> {
    let waited = match &sent {
        Ok(Ok(completed)) => completed.waited,
        Ok(Err(_)) | Err(_) => None,
    };
    exchange.end_wait(match waited {
        Some(waited) => began + waited,
        None => exchange.clock().uptime(),
    });
    match sent? {
        Ok(completed) => {
            exchange.outcome.completed(completed.endpoint, completed.replaced);
            Ok((completed.response, completed.tunnel))
        }
        Err(failed) => {
            let failure = failed.failure;
            exchange.outcome.failed(*failed);
            Err(match failure {
                UpstreamError::Client => exchange.body_failed(),
                failure => failure.into(),
            })
        }
    }
}

/// Reads small content into memory, so that it can be sent again or copied.
async fn gather(body: Body, exchange: &mut Exchange) -> Result<Body, Rejection> {
    let read = exchange.measured(read_ahead(body, MAX_BUFFERED_BYTES, None)).await;
    read.map_err(|_| exchange.body_failed())
}

/// The most request content that is held in memory, to be sent again or copied; larger content streams.
const MAX_BUFFERED_BYTES: usize = 64 * 1024;
