//! Ending a token before its time (RFC 7009).

use http::{HeaderMap, StatusCode};

use super::error::OAuthError;
use super::form::Form;
use super::reply::{self, Reply};
use super::{DevIssuer, credentials};

/// Answers a revocation request. The token's kind is known here, so `token_type_hint` is not needed.
pub(super) fn answer(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<Reply, OAuthError> {
    let client = credentials::client(issuer, headers, form)?;
    let token = form.required("token", "The token is missing.")?;
    issuer.store.revoke(token, &client.id)?;
    Ok(reply::empty(StatusCode::OK))
}
