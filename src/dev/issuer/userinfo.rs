//! The `UserInfo` endpoint: claims about the user of an access token (OpenID Connect Core §5.3).

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;

use super::DevIssuer;
use super::response;
use super::store::TokenStatus;

/// Returns the claims, or a challenge (RFC 6750 §3).
pub(super) async fn handle(State(issuer): State<Arc<DevIssuer>>, headers: HeaderMap) -> Response {
    let Some(token) = bearer_token(&headers) else {
        return challenge(StatusCode::UNAUTHORIZED, r#"Bearer realm="development issuer""#);
    };
    match issuer.store.token_status(token, issuer.clock.now()) {
        Some(TokenStatus::Access(grant, access)) if access.scopes.contains("openid") => {
            let mut claims = issuer.profile_claims(&grant.subject, &access.scopes);
            claims.insert("sub".to_owned(), json!(grant.subject));
            response::json(StatusCode::OK, &claims.into())
        }
        Some(TokenStatus::Access(..)) => challenge(
            StatusCode::FORBIDDEN,
            r#"Bearer realm="development issuer", error="insufficient_scope", scope="openid""#,
        ),
        _ => challenge(
            StatusCode::UNAUTHORIZED,
            r#"Bearer realm="development issuer", error="invalid_token""#,
        ),
    }
}

/// Returns the bearer token of an `Authorization` field (RFC 6750 §2.1).
pub(super) fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn challenge(status: StatusCode, challenge: &'static str) -> Response {
    let mut response = status.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}
