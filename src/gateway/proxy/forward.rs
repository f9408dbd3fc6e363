//! The only consumer of a permit for a service: rewrite, send, stream back.

use core::time::Duration;
use std::io;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use tokio::task::spawn_local;
use tokio::time::Instant;

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
use crate::gateway::policy::proof_of_possession;
use crate::gateway::policy::proof_of_possession::DPOP;
use crate::gateway::request::headers;
use crate::gateway::request::loop_detection;
use crate::gateway::request::loop_detection::HopDecision;
use crate::gateway::request::request_body::BodyLimits;
use crate::gateway::response::rejection::Challenge;
use crate::gateway::{Gateway, InFlightPermit, Rejection, Route, Snapshot};
use crate::http1::OnUpgrade;
use crate::limit::HeldPermits;
use crate::upstream::{ExtraHeaders, HostHeader, OutgoingRequest, Tunnel, Upstream, UpstreamError};

/// How a route's requests reach its service.
#[derive(Debug)]
pub(crate) struct Forward {
    /// The service.
    pub upstream: Arc<Upstream>,
    /// How long the answer's head may take.
    pub timeout: Duration,
    /// Bounds of the request's body.
    pub bounds: BodyLimits,
    /// What becomes of the path.
    pub target: TargetRewriter,
    /// Fields changed on the way to the service.
    pub request: HeaderEditor,
    /// Fields changed on the way back.
    pub response: HeaderEditor,
    /// What the service learns about the caller, for each way in.
    pub identity: Box<[IdentityHeaders]>,
    /// The gateway's own word on who that is, for each way in that wants it.
    pub identity_tokens: Box<[Option<IdentityTokens>]>,
    /// Lets connections be upgraded.
    pub websocket: bool,
    /// Ends streams with the token that opened them.
    pub close_on_expiry: bool,
}

impl Forward {
    /// Sends a permitted request to the service and hands back its answer.
    ///
    /// # Errors
    ///
    /// What the service's failure means for the client.
    pub(crate) async fn run(
        &self,
        permit: Permit,
        head: &mut Parts,
        body: Body,
        exchange: &mut Exchange,
        snapshot: &Snapshot,
        on: &Gateway,
    ) -> Result<Response<Body>, Rejection> {
        if loop_detection::check(&head.method, &mut head.headers)? == HopDecision::Answer {
            let mut here = Response::new(Body::empty());
            *here.status_mut() = StatusCode::NO_CONTENT;
            return Ok(here);
        }
        let wanted = exchange.scrubbed.take_rest(&mut head.headers);
        let upgrades = self.websocket && wanted.as_ref().is_some_and(is_websocket);
        // A body before the other protocol's bytes is one that somebody could mistake for them.
        if upgrades && !http_body::Body::is_end_stream(&body) {
            return Err(Rejection::BadRequest);
        }
        let may_upgrade = upgrades && head.method == Method::GET;
        let expected = if may_upgrade { websocket::expected(&head.headers)? } else { None };
        let body = exchange.receive(body, self.bounds)?;
        let token = self.identity_token(&permit, exchange)?;
        self.target.rewrite(&mut head.uri)?;
        let fields = self.prepare(&permit, token.as_ref(), head, exchange, snapshot);
        let upgrade = expected.is_some().then(|| head.extensions.remove::<OnUpgrade>()).flatten();
        if let (Some(_), Some(protocol)) = (&upgrade, wanted) {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol);
        }
        let (outgoing, began) = (OutgoingRequest { head, fields }, exchange.moment.uptime);
        // Boxed: the stages in between would move it along, and it is large.
        let sent = Box::pin(self.upstream.send(outgoing, body, &on.idle, self.timeout, began));
        exchange.measure_wait();
        let answer = sent.await.map_err(|failure| {
            exchange.end_wait(on.shared.kept.clock.uptime());
            match failure {
                UpstreamError::Client => exchange.body_failed(),
                failure => failure.into(),
            }
        })?;
        exchange.end_wait(began + answer.waited);
        exchange.forwarded_to(answer.endpoint, answer.attempts);
        let mut response = answer.response;
        if exchange.route().is_some_and(|route| route.cors.is_some()) {
            cors::take_from(response.headers_mut());
        }
        self.response.apply(response.headers_mut(), permit.principal.as_deref(), exchange);
        let lifeline = if answer.tunnel.is_some() || !response.body().is_buffered() {
            self.guard_stream(permit, exchange, on)?
        } else {
            None
        };
        if let Some(tunnel) = answer.tunnel {
            // A service that switches to what nobody asked for is not followed.
            let client = upgrade
                .filter(|_| expected.is_some_and(|expected| expected.is(response.headers())))
                .ok_or(Rejection::Upstream(UpstreamError::Protocol))?;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            // It is a request in flight for as long as it lasts, to every limit.
            let held = (exchange.place.take(), exchange.standing.hand_over());
            if let Some(route) = exchange.route() {
                let joined = run_tunnel(client, tunnel, lifeline, Arc::clone(route), held);
                exchange.peer.upgraded.replace(Some(spawn_local(joined)));
            }
        } else if let Some(lifeline) = lifeline {
            exchange.lifeline = Some(lifeline.clone());
            response = response.map(|body| GuardedBody::body(body, lifeline));
        }
        Ok(response)
    }

    /// Holds a stream open for whoever opened it, and no longer than streams may last; nothing holds one that anybody
    /// may open for any time.
    ///
    /// # Errors
    ///
    /// A 401 if they may not any more: what let them in was revoked while the service thought.
    fn guard_stream(
        &self,
        permit: Permit,
        exchange: &Exchange,
        on: &Gateway,
    ) -> Result<Option<StreamGuard>, Rejection> {
        let limit = self.upstream.settings().stream_timeout;
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut challenge =
            Challenge::InvalidToken("The access token has been revoked or has ended");
        let opener = match (permit, exchange.route()) {
            (Permit { principal: Some(principal), visit, way: Some(way), .. }, Some(route)) => {
                if visit.is_some() {
                    challenge = Challenge::SessionEnded;
                }
                let ends = route.authenticate.ends(&principal, way, exchange.received_at);
                Some(StreamOwner { principal, ends, visit, close_on_expiry: self.close_on_expiry })
            }
            _ => None,
        };
        if opener.is_none() && until.is_none() {
            return Ok(None);
        }
        let opened = on.streams.open(opener, until, &on.shared.kept.revocations);
        opened.map(Some).map_err(|_| Rejection::Unauthenticated(challenge))
    }

    /// Makes the head the one that the service is to see, but for the fields that are only written behind it.
    ///
    /// The client's own fields of these names are gone since before the route was chosen.
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

    /// The identity token of whoever asks, if the way they came wants one.
    fn identity_token(
        &self,
        permit: &Permit,
        exchange: &Exchange,
    ) -> Result<Option<HeaderValue>, Rejection> {
        let tokens = permit.way.and_then(|way| self.identity_tokens.get(way)?.as_ref());
        let (Some(tokens), Some(principal)) = (tokens, &permit.principal) else { return Ok(None) };
        let token = tokens.field(principal, exchange.moment.now);
        token.map(Some).map_err(|error| {
            tracing::error!(%error, "No identity token could be signed.");
            Rejection::Internal
        })
    }

    /// Puts the access token where the client's own credentials were.
    fn authorize<'a>(
        bearer: Option<&'a HeaderValue>,
        headers: &mut HeaderMap,
        fields: &mut ExtraHeaders<'a>,
    ) {
        // A proof goes where its token goes, for services that look again, and nowhere else.
        if !bearer.is_some_and(proof_of_possession::comes_with_proof) {
            headers.remove(DPOP);
        }
        // What is to arrive has mostly come just so.
        if bearer.is_some() && bearer == headers.get(AUTHORIZATION) {
            return;
        }
        headers.remove(AUTHORIZATION);
        if let Some(bearer) = bearer {
            fields.add(&AUTHORIZATION, bearer);
        }
    }
}

/// Lets the two sides of an upgraded connection speak to each other until both have ended, or
/// whoever opened it may not any more. What limits count of it is held until then.
async fn run_tunnel(
    client: OnUpgrade,
    tunnel: Tunnel,
    lifeline: Option<StreamGuard>,
    route: Arc<Route>,
    _held: (Option<InFlightPermit>, HeldPermits),
) {
    route.metrics.upgraded.inc();
    let open = OpenTunnel(route);
    let cut = async {
        match &lifeline {
            Some(lifeline) => lifeline.cut().await,
            None => core::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        why = cut => {
            let route = &*open.0.id;
            tracing::info!(route, reason = why.name(), "An upgraded connection was ended.");
        }
        joined = copy_both_ways(client, tunnel) => if let Err(error) = joined {
            tracing::debug!(%error, "An upgraded connection broke off.");
        },
    }
}

/// Passes bytes both ways, once the client has been told that they may come.
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
