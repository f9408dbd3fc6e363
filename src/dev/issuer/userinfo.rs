//! What an access token's person has told the client about themselves (OpenID Connect Core §5.3).

use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;

use super::DevIssuer;
use super::reply::{self, Reply};
use super::store::Living;

/// Answers with the claims, or with a challenge (RFC 6750 §3).
pub(super) fn answer(issuer: &DevIssuer, headers: &HeaderMap) -> Reply {
    let field = headers.get(AUTHORIZATION).and_then(|field| field.to_str().ok());
    let token = field
        .and_then(|field| field.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token);
    let Some(token) = token else {
        return challenge(StatusCode::UNAUTHORIZED, r#"Bearer realm="development issuer""#);
    };
    match issuer.store.living(token, issuer.clock.now()) {
        Some(Living::Access(grant, access)) if access.scopes.contains("openid") => {
            let mut claims = issuer.about(&grant.subject, &access.scopes);
            claims.insert("sub".to_owned(), json!(grant.subject));
            reply::json(StatusCode::OK, &claims.into())
        }
        Some(Living::Access(..)) => challenge(
            StatusCode::FORBIDDEN,
            r#"Bearer realm="development issuer", error="insufficient_scope", scope="openid""#,
        ),
        _ => challenge(
            StatusCode::UNAUTHORIZED,
            r#"Bearer realm="development issuer", error="invalid_token""#,
        ),
    }
}

fn challenge(status: StatusCode, challenge: &'static str) -> Reply {
    let mut reply = reply::empty(status);
    reply.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    reply
}
