//! The URL table: one line per endpoint.

use core::time::Duration;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use http::header::HOST;
use tower_http::limit::RequestBodyLimitLayer;

use super::error::OAuthError;
use super::form::SameOrigin;
use super::{
    DevIssuer, authorize, introspect, logout, metadata, pages, par, paths, registration, response,
    revoke, token, userinfo,
};
use crate::dev::http_server::{is_loopback_host, with_layers};

/// Returns the issuer's endpoints. `GET` routes serve `HEAD` as well; other methods get `405` with `Allow`.
pub(super) fn router(issuer: Arc<DevIssuer>) -> Router {
    let router = Router::new()
        .route(paths::OAUTH_METADATA, get(metadata::handle))
        .route(paths::OPENID_METADATA, get(metadata::handle))
        .route(paths::JWKS, get(jwks))
        .route(paths::AUTHORIZE, get(authorize::start).post(authorize::start_by_form))
        .route(paths::LOGIN, post(authorize::log_in))
        .route(paths::CONSENT, get(authorize::resume).post(authorize::consent))
        .route(paths::END_SESSION, get(logout::start).post(logout::confirm))
        .route(paths::PUSH, post(par::handle))
        .route(paths::TOKEN, post(token::handle))
        .route(paths::INTROSPECT, post(introspect::handle))
        .route(paths::REVOKE, post(revoke::handle))
        .route(paths::USERINFO, get(userinfo::handle).post(userinfo::handle))
        .route(paths::REGISTER, get(async || pages::register(None)).post(registration::handle))
        .route(paths::HOME, get(home))
        .route(paths::STYLE, get(async || pages::style_sheet()))
        .route(paths::ROTATE, post(rotate))
        .layer(DefaultBodyLimit::disable())
        .layer(RequestBodyLimitLayer::new(MAX_BODY_BYTES))
        .layer(from_fn(require_loopback_host))
        .with_state(issuer);
    with_layers(router, RESPONSE_TIMEOUT)
}

/// Publishes the JWK set (RFC 7517 §5).
async fn jwks(State(issuer): State<Arc<DevIssuer>>) -> Response {
    response::public_json(&issuer.keys.published(), JWKS_MAX_AGE_SECS)
}

/// Describes the issuer, its users and its clients to the developer.
async fn home(State(issuer): State<Arc<DevIssuer>>) -> Response {
    pages::home(&issuer)
}

/// Rotates the signing keys from the home page.
async fn rotate(
    _: SameOrigin,
    State(issuer): State<Arc<DevIssuer>>,
) -> Result<Response, OAuthError> {
    issuer.keys.rotate().map_err(|_| OAuthError::SERVER)?;
    Ok(response::see_other(paths::HOME))
}

/// Refuses requests for any host but this machine with `421`: see [`is_loopback_host`].
async fn require_loopback_host(request: Request, next: Next) -> Response {
    if !request.headers().get(HOST).is_some_and(is_loopback_host) {
        return StatusCode::MISDIRECTED_REQUEST.into_response();
    }
    next.run(request).await
}

/// The largest content of a request.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// The longest until a response begins.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a cache may reuse the JWK set.
const JWKS_MAX_AGE_SECS: u64 = 300;
