//! The only consumer of a permit for a service: rewrite, send, stream back.

use core::time::Duration;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE, VIA};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::authorize::Permit;
use super::edits::Edits;
use super::exchange::Exchange;
use super::headers::{self, Forwarded};
use super::identity::Identity;
use super::identity_token::{IDENTITY_TOKEN, IdentityTokens};
use super::receive::{self, Bounds};
use super::rewrite::Target;
use super::{Gateway, Rejection, Route, Snapshot};
use crate::base::body::Body;
use crate::upstream::{Failure, Fields, HostHeader, Outgoing, Tunnel, Upstream};

/// How a route's requests reach its service.
#[derive(Debug)]
pub(super) struct Forward {
    /// The service.
    pub upstream: Arc<Upstream>,
    /// How long the answer's head may take.
    pub timeout: Duration,
    /// Bounds of the request's body.
    pub bounds: Bounds,
    /// What becomes of the path.
    pub target: Target,
    /// Fields changed on the way to the service.
    pub request: Edits,
    /// Fields changed on the way back.
    pub response: Edits,
    /// What the service learns about the caller, for each way in.
    pub identity: Box<[Identity]>,
    /// The gateway's own word on who that is, for each way in that wants it.
    pub identity_tokens: Box<[Option<IdentityTokens>]>,
    /// Lets connections be upgraded.
    pub websocket: bool,
}

impl Forward {
    /// Sends a permitted request to the service and hands back its answer.
    ///
    /// # Errors
    ///
    /// What the service's failure means for the client.
    pub(super) async fn run(
        &self,
        permit: Permit,
        head: &mut Parts,
        body: Body,
        exchange: &mut Exchange,
        snapshot: &Snapshot,
        on: &Gateway,
    ) -> Result<Response<Body>, Rejection> {
        let wanted = headers::scrub_request(&mut head.headers, &snapshot.reserved);
        let token = self.identity_token(&permit, exchange)?;
        let fields = self.prepare(&permit, token.as_ref(), head, exchange, snapshot);
        let upgrade = self
            .may_upgrade(wanted.as_ref(), &body)
            .then(|| head.extensions.remove::<OnUpgrade>())
            .flatten();
        if let (Some(_), Some(protocol)) = (&upgrade, wanted) {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol);
        }
        let body = receive::bounded(body, self.bounds, &snapshot.reserved, &exchange.received)?;
        let (outgoing, began) = (Outgoing { head, fields }, exchange.moment.uptime);
        let sent = self.upstream.send(outgoing, body, &on.idle, self.timeout, began).await;
        let answer = sent.map_err(|failure| match failure {
            Failure::Client => exchange.received.rejection(),
            failure => failure.into(),
        })?;
        exchange.sent_to(answer.endpoint, answer.attempts, answer.waited);
        let mut response = answer.response;
        self.response.apply(response.headers_mut(), permit.principal.as_deref(), exchange);
        if let Some(tunnel) = answer.tunnel {
            let client = upgrade.ok_or(Rejection::Upstream(Failure::Protocol))?;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(route) = exchange.route() {
                tokio::task::spawn_local(join(client, tunnel, Arc::clone(route)));
            }
        }
        Ok(response)
    }

    /// Makes the head the one that the service is to see, but for the fields that are only written behind it.
    ///
    /// The client's own fields of these names are gone: [`headers::scrub_request`] has taken them away.
    fn prepare<'a>(
        &'a self,
        permit: &'a Permit,
        token: Option<&'a HeaderValue>,
        head: &mut Parts,
        exchange: &'a Exchange,
        snapshot: &'a Snapshot,
    ) -> Fields<'a> {
        let mut fields = Fields::new();
        fields.add(&VIA, &headers::VIA_US);
        for session in &snapshot.sessions {
            session.strip_cookies(&mut head.headers);
        }
        if let Some(way) = permit.way {
            self.authorize(permit.bearer.as_ref(), &mut head.headers, &mut fields);
            if let Some(principal) = &permit.principal {
                self.identity[way].write(&mut fields, principal);
            }
            if let Some(token) = token {
                fields.add(&IDENTITY_TOKEN, token);
            }
        }
        let forwarded = Forwarded {
            before: exchange.forwarded_for.as_ref(),
            peer: exchange.peer.ip,
            peer_value: &exchange.peer.address,
            host: exchange.host.as_ref(),
            secure: exchange.is_secure(),
        };
        forwarded.write(&mut fields, snapshot.server.forwarded_headers);
        fields.add(&snapshot.server.request_id_header, &exchange.request_id);
        if self.upstream.settings().host_header == HostHeader::Preserve {
            exchange.host.clone().map(|host| head.headers.insert(HOST, host));
        }
        if !self.request.is_empty() {
            fields.fold_into(&mut head.headers);
            self.request.apply(&mut head.headers, permit.principal.as_deref(), exchange);
        }
        self.target.rewrite(&mut head.uri);
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
        &self,
        bearer: Option<&'a HeaderValue>,
        headers: &mut HeaderMap,
        fields: &mut Fields<'a>,
    ) {
        // What is to arrive has mostly come just so.
        if bearer.is_some() && bearer == headers.get(AUTHORIZATION) {
            return;
        }
        headers.remove(AUTHORIZATION);
        if let Some(bearer) = bearer {
            fields.add(&AUTHORIZATION, bearer);
        }
    }

    /// Only `WebSockets` are let through (RFC 6455 §4.1), and only without a body that somebody could mistake for frames.
    fn may_upgrade(&self, wanted: Option<&HeaderValue>, body: &Body) -> bool {
        let websocket =
            wanted.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
        self.websocket && websocket && http_body::Body::is_end_stream(body)
    }
}

/// Lets the two sides of an upgraded connection speak to each other until both have ended.
async fn join(client: OnUpgrade, tunnel: Tunnel, route: Arc<Route>) {
    route.metrics.upgraded.inc();
    let _open = Open(route);
    match client.await {
        Ok(client) => {
            if let Err(error) = tunnel.join(&mut TokioIo::new(client)).await {
                tracing::debug!(%error, "An upgraded connection broke off.");
            }
        }
        Err(error) => {
            tracing::debug!(%error, "A client went away before its connection was upgraded.");
        }
    }
}

struct Open(Arc<Route>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics.upgraded.dec();
    }
}
