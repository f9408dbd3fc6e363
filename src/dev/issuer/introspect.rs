//! Token introspection (RFC 7662).

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::clients::Client;
use super::error::{ErrorCode, OAuthError};
use super::form::{Form, Parameters};
use super::store::{Grant, TokenStatus};
use super::token_factory::object;
use super::userinfo::bearer_token;
use super::{DevIssuer, credentials, response};

/// Returns the state of a token: as JSON, or as a JWT if `Accept` names one.
pub(super) async fn handle(
    State(issuer): State<Arc<DevIssuer>>,
    headers: HeaderMap,
    Form(form): Form,
) -> Result<Response, OAuthError> {
    let issuer = &*issuer;
    let caller = authenticate(issuer, &headers, &form)?;
    let token = form.required("token", "The token is missing.")?;
    let state = token_state(issuer, &caller, token);
    match Format::accepted(&headers) {
        Format::Json => Ok(response::json(StatusCode::OK, &state.into())),
        Format::Introspection => {
            let claims = object(json!({
                "iss": issuer.url,
                "aud": caller.id,
                "iat": issuer.clock.now().as_secs(),
                "token_introspection": state,
            }));
            let jwt = issuer.sign("token-introspection+jwt", &caller, &claims)?;
            Ok(jwt_response("application/token-introspection+jwt", jwt))
        }
        Format::AccessToken => match access_claims(state) {
            Some(claims) => {
                Ok(jwt_response("application/jwt", issuer.sign("at+jwt", &caller, &claims)?))
            }
            None => Ok(StatusCode::NO_CONTENT.into_response()),
        },
    }
}

/// Authenticates the caller: by client credentials, or by an access token (RFC 7662 §2.1).
fn authenticate(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    form: &Parameters,
) -> Result<Arc<Client>, OAuthError> {
    let Some(token) = bearer_token(headers) else {
        return credentials::authenticate(issuer, headers, form);
    };
    let refused = OAuthError::new(ErrorCode::InvalidToken, "The access token is not good here.");
    match issuer.store.token_status(token, issuer.clock.now()) {
        Some(TokenStatus::Access(grant, _)) => issuer.clients.find(&grant.client).ok_or(refused),
        _ => Err(refused),
    }
}

/// Returns the members of RFC 7662 §2.2. A token that the caller may not know about is inactive (§4).
fn token_state(issuer: &DevIssuer, caller: &Client, token: &str) -> Map<String, Value> {
    let may_know = |grant: &Grant| caller.introspects || grant.client == caller.id;
    let known = match issuer.store.token_status(token, issuer.clock.now()) {
        Some(TokenStatus::Access(grant, access)) if may_know(&grant) => {
            let mut state = issuer.claims(&grant, &access);
            state.insert("token_type".to_owned(), json!("Bearer"));
            Some((grant, state))
        }
        Some(TokenStatus::Refresh(grant, refresh)) if may_know(&grant) => {
            let state = object(json!({
                "iss": issuer.url,
                "sub": grant.subject,
                "client_id": grant.client,
                "scope": grant.scopes.to_string(),
                "iat": refresh.issued.as_secs(),
                "exp": refresh.expires.as_secs(),
                "token_type": "refresh_token",
            }));
            Some((grant, state))
        }
        _ => None,
    };
    let Some((grant, mut state)) = known else { return object(json!({ "active": false })) };
    state.insert("active".to_owned(), json!(true));
    if grant.login.is_some() {
        state.insert("username".to_owned(), json!(grant.subject));
    }
    state
}

/// Returns the claims of an active access token as a JWT has them; a refresh token has none.
fn access_claims(mut state: Map<String, Value>) -> Option<Map<String, Value>> {
    let active = state.remove("active") == Some(Value::Bool(true));
    let access = state.remove("token_type") == Some(json!("Bearer"));
    (active && access).then_some(state)
}

/// The media types of a response.
enum Format {
    /// `application/json`, the default.
    Json,
    /// `application/token-introspection+jwt`: the response, signed (RFC 9701).
    Introspection,
    /// `application/jwt`: a signed access token with the same claims ("phantom token").
    AccessToken,
}

impl Format {
    fn accepted(headers: &HeaderMap) -> Self {
        match headers.get(ACCEPT).map(HeaderValue::as_bytes) {
            Some(b"application/token-introspection+jwt") => Self::Introspection,
            Some(b"application/jwt") => Self::AccessToken,
            _ => Self::Json,
        }
    }
}

fn jwt_response(content_type: &'static str, jwt: String) -> Response {
    let mut response = response::content(StatusCode::OK, content_type, jwt);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
