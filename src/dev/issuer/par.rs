//! Pushed authorization requests (RFC 9126): the client sends the request itself, before it redirects the browser.
//!
//! The browser then carries only the request's URI, so that no user agent or
//! proxy on the way can read or change the parameters.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::authorization_request::{AuthorizationRequest, InvalidRequest};
use super::error::OAuthError;
use super::form::Form;
use super::random::random;
use super::{DevIssuer, credentials, response};

/// Stores a pushed request and returns its URI (RFC 9126 §2.2).
pub(super) async fn handle(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Response, OAuthError> {
    let client = credentials::authenticate(&issuer, &headers, &form)?;
    let request =
        AuthorizationRequest::validate(&issuer.config, client, &form).map_err(|invalid| {
            match invalid {
                InvalidRequest::NoRedirect(description) => OAuthError::request(description),
                InvalidRequest::Redirect(_, error) => error,
            }
        })?;
    let request_uri = format!("{URI_PREFIX}{}", random()?);
    let expires = issuer.clock.now().plus_secs(LIFETIME_SECS);
    issuer.pushed_requests.insert(request_uri.clone(), request, expires);
    let body = json!({ "request_uri": request_uri, "expires_in": LIFETIME_SECS });
    Ok(response::json(StatusCode::CREATED, &body))
}

const URI_PREFIX: &str = "urn:ietf:params:oauth:request_uri:";
/// How long a browser may take to present the request URI.
const LIFETIME_SECS: u64 = 60;
