//! The token endpoint (RFC 6749 §3.2).

use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::State;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, json};

use super::DevIssuer;
use super::clients::{Authentication, Client, GrantType};
use super::credentials;
use super::error::{ErrorCode, OAuthError};
use super::form::{Form, Parameters};
use super::random::random;
use super::requested_access::{USER_SCOPES, requested_audience, requested_scopes};
use super::response;
use super::store::{Grant, GrantId, LoginFacts, RedeemOutcome};
use super::token_factory::{NewAccessToken, object};
use crate::base::scopes::Scopes;

/// Exchanges a grant for tokens.
pub(super) async fn handle(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Response, OAuthError> {
    let (issuer, form) = (&*issuer, &form);
    let client = credentials::authenticate(issuer, &headers, form)?;
    let grant_type = form.required("grant_type", "The grant_type is missing.")?;
    let grant_type = GrantType::from_name(grant_type).ok_or(OAuthError::new(
        ErrorCode::UnsupportedGrantType,
        "This issuer does not know the grant_type.",
    ))?;
    if !client.may_use(grant_type) {
        let description = "The client may not use this grant_type.";
        return Err(OAuthError::new(ErrorCode::UnauthorizedClient, description));
    }
    let granted = match grant_type {
        GrantType::AuthorizationCode => code(issuer, &client, form),
        GrantType::Password => password(issuer, &client, form),
        GrantType::ClientCredentials => client_credentials(issuer, &client, form),
        GrantType::RefreshToken => refresh(issuer, &client, form),
    }?;
    tokens(issuer, &client, granted)
}

/// A grant, and what of it this response covers.
struct Granted {
    id: GrantId,
    grant: Grant,
    scopes: Scopes,
    audience: Vec<String>,
    nonce: Option<String>,
    /// Whether the response contains a refresh token.
    refreshable: bool,
}

/// Redeems an authorization code (RFC 6749 §4.1.3, with the verifier of RFC 7636 §4.5).
fn code(issuer: &DevIssuer, client: &Client, form: &Parameters) -> Result<Granted, OAuthError> {
    let code = form.required("code", "The code is missing.")?;
    let redirect_uri = form.one("redirect_uri");
    let verifier = form.required("code_verifier", "The code_verifier is missing.")?;
    let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
    let (id, grant, code) = issuer.store.redeem_code(code, issuer.clock.now(), |grant, code| {
        let bound = *grant.client == *client.id
            && redirect_uri == Some(&*code.redirect_uri)
            && challenge == code.challenge;
        bound.then_some(()).ok_or(OAuthError::CODE)
    })?;
    let audience = narrowed_audience(form, &grant.audience)?;
    let (scopes, refreshable) = (grant.scopes.clone(), gets_refresh_token(client, &grant));
    Ok(Granted { id, grant, scopes, audience, nonce: code.nonce, refreshable })
}

/// Authenticates a user by the password that the client collected (RFC 6749 §4.3).
fn password(issuer: &DevIssuer, client: &Client, form: &Parameters) -> Result<Granted, OAuthError> {
    let username = form.required("username", "The username is missing.")?;
    let password = form.required("password", "The password is missing.")?;
    let wrong = OAuthError::new(ErrorCode::InvalidGrant, "The user name or the password is wrong.");
    let user = issuer.users.authenticate(username, password).ok_or(wrong)?;
    let grant = Grant {
        client: client.id.clone(),
        subject: user.name.clone(),
        login: Some(LoginFacts { sid: random()?.into(), at: issuer.clock.now() }),
        scopes: requested_scopes(client, form)?,
        audience: requested_audience(&issuer.config, form)?,
    };
    let refreshable = gets_refresh_token(client, &grant);
    Ok(new_grant(issuer, grant, refreshable))
}

/// Grants a client access for itself (RFC 6749 §4.4): no user, hence neither ID token nor refresh token.
fn client_credentials(
    issuer: &DevIssuer,
    client: &Client,
    form: &Parameters,
) -> Result<Granted, OAuthError> {
    if matches!(client.authentication, Authentication::None) {
        let description = "A public client has no credentials of its own.";
        return Err(OAuthError::new(ErrorCode::UnauthorizedClient, description));
    }
    let scopes = requested_scopes(client, form)?;
    if scopes.intersects(&Scopes::parse(USER_SCOPES)) {
        return Err(OAuthError::SCOPE);
    }
    let grant = Grant {
        client: client.id.clone(),
        subject: client.id.clone(),
        login: None,
        scopes,
        audience: requested_audience(&issuer.config, form)?,
    };
    Ok(new_grant(issuer, grant, false))
}

/// Redeems a refresh token (RFC 6749 §6). The new tokens may have fewer scopes than the grant; the next refresh may ask for all again.
fn refresh(issuer: &DevIssuer, client: &Client, form: &Parameters) -> Result<Granted, OAuthError> {
    let token = form.required("refresh_token", "The refresh_token is missing.")?;
    let requested = form.one("scope").map(Scopes::parse);
    let mut audience = Vec::new();
    let (id, grant) = issuer.store.redeem_refresh(token, issuer.clock.now(), |grant| {
        if *grant.client != *client.id {
            return Err(OAuthError::REFRESH);
        }
        if requested.as_ref().is_some_and(|scopes| !scopes.is_subset(&grant.scopes)) {
            return Err(OAuthError::SCOPE);
        }
        audience = narrowed_audience(form, &grant.audience)?;
        let rotates = client.rotates_refresh_tokens;
        Ok(if rotates { RedeemOutcome::Used } else { RedeemOutcome::Reusable })
    })?;
    let scopes = requested.unwrap_or_else(|| grant.scopes.clone());
    Ok(Granted {
        id,
        grant,
        scopes,
        audience,
        nonce: None,
        refreshable: client.rotates_refresh_tokens,
    })
}

/// Returns the token response (RFC 6749 §5.1, OpenID Connect Core §3.1.3.3).
fn tokens(issuer: &DevIssuer, client: &Client, granted: Granted) -> Result<Response, OAuthError> {
    let Granted { id, grant, scopes, audience, nonce, refreshable } = granted;
    let lifetime = client.access_lifetime.unwrap_or(issuer.config.access_lifetime);
    let access_token = issuer.access_token(NewAccessToken {
        client,
        id,
        grant: &grant,
        scopes: scopes.clone(),
        audience,
        lifetime,
        claims: Map::new(),
    })?;
    let id_token = issuer.id_token(client, &grant, &scopes, nonce.as_deref(), &access_token)?;
    let mut body = object(json!({
        "access_token": access_token,
        "token_type": "Bearer",
        "expires_in": lifetime.as_secs(),
        "scope": scopes.to_string(),
    }));
    if refreshable {
        body.insert("refresh_token".to_owned(), json!(issuer.refresh_token(id)?));
        // In no RFC: a member that Keycloak introduced, so that clients know the lifetime.
        let lifetime: Duration = issuer.config.refresh_lifetime;
        body.insert("refresh_expires_in".to_owned(), json!(lifetime.as_secs()));
    }
    body.extend(id_token.map(|token| ("id_token".to_owned(), json!(token))));
    Ok(response::json(StatusCode::OK, &body.into()))
}

fn new_grant(issuer: &DevIssuer, grant: Grant, refreshable: bool) -> Granted {
    let (scopes, audience) = (grant.scopes.clone(), grant.audience.clone());
    let id = issuer.store.add_grant(grant.clone());
    Granted { id, grant, scopes, audience, nonce: None, refreshable }
}

/// Whether the client may use refresh tokens and the user granted `offline_access` (OpenID Connect Core §11).
fn gets_refresh_token(client: &Client, grant: &Grant) -> bool {
    client.may_use(GrantType::RefreshToken) && grant.scopes.contains("offline_access")
}

/// Returns the requested resources, if all were granted (RFC 8707 §2.2); without any, the granted ones.
fn narrowed_audience(form: &Parameters, granted: &[String]) -> Result<Vec<String>, OAuthError> {
    let requested: Vec<String> = form.all("resource").map(str::to_owned).collect();
    if requested.is_empty() {
        return Ok(granted.to_vec());
    }
    let all = requested.iter().all(|resource| granted.contains(resource));
    all.then_some(requested).ok_or(OAuthError::TARGET)
}
