//! Forwards an authorized request to its upstream: rewrite, send, relay the response.

use core::cell::RefCell;
use core::future::poll_fn;
use core::time::Duration;
use std::io;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::call_deadline::CallDeadline;
use super::header_edits::HeaderEditor;
use super::identity_headers::IdentityHeaders;
use super::identity_token::{IDENTITY_TOKEN, IdentityTokens};
use super::rewrite::TargetRewriter;
use super::stream_guard::{GuardedBody, StreamGuard, StreamOwner};
use super::websocket;
use super::websocket::is_websocket;
use crate::base::body::Body;
use crate::gateway::exchange::Exchange;
use crate::gateway::policy::authorize::Permit;
use crate::gateway::policy::cors;
use crate::gateway::policy::dpop_fields::DPOP;
use crate::gateway::policy::proof_of_possession;
use crate::gateway::policy::response_cost;
use crate::gateway::request::await_content;
use crate::gateway::request::headers;
use crate::gateway::request::loop_detection;
use crate::gateway::request::loop_detection::HopDecision;
use crate::gateway::request::request_body::BodyLimits;
use crate::gateway::response::rejection::Challenge;
use crate::gateway::{Gateway, InFlightPermit, Rejection, Route, Snapshot};
use crate::http1::OnUpgrade;
use crate::limit::HeldPermits;
use crate::upstream::{
    ExtraHeaders, HostHeader, OutgoingRequest, RequestContent, Retries, SendOptions, Tunnel,
    Upstream, UpstreamError,
};

/// The settings by which a route forwards requests.
#[derive(Debug)]
pub(crate) struct Forward {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// The timeout of the response head.
    pub timeout: Duration,
    /// The retry policy; `None` is the upstream's.
    pub retries: Option<Retries>,
    /// The limits of request content.
    pub bounds: BodyLimits,
    /// The rewrite of the path.
    pub target: TargetRewriter,
    /// The edits of request header fields.
    pub request: HeaderEditor,
    /// The edits of response header fields.
    pub response: HeaderEditor,
    /// The identity headers for the upstream, by authentication method.
    pub identity: Box<[IdentityHeaders]>,
    /// The signers of identity tokens, by authentication method; `None` where there is none.
    pub identity_tokens: Box<[Option<IdentityTokens>]>,
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
        snapshot: &Snapshot,
        gateway: &Gateway,
    ) -> Result<Response<Body>, Rejection> {
        if loop_detection::check(&head.method, &mut head.headers)? == HopDecision::Respond {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        }
        let wanted = exchange.stripped.remove_remaining(&mut head.headers);
        let upgrades = self.websocket && wanted.as_ref().is_some_and(is_websocket);
        // Content before an upgrade could be mistaken for data of the new protocol.
        if upgrades && !http_body::Body::is_end_stream(&body) {
            return Err(Rejection::BadRequest);
        }
        let may_upgrade = upgrades && head.method == Method::GET;
        let expected = if may_upgrade { websocket::expected(&head.headers)? } else { None };
        let is_grpc = exchange.response_format.is_grpc();
        let bounds = if is_grpc { self.bounds.of_stream() } else { self.bounds };
        let body = exchange.receive(body, bounds)?;
        let began = exchange.clock().instant(exchange.started());
        let deadline = CallDeadline::read(&head.headers, began)?;
        self.target.rewrite(&mut head.uri)?;
        if exchange.route().is_some_and(|route| route.limits.reads_responses()) {
            response_cost::request_readable(&mut head.headers);
        }
        let begun = await_content::begin(body, head.version, exchange, &self.upstream);
        let body = match deadline {
            Some(deadline) => deadline.limit(begun).await??,
            None => begun.await?,
        };
        if let Some(deadline) = deadline {
            deadline.forward(&mut head.headers)?;
        }
        let token = self.identity_token(&permit, exchange)?;
        let fields = self.prepare(&permit, token.as_ref(), head, exchange, snapshot);
        let upgrade = expected.is_some().then(|| head.extensions.remove::<OnUpgrade>()).flatten();
        if let (Some(_), Some(protocol)) = (&upgrade, wanted) {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol);
        }
        let interim = RefCell::default();
        let wanted = exchange.peer.interim.are_wanted().then_some(&interim);
        let outgoing = OutgoingRequest { head, fields, interim: wanted };
        let started = exchange.moment.uptime;
        let options = SendOptions {
            idle: &gateway.idle,
            wait: self.timeout,
            began: started,
            retries: self.retries.as_ref(),
            key: None,
        };
        // Boxed: it is large, and the stages in between would move it.
        let mut sent = Box::pin(self.upstream.send(&outgoing, RequestContent::new(body), options));
        exchange.begin_wait();
        let relayed = poll_fn(|cx| {
            let polled = sent.as_mut().poll(cx);
            for response in interim.borrow_mut().drain(..) {
                self.pass_interim(response, &permit, exchange);
            }
            polled
        });
        let answered = match deadline {
            Some(deadline) => deadline.limit(relayed).await,
            None => Ok(relayed.await),
        };
        drop(sent);
        let sent = answered.inspect_err(|_| {
            exchange.end_wait(gateway.shared.retained.clock.uptime());
        })?;
        let sent = sent.map_err(|failure| {
            exchange.end_wait(gateway.shared.retained.clock.uptime());
            exchange.upstream_failed(*failure)
        })?;
        exchange.end_wait(started + sent.waited);
        exchange.forwarded_to(sent.endpoint, sent.attempts);
        let mut response = sent.response;
        if exchange.limit_state.has_unsettled() {
            response = Box::pin(response_cost::settle(response, exchange)).await;
        }
        if exchange.route().is_some_and(|route| route.cors.is_some()) {
            cors::remove_upstream_fields(response.headers_mut());
        }
        self.response.apply(response.headers_mut(), permit.principal.as_deref(), exchange);
        let guard = if sent.tunnel.is_some() || !response.body().is_buffered() {
            self.guard_stream(permit, exchange, gateway)?
        } else {
            None
        };
        if let Some(tunnel) = sent.tunnel {
            // An upgrade that the client did not request is refused.
            let client = upgrade
                .filter(|_| expected.is_some_and(|expected| expected.accepts(response.headers())))
                .ok_or(Rejection::Upstream(UpstreamError::Protocol))?;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            // A tunnel counts as a request in flight, and towards every limit, until it ends.
            let held = (exchange.in_flight.take(), exchange.limit_state.hand_over());
            if let Some(route) = exchange.route() {
                let tunnel = run_tunnel(client, tunnel, guard, Arc::clone(route), held);
                exchange.peer.upgraded.replace(Some(spawn_local(tunnel)));
            }
        } else if let Some(guard) = guard {
            exchange.stream_guard = Some(guard.clone());
            response = response.map(|body| GuardedBody::body(body, guard));
        }
        if let Some(deadline) = deadline {
            response = response.map(|body| deadline.body(body));
        }
        Ok(response)
    }

    /// Passes an interim response on to the client, edited like the final one.
    fn pass_interim(&self, mut response: Response<()>, permit: &Permit, exchange: &Exchange) {
        let headers = response.headers_mut();
        if exchange.route().is_some_and(|route| route.cors.is_some()) {
            cors::remove_upstream_fields(headers);
        }
        self.response.apply(headers, permit.principal.as_deref(), exchange);
        exchange.peer.interim.push(response.status(), response.headers());
    }

    /// Guards a stream: it ends with the authorization of its caller and with the upstream's `stream_timeout`. A
    /// public stream without a timeout has no guard.
    ///
    /// # Errors
    ///
    /// [`Rejection::Unauthenticated`] if the authorization was revoked while the upstream processed the request.
    fn guard_stream(
        &self,
        permit: Permit,
        exchange: &Exchange,
        gateway: &Gateway,
    ) -> Result<Option<StreamGuard>, Rejection> {
        let limit = self.upstream.settings().stream_timeout;
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut challenge =
            Challenge::InvalidToken("The access token has been revoked or has ended");
        let owner = match (permit, exchange.route()) {
            (Permit { principal: Some(principal), session, way: Some(way), .. }, Some(route)) => {
                if session.is_some() {
                    challenge = Challenge::SessionEnded;
                }
                let ends = route.authenticate.ends(&principal, way, exchange.received_at);
                Some(StreamOwner {
                    principal,
                    ends,
                    session,
                    close_on_expiry: self.close_on_expiry,
                })
            }
            _ => None,
        };
        if owner.is_none() && until.is_none() {
            return Ok(None);
        }
        let opened = gateway.streams.open(owner, until, &gateway.shared.retained.revocations);
        opened.map(Some).map_err(|_| Rejection::Unauthenticated(challenge))
    }

    /// Edits the head for the upstream, and returns the fields that are only appended when it is written.
    ///
    /// The client's own fields of these names were stripped before the route was matched.
    fn prepare<'a>(
        &'a self,
        permit: &'a Permit,
        token: Option<&'a HeaderValue>,
        head: &mut Parts,
        exchange: &'a Exchange,
        snapshot: &'a Snapshot,
    ) -> ExtraHeaders<'a> {
        let mut fields = ExtraHeaders::new();
        fields.add(&VIA, &headers::VIA_VALUE);
        for session in &snapshot.sessions {
            session.strip_cookies(&mut head.headers);
        }
        if let Some(way) = permit.way {
            Self::authorize(permit.bearer.as_ref(), &mut head.headers, &mut fields);
            if let Some(principal) = &permit.principal {
                self.identity[way].write(&mut fields, principal);
            }
            if let Some(token) = token {
                fields.add(&IDENTITY_TOKEN, token);
            }
        }
        exchange.forwarded().write(&mut fields, snapshot.server.forwarded_headers);
        fields.add(&snapshot.server.request_id_header, &exchange.request_id);
        if self.upstream.settings().host_header == HostHeader::Preserve {
            exchange.host.clone().map(|host| head.headers.insert(HOST, host));
        }
        if !self.request.is_empty() {
            fields.merge_into(&mut head.headers);
            self.request.apply(&mut head.headers, permit.principal.as_deref(), exchange);
        }
        fields
    }

    /// Returns the identity token of the caller, if the authentication method has one.
    fn identity_token(
        &self,
        permit: &Permit,
        exchange: &Exchange,
    ) -> Result<Option<HeaderValue>, Rejection> {
        let tokens = permit.way.and_then(|way| self.identity_tokens.get(way)?.as_ref());
        let (Some(tokens), Some(principal)) = (tokens, &permit.principal) else { return Ok(None) };
        let token = tokens.field(principal, exchange.moment.now);
        token.map(Some).map_err(|error| {
            tracing::error!(%error, "Could not sign an identity token; the request is refused.");
            Rejection::Internal
        })
    }

    /// Replaces the client's `Authorization` by the access token for the upstream.
    fn authorize<'a>(
        bearer: Option<&'a HeaderValue>,
        headers: &mut HeaderMap,
        fields: &mut ExtraHeaders<'a>,
    ) {
        // A proof is forwarded only with its token, for upstreams that check it again.
        if !bearer.is_some_and(proof_of_possession::is_dpop) {
            headers.remove(DPOP);
        }
        // The usual case: the token is forwarded as it was received.
        if bearer.is_some() && bearer == headers.get(AUTHORIZATION) {
            return;
        }
        headers.remove(AUTHORIZATION);
        if let Some(bearer) = bearer {
            fields.add(&AUTHORIZATION, bearer);
        }
    }
}

/// Relays an upgraded connection until both sides have closed it, or its guard ends it. The permits are held until
/// then.
async fn run_tunnel(
    client: OnUpgrade,
    tunnel: Tunnel,
    guard: Option<StreamGuard>,
    route: Arc<Route>,
    _held: (Option<InFlightPermit>, HeldPermits),
) {
    route.metrics.upgraded.inc();
    let open = OpenTunnel(route);
    let ended = async {
        match &guard {
            Some(guard) => guard.ended().await,
            None => core::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        reason = ended => {
            let route = &*open.0.id;
            tracing::info!(route, reason = reason.name(), "Closed an upgraded connection.");
        }
        copied = copy_both_ways(client, tunnel) => if let Err(error) = copied {
            tracing::debug!(%error, "An upgraded connection failed; both sides are closed.");
        },
    }
}

/// Copies bytes in both directions, once the client has received the 101 response.
async fn copy_both_ways(client: OnUpgrade, tunnel: Tunnel) -> io::Result<()> {
    let Some(mut client) = client.connection().await else {
        return Err(io::ErrorKind::ConnectionAborted.into());
    };
    tunnel.join(&mut client).await.map(drop)
}

struct OpenTunnel(Arc<Route>);

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.metrics.upgraded.dec();
    }
}
