//! The only consumer of a permit for a service: rewrite, send, stream back.

use core::time::Duration;
use std::sync::Arc;

use http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::authorize::Permit;
use super::edits::Edits;
use super::exchange::Exchange;
use super::headers::{self, Forwarded, X_FORWARDED_FOR};
use super::receive::{self, Bounds};
use super::rewrite::Target;
use super::{Gateway, Rejection, Route, Snapshot};
use crate::base::body::Body;
use crate::config::auth::IdentityHeader;
use crate::token::Principal;
use crate::upstream::{Failure, HostHeader, Tunnel, Upstream};

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
    pub identity: Box<[Box<[IdentityHeader]>]>,
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
        mut head: Parts,
        body: Body,
        exchange: &mut Exchange,
        snapshot: &Snapshot,
        on: &Gateway,
    ) -> Result<Response<Body>, Rejection> {
        let wanted = self.prepare(&permit, &mut head, exchange, snapshot);
        let upgrade = self
            .may_upgrade(wanted.as_ref(), &body)
            .then(|| head.extensions.remove::<OnUpgrade>())
            .flatten();
        if let (Some(_), Some(protocol)) = (&upgrade, wanted) {
            head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(UPGRADE, protocol);
        }
        let body = receive::bounded(body, self.bounds, &snapshot.reserved, &exchange.received)?;
        let sent = self.upstream.send(&head, body, &on.idle, self.timeout).await;
        let answer = sent.map_err(|failure| match failure {
            Failure::Client => exchange.received.rejection(),
            failure => failure.into(),
        })?;
        exchange.sent_to(answer.endpoint, answer.attempts, answer.waited);
        let mut response = answer.response;
        let protocol = response.headers_mut().remove(UPGRADE);
        headers::scrub_response(response.headers_mut());
        self.response.apply(response.headers_mut(), permit.principal.as_deref(), exchange);
        if let Some(tunnel) = answer.tunnel {
            let client = upgrade.ok_or(Rejection::Upstream(Failure::Protocol))?;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().extend(protocol.map(|protocol| (UPGRADE, protocol)));
            if let Some(route) = exchange.route() {
                tokio::task::spawn_local(join(client, tunnel, Arc::clone(route)));
            }
        }
        Ok(response)
    }

    /// Makes the head the one that the service is to see; says which protocol the client wants to switch to.
    fn prepare(
        &self,
        permit: &Permit,
        head: &mut Parts,
        exchange: &Exchange,
        snapshot: &Snapshot,
    ) -> Option<HeaderValue> {
        let headers = &mut head.headers;
        let before = if exchange.trusted { headers.get(X_FORWARDED_FOR).cloned() } else { None };
        let wanted = headers::scrub_request(headers, &snapshot.reserved);
        for session in &snapshot.sessions {
            session.strip_cookies(headers);
        }
        if let Some(way) = permit.way {
            match &permit.bearer {
                Some(bearer) => headers.insert(AUTHORIZATION, bearer.clone()),
                None => headers.remove(AUTHORIZATION),
            };
            if let Some(principal) = &permit.principal {
                identify(headers, &self.identity[way], principal);
            }
        }
        let forwarded = Forwarded {
            before: before.as_ref(),
            peer: exchange.peer.ip,
            peer_value: &exchange.peer.address,
            host: exchange.host.as_ref(),
            secure: exchange.is_secure(),
        };
        forwarded.write(headers, snapshot.server.forwarded_headers);
        headers.insert(&snapshot.server.request_id_header, exchange.request_id.clone());
        if self.upstream.settings().host_header == HostHeader::Preserve {
            headers.extend(exchange.host.clone().map(|host| (HOST, host)));
        }
        self.request.apply(headers, permit.principal.as_deref(), exchange);
        self.target.rewrite(&mut head.uri);
        wanted
    }

    /// Only `WebSockets` are let through (RFC 6455 §4.1), and only without a body that somebody could mistake for frames.
    fn may_upgrade(&self, wanted: Option<&HeaderValue>, body: &Body) -> bool {
        let websocket =
            wanted.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
        self.websocket && websocket && http_body::Body::is_end_stream(body)
    }
}

/// Says in fields who the caller is. An absent claim leaves no field: the client's own was taken away before.
fn identify(headers: &mut HeaderMap, identity: &[IdentityHeader], principal: &Principal) {
    for IdentityHeader { name, claim } in identity {
        if let Some(value) = identity_value(principal, claim) {
            headers.insert(name, value);
        }
    }
}

fn identity_value(principal: &Principal, claim: &str) -> Option<HeaderValue> {
    use serde_json::Value;
    let text = |text: &str| headers::safe_value(text);
    match (claim, principal.claim(claim)) {
        // These three are named differently by different issuers; the principal knows what they mean.
        ("sub", _) => principal.subject.as_deref().map(text),
        ("client_id", _) => principal.client.as_deref().map(text),
        ("scope", _) => (!principal.scopes.is_empty()).then(|| text(&principal.scopes.to_string())),
        (_, None | Some(Value::Null)) => None,
        (_, Some(Value::String(value))) => Some(text(value)),
        (_, Some(other)) => Some(text(&other.to_string())),
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
