//! Token revocation (RFC 7009).

use std::sync::Arc;

use axum::extract::State;
use http::{HeaderMap, StatusCode};

use super::error::OAuthError;
use super::form::Form;
use super::{DevIssuer, credentials};

/// Revokes the token. The store knows its kind, so `token_type_hint` is not needed.
pub(super) async fn handle(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<StatusCode, OAuthError> {
    let client = credentials::authenticate(&issuer, &headers, &form)?;
    let token = form.required("token", "The token is missing.")?;
    issuer.store.revoke(token, &client.id)?;
    Ok(StatusCode::OK)
}
