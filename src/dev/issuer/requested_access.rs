//! The scopes and resources that a request asks for, within what its client may have.

use super::clients::Client;
use super::config::DevIssuerConfig;
use super::error::OAuthError;
use super::form::Parameters;
use crate::base::scopes::Scopes;

/// Returns the requested scopes; without any, the client's scopes except those about the user.
pub(super) fn requested_scopes(client: &Client, form: &Parameters) -> Result<Scopes, OAuthError> {
    let Some(requested) = form.one("scope").map(Scopes::parse) else {
        let of_user = Scopes::parse(USER_SCOPES);
        return Ok(client.scopes.iter().filter(|scope| !of_user.contains(scope)).collect());
    };
    if requested.is_subset(&client.scopes) { Ok(requested) } else { Err(OAuthError::SCOPE) }
}

/// Returns the requested resources (RFC 8707 §2), if all are known; without any, the first known one.
pub(super) fn requested_audience(
    config: &DevIssuerConfig,
    form: &Parameters,
) -> Result<Vec<String>, OAuthError> {
    let known = |uri: &str| config.resources.iter().any(|r| r.uri == uri);
    let requested: Vec<String> = form.all("resource").map(str::to_owned).collect();
    if requested.is_empty() {
        return Ok(config.resources.first().map(|r| r.uri.clone()).into_iter().collect());
    }
    requested.iter().all(|uri| known(uri)).then_some(requested).ok_or(OAuthError::TARGET)
}

/// Scopes about the user: only a user can grant them, and a client must request them explicitly.
pub(super) const USER_SCOPES: &str = "openid profile email offline_access";
