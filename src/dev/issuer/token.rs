//! The token endpoint (RFC 6749 §3.2): a grant comes in, tokens go out.

use core::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, json};

use super::DevIssuer;
use super::clients::{Authentication, Client, GrantType};
use super::credentials;
use super::error::{Code, OAuthError};
use super::form::Form;
use super::issue::{NewAccess, object, random};
use super::reply::{self, Reply};
use super::store::{Grant, GrantId, LoginFacts, Spend};
use crate::base::scopes::Scopes;

/// Answers a token request.
pub(super) fn answer(
    issuer: &DevIssuer,
    headers: &HeaderMap,
    form: &Form,
) -> Result<Reply, OAuthError> {
    let client = credentials::client(issuer, headers, form)?;
    let grant_type = form.required("grant_type", "The grant_type is missing.")?;
    let grant_type = GrantType::named(grant_type).ok_or(OAuthError::new(
        Code::UnsupportedGrantType,
        "This issuer does not know the grant_type.",
    ))?;
    if !client.may_use(grant_type) {
        let description = "The client may not use this grant_type.";
        return Err(OAuthError::new(Code::UnauthorizedClient, description));
    }
    let granted = match grant_type {
        GrantType::AuthorizationCode => code(issuer, &client, form),
        GrantType::Password => password(issuer, &client, form),
        GrantType::ClientCredentials => client_credentials(issuer, &client, form),
        GrantType::RefreshToken => refresh(issuer, &client, form),
    }?;
    tokens(issuer, &client, granted)
}

/// What a grant yields.
struct Granted {
    id: GrantId,
    grant: Grant,
    scopes: Scopes,
    audience: Vec<String>,
    nonce: Option<String>,
    /// Whether a new refresh token belongs to it.
    refreshable: bool,
}

/// RFC 6749 §4.1.3 with the verifier of RFC 7636 §4.5.
fn code(issuer: &DevIssuer, client: &Client, form: &Form) -> Result<Granted, OAuthError> {
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
    let audience = narrowed(form, &grant.audience)?;
    let (scopes, refreshable) = (grant.scopes.clone(), outlives_login(client, &grant));
    Ok(Granted { id, grant, scopes, audience, nonce: code.nonce, refreshable })
}

/// RFC 6749 §4.3.
fn password(issuer: &DevIssuer, client: &Client, form: &Form) -> Result<Granted, OAuthError> {
    let username = form.required("username", "The username is missing.")?;
    let password = form.required("password", "The password is missing.")?;
    let wrong = OAuthError::new(Code::InvalidGrant, "The user name or the password is wrong.");
    let person = issuer.people.authenticate(username, password).ok_or(wrong)?;
    let grant = Grant {
        client: client.id.clone(),
        subject: person.name.clone(),
        login: Some(LoginFacts { sid: random()?.into(), at: issuer.clock.now() }),
        scopes: wanted_scopes(client, form)?,
        audience: issuer.wanted_audience(form)?,
    };
    let refreshable = outlives_login(client, &grant);
    Ok(opened(issuer, grant, refreshable))
}

/// RFC 6749 §4.4: no person, hence neither ID token nor refresh token.
fn client_credentials(
    issuer: &DevIssuer,
    client: &Client,
    form: &Form,
) -> Result<Granted, OAuthError> {
    if matches!(client.authentication, Authentication::None) {
        let description = "A public client has no credentials of its own.";
        return Err(OAuthError::new(Code::UnauthorizedClient, description));
    }
    let scopes = wanted_scopes(client, form)?;
    if scopes.intersects(&Scopes::parse(A_PERSONS)) {
        return Err(OAuthError::SCOPE);
    }
    let grant = Grant {
        client: client.id.clone(),
        subject: client.id.clone(),
        login: None,
        scopes,
        audience: issuer.wanted_audience(form)?,
    };
    Ok(opened(issuer, grant, false))
}

/// RFC 6749 §6. The answer may be narrower than the grant; the next refresh may be as wide again.
fn refresh(issuer: &DevIssuer, client: &Client, form: &Form) -> Result<Granted, OAuthError> {
    let token = form.required("refresh_token", "The refresh_token is missing.")?;
    let asked = form.one("scope").map(Scopes::parse);
    let mut audience = Vec::new();
    let (id, grant) = issuer.store.redeem_refresh(token, issuer.clock.now(), |grant| {
        if *grant.client != *client.id {
            return Err(OAuthError::REFRESH);
        }
        if asked.as_ref().is_some_and(|asked| !asked.is_subset(&grant.scopes)) {
            return Err(OAuthError::SCOPE);
        }
        audience = narrowed(form, &grant.audience)?;
        Ok(if client.rotates_refresh_tokens { Spend::Yes } else { Spend::No })
    })?;
    let scopes = asked.unwrap_or_else(|| grant.scopes.clone());
    Ok(Granted {
        id,
        grant,
        scopes,
        audience,
        nonce: None,
        refreshable: client.rotates_refresh_tokens,
    })
}

/// The answer (RFC 6749 §5.1, OpenID Connect Core §3.1.3.3).
fn tokens(issuer: &DevIssuer, client: &Client, granted: Granted) -> Result<Reply, OAuthError> {
    let Granted { id, grant, scopes, audience, nonce, refreshable } = granted;
    let lifetime = client.access_lifetime.unwrap_or(issuer.options.access_lifetime);
    let access_token = issuer.access_token(NewAccess {
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
        // Not in any RFC; Keycloak says it, and it spares clients a guess.
        let lifetime: Duration = issuer.options.refresh_lifetime;
        body.insert("refresh_expires_in".to_owned(), json!(lifetime.as_secs()));
    }
    body.extend(id_token.map(|token| ("id_token".to_owned(), json!(token))));
    Ok(reply::json(StatusCode::OK, &body.into()))
}

fn opened(issuer: &DevIssuer, grant: Grant, refreshable: bool) -> Granted {
    let (scopes, audience) = (grant.scopes.clone(), grant.audience.clone());
    let id = issuer.store.open(grant.clone());
    Granted { id, grant, scopes, audience, nonce: None, refreshable }
}

/// A refresh token needs a client that may use one, and a person who let it (OpenID Connect Core §11).
fn outlives_login(client: &Client, grant: &Grant) -> bool {
    client.may_use(GrantType::RefreshToken) && grant.scopes.contains("offline_access")
}

/// The scopes asked for. Without any: all that the client may have, but for those that must be asked for.
pub(super) fn wanted_scopes(client: &Client, form: &Form) -> Result<Scopes, OAuthError> {
    let Some(asked) = form.one("scope").map(Scopes::parse) else {
        let spoken_for = Scopes::parse(A_PERSONS);
        return Ok(client.scopes.iter().filter(|scope| !spoken_for.contains(scope)).collect());
    };
    if asked.is_subset(&client.scopes) { Ok(asked) } else { Err(OAuthError::SCOPE) }
}

/// The resources asked for, if all are among those granted (RFC 8707 §2.2); without any, those granted.
fn narrowed(form: &Form, granted: &[String]) -> Result<Vec<String>, OAuthError> {
    let asked: Vec<String> = form.all("resource").map(str::to_owned).collect();
    if asked.is_empty() {
        return Ok(granted.to_vec());
    }
    let all = asked.iter().all(|resource| granted.contains(resource));
    all.then_some(asked).ok_or(OAuthError::TARGET)
}

impl DevIssuer {
    /// The resources asked for (RFC 8707 §2), if all are known; without any, the first known.
    pub(super) fn wanted_audience(&self, form: &Form) -> Result<Vec<String>, OAuthError> {
        let known = |uri: &str| self.options.resources.iter().any(|r| r.uri == uri);
        let asked: Vec<String> = form.all("resource").map(str::to_owned).collect();
        if asked.is_empty() {
            return Ok(self.options.resources.first().map(|r| r.uri.clone()).into_iter().collect());
        }
        asked.iter().all(|uri| known(uri)).then_some(asked).ok_or(OAuthError::TARGET)
    }
}

/// Scopes that only a person can grant, and that must be asked for by name.
const A_PERSONS: &str = "openid profile email offline_access";
