//! What happens to a request that may pass.

use std::sync::Arc;

use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};

use crate::base::body::Body;
use crate::gateway::exchange::Exchange;
use crate::gateway::policy::authorize::Permit;
use crate::gateway::proxy::forward::Forward;
use crate::gateway::proxy::identity_token::SigningKeySet;
use crate::gateway::proxy::rewrite;
use crate::gateway::request::path;
use crate::gateway::request::request_body::BodyLimits;
use crate::gateway::{Gateway, Rejection, Snapshot};
use crate::session::Sessions;

/// What happens to a request that may pass.
#[derive(Debug)]
pub(crate) enum Action {
    /// It goes to a service.
    Forward(Box<Forward>),
    /// The gateway answers, always the same.
    Respond {
        /// The status.
        status: StatusCode,
        /// The answer's fields.
        headers: HeaderMap,
        /// The answer's body.
        body: bytes::Bytes,
    },

    /// The public keys of identity tokens.
    Jwks(Arc<SigningKeySet>),
    /// A session's own paths: login, logout, status.
    Session(Arc<Sessions>),
    /// The route is switched off: it matches, so that nothing less specific takes over, and is not there.
    Disabled,
}

/// Writes a path of the gateway's own as the operator has written it, whatever the client has escaped of it.
fn own_path(uri: &mut Uri) -> Result<(), Rejection> {
    if path::is_plain(uri.path()) {
        return Ok(());
    }
    let canonical = path::canonical(uri.path()).map_err(|_| Rejection::BadRequest)?.into_owned();
    rewrite::set_path(uri, &canonical)
}

impl Action {
    /// The client is sent elsewhere.
    pub(crate) fn redirect(to: HeaderValue, status: StatusCode) -> Self {
        Self::Respond {
            status,
            headers: HeaderMap::from_iter([(LOCATION, to)]),
            body: bytes::Bytes::new(),
        }
    }

    /// Acts upon a permitted request.
    ///
    /// # Errors
    ///
    /// What went wrong at the service, if it goes to one.
    pub(crate) async fn run(
        &self,
        permit: Permit,
        head: &mut Parts,
        body: Body,
        exchange: &mut Exchange,
        snapshot: &Snapshot,
        on: &Gateway,
    ) -> Result<Response<Body>, Rejection> {
        match self {
            Self::Forward(forward) => forward.run(permit, head, body, exchange, snapshot, on).await,
            Self::Respond { status, headers, body } => {
                let mut response = Response::new(Body::from(body.clone()));
                *response.status_mut() = *status;
                response.headers_mut().clone_from(headers);
                Ok(response)
            }
            Self::Jwks(keys) => {
                let mut response = Response::new(Body::from(keys.published()));
                let json = HeaderValue::from_static("application/json");
                response.headers_mut().insert(CONTENT_TYPE, json);
                let while_fresh = HeaderValue::from_static("public, max-age=300");
                response.headers_mut().insert(CACHE_CONTROL, while_fresh);
                Ok(response)
            }
            Self::Session(session) => {
                let mut head = core::mem::replace(head, Request::new(()).into_parts().0);
                own_path(&mut head.uri)?;
                let bounds = BodyLimits::of(&snapshot.server);
                let body = exchange.receive(body, bounds)?;
                let request = Request::from_parts(head, body);
                // Rare, and large: kept out of the future that every request carries.
                let served =
                    Box::pin(session.serve(request, exchange.client, exchange.is_secure()));
                let response = exchange.measured(served).await;
                if exchange.received.is_refused() {
                    return Err(exchange.body_failed());
                }
                Ok(response)
            }
            Self::Disabled => Err(Rejection::NoRoute),
        }
    }
}
