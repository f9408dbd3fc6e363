//! The action of a route: forward, respond, publish keys, or serve a session's own paths.

use std::sync::Arc;

use futures_util::future::Either;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};

use crate::base::body::Body;
use crate::gateway::exchange::Exchange;
use crate::gateway::policy::authorize::Permit;
use crate::gateway::proxy::forward::Forward;
use crate::gateway::proxy::header_edits::HeaderEditor;
use crate::gateway::proxy::identity_token::SigningKeySet;
use crate::gateway::proxy::rewrite;
use crate::gateway::request::path;
use crate::gateway::request::request_body::BodyLimits;
use crate::gateway::response::problem;
use crate::gateway::response::rejection::Rejection;
use crate::gateway::response::static_response::StaticResponse;
use crate::gateway::stage_context::StageContext;
use crate::gateway::thread_state::ThreadState;
use crate::session::Sessions;

/// The action of a route on an authorized request.
#[derive(Debug)]
pub(crate) enum Action {
    /// Forwards the request to an upstream.
    Forward(Box<Forward>),
    /// Returns a fixed response, with the edits of the route.
    Respond(StaticResponse, HeaderEditor),
    /// Returns the public keys of identity tokens (RFC 7517).
    Jwks(Arc<SigningKeySet>),
    /// Serves a session's own paths: login, logout, status.
    Session(Arc<Sessions>),
    /// The route is disabled: it matches, so that no less specific route takes over, and responds 404.
    Disabled,
}

/// Rewrites one of the gateway's own paths to its canonical form, decoding needless escapes of the client.
fn normalize_own_path(uri: &mut Uri) -> Result<(), Rejection> {
    if path::is_plain(uri.path()) {
        return Ok(());
    }
    let canonical = path::canonical(uri.path()).map_err(|_| Rejection::BadRequest)?.into_owned();
    rewrite::set_path(uri, &canonical)
}

impl Action {
    /// Creates a redirect to `to`.
    pub(crate) fn redirect(to: HeaderValue, status: StatusCode, edits: HeaderEditor) -> Self {
        let headers = HeaderMap::from_iter([(LOCATION, to)]);
        Self::Respond(StaticResponse { status, headers, body: bytes::Bytes::new() }, edits)
    }

    /// Returns the name of the upstream that requests are forwarded to, if any.
    pub(crate) fn upstream(&self) -> Option<&Arc<str>> {
        match self {
            Self::Forward(forward) => Some(&forward.receiver.upstream.settings().name),
            Self::Respond(..) | Self::Jwks(_) | Self::Session(_) | Self::Disabled => None,
        }
    }

    /// Runs the action on an authorized request.
    ///
    /// # Errors
    ///
    /// The failure of the upstream, if the request is forwarded.
    pub(crate) fn run<'a>(
        &'a self,
        permit: Permit,
        head: &'a mut Parts,
        body: Body,
        exchange: &'a mut Exchange,
        context: &'a StageContext,
        thread: &'a ThreadState,
    ) -> impl Future<Output = Result<Response<Body>, Rejection>> {
        // `Either`, not `async`: the large future of the usual case, forwarding, is not wrapped in another one.
        match self {
            Self::Forward(forward) => {
                Either::Left(forward.run(permit, head, body, exchange, thread))
            }
            _ => Either::Right(self.respond(permit, head, body, exchange, context)),
        }
    }

    /// Responds without an upstream.
    async fn respond(
        &self,
        permit: Permit,
        head: &mut Parts,
        body: Body,
        exchange: &mut Exchange,
        context: &StageContext,
    ) -> Result<Response<Body>, Rejection> {
        match self {
            Self::Respond(response, edits) => {
                let mut response = response.response();
                edits.apply(response.headers_mut(), permit.principal.as_deref(), exchange);
                Ok(response)
            }
            Self::Jwks(keys) => {
                let mut response = Response::new(Body::from(keys.published()));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                let five_minutes = HeaderValue::from_static("public, max-age=300");
                response.headers_mut().insert(CACHE_CONTROL, five_minutes);
                Ok(response)
            }
            Self::Session(session) => {
                let mut head = core::mem::replace(head, Request::new(()).into_parts().0);
                normalize_own_path(&mut head.uri)?;
                let bounds = BodyLimits::of(&context.server);
                let body = exchange.receive(body, bounds, &context.reserved)?;
                let body = body.map_or_else(Body::empty, Body::streaming);
                let request = Request::from_parts(head, body);
                // Boxed: rarely used and large, and every request carries this future.
                let served =
                    Box::pin(session.serve(request, exchange.client, exchange.is_secure()));
                let response = exchange.measured(served).await;
                if exchange.received.is_refused() {
                    return Err(exchange.body_failed());
                }
                Ok(problem::add_request_id(response, &exchange.request_id))
            }
            Self::Disabled | Self::Forward(_) => Err(Rejection::NoRoute),
        }
    }
}
