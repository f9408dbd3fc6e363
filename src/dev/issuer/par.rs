//! Pushed authorization requests (RFC 9126): the client sends the request itself, before it redirects the browser.
//!
//! The browser then carries only the request's URI, so that no user agent or
//! proxy on the way can read or change the parameters.

use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde_json::json;

use super::authorization_request::{AuthorizationRequest, InvalidRequest};
use super::bounded_map::BoundedMap;
use super::error::OAuthError;
use super::form::Form;
use super::token_factory::random;
use super::{DevIssuer, credentials, response};
use crate::base::clock::Timestamp;
use crate::base::lock::IgnorePoison;

/// Pushed requests that no browser has used yet, by their request URI.
#[derive(Debug)]
pub(super) struct PushedRequests(Mutex<BoundedMap<String, (AuthorizationRequest, Timestamp)>>);

impl PushedRequests {
    pub(super) fn new() -> Self {
        Self(Mutex::new(BoundedMap::new(MAX_REQUESTS)))
    }

    /// Removes and returns the request that `client` pushed as `request_uri`, unless it has expired.
    pub(super) fn take(
        &self,
        request_uri: &str,
        client: &str,
        now: Timestamp,
    ) -> Option<AuthorizationRequest> {
        let mut requests = self.0.lock().ignore_poison();
        let (request, _) = requests.get_mut(&request_uri.to_owned())?;
        if *request.client.id != *client {
            return None;
        }
        let (request, expires) = requests.remove(&request_uri.to_owned())?;
        (now < expires).then_some(request)
    }

    fn insert(&self, request_uri: String, request: AuthorizationRequest, expires: Timestamp) {
        let mut requests = self.0.lock().ignore_poison();
        requests.insert(request_uri, (request, expires));
    }
}

/// Stores a pushed request and returns its URI (RFC 9126 §2.2).
pub(super) async fn handle(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Response, OAuthError> {
    let client = credentials::authenticate(&issuer, &headers, &form)?;
    let request =
        AuthorizationRequest::validate(&issuer, client, &form).map_err(
            |invalid| match invalid {
                InvalidRequest::NoRedirect(description) => OAuthError::request(description),
                InvalidRequest::Redirect(_, error) => error,
            },
        )?;
    let request_uri = format!("{URI_PREFIX}{}", random()?);
    let expires = issuer.clock.now().plus_secs(LIFETIME_SECS);
    issuer.pushed_requests.insert(request_uri.clone(), request, expires);
    let body = json!({ "request_uri": request_uri, "expires_in": LIFETIME_SECS });
    Ok(response::json(StatusCode::CREATED, &body))
}

const URI_PREFIX: &str = "urn:ietf:params:oauth:request_uri:";
/// How long a browser may take to present the request URI.
const LIFETIME_SECS: u64 = 60;
const MAX_REQUESTS: usize = 10_000;
