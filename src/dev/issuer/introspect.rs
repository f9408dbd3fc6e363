//! What a token is worth (RFC 7662), told to those who may know.

use http::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::clients::Client;
use super::error::{Code, OAuthError};
use super::form::Form;
use super::issue::object;
use super::reply::{self, Reply};
use super::store::{Grant, Living};
use super::{DevIssuer, credentials};

/// Answers an introspection request: as JSON, or as a JWT if `Accept` asks for one.
pub(super) fn answer(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<Reply, OAuthError> {
    let asker = asker(issuer, headers, form)?;
    let token = form.required("token", "The token is missing.")?;
    let facts = facts(issuer, &asker, token);
    match Wanted::from(headers) {
        Wanted::Json => Ok(reply::json(StatusCode::OK, &facts.into())),
        Wanted::Introspection => {
            let claims = object(json!({
                "iss": issuer.url,
                "aud": asker.id,
                "iat": issuer.clock.now().as_secs(),
                "token_introspection": facts,
            }));
            let jwt = issuer.sign("token-introspection+jwt", &asker, &claims)?;
            Ok(jwt_reply("application/token-introspection+jwt", jwt))
        }
        Wanted::AccessToken => match access_claims(facts) {
            Some(claims) => {
                Ok(jwt_reply("application/jwt", issuer.sign("at+jwt", &asker, &claims)?))
            }
            None => Ok(reply::empty(StatusCode::NO_CONTENT)),
        },
    }
}

/// The client that asks: by its own credentials, or by an access token (RFC 7662 §2.1).
fn asker(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<std::sync::Arc<Client>, OAuthError> {
    let field = headers.get(AUTHORIZATION).and_then(|field| field.to_str().ok());
    let bearer = field
        .and_then(|field| field.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let Some((_, token)) = bearer else { return credentials::client(issuer, headers, form) };
    let refused = OAuthError::new(Code::InvalidToken, "The access token is not good here.");
    match issuer.store.living(token, issuer.clock.now()) {
        Some(Living::Access(grant, _)) => issuer.clients.find(&grant.client).ok_or(refused),
        _ => Err(refused),
    }
}

/// RFC 7662 §2.2. A token that the asker may not know about is simply not active (§4).
fn facts(issuer: &DevIssuer, asker: &Client, token: &str) -> Map<String, Value> {
    let may_know = |grant: &Grant| asker.introspects || grant.client == asker.id;
    let told = match issuer.store.living(token, issuer.clock.now()) {
        Some(Living::Access(grant, access)) if may_know(&grant) => {
            let mut facts = issuer.claims(&grant, &access);
            facts.insert("token_type".to_owned(), json!("Bearer"));
            Some((grant, facts))
        }
        Some(Living::Refresh(grant, refresh)) if may_know(&grant) => {
            let facts = object(json!({
                "iss": issuer.url,
                "sub": grant.subject,
                "client_id": grant.client,
                "scope": grant.scopes.to_string(),
                "iat": refresh.issued.as_secs(),
                "exp": refresh.expires.as_secs(),
                "token_type": "refresh_token",
            }));
            Some((grant, facts))
        }
        _ => None,
    };
    let Some((grant, mut facts)) = told else { return object(json!({ "active": false })) };
    facts.insert("active".to_owned(), json!(true));
    if grant.login.is_some() {
        facts.insert("username".to_owned(), json!(grant.subject));
    }
    facts
}

/// The claims of the signed twin of an active access token; a refresh token has none.
fn access_claims(mut facts: Map<String, Value>) -> Option<Map<String, Value>> {
    let active = facts.remove("active") == Some(Value::Bool(true));
    let access = facts.remove("token_type") == Some(json!("Bearer"));
    (active && access).then_some(facts)
}

/// The forms an answer can have.
enum Wanted {
    /// `application/json`, the default.
    Json,
    /// `application/token-introspection+jwt`: the answer, signed (RFC 9701).
    Introspection,
    /// `application/jwt`: an access token of the same meaning, signed ("phantom token").
    AccessToken,
}

impl Wanted {
    fn from(headers: &HeaderMap) -> Self {
        match headers.get(ACCEPT).map(HeaderValue::as_bytes) {
            Some(b"application/token-introspection+jwt") => Self::Introspection,
            Some(b"application/jwt") => Self::AccessToken,
            _ => Self::Json,
        }
    }
}

fn jwt_reply(content_type: &'static str, jwt: String) -> Reply {
    let mut reply = reply::of(StatusCode::OK, content_type, jwt);
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}
