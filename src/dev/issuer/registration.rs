//! Client registration (RFC 7591): programs send JSON, developers fill in a form.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use url::Url;

use super::clients::{Authentication, Client, GrantType, TokenFormat};
use super::error::{ErrorCode, OAuthError};
use super::form::{Parameters, SameOrigin, is_form};
use super::random::random;
use super::{DevIssuer, pages, response};
use crate::base::scopes::Scopes;
use crate::base::secret::Secret;

/// Registers the client that the content describes: client metadata in JSON, or this issuer's own form.
pub(super) async fn handle(
    State(issuer): State<Arc<DevIssuer>>,
    same_origin: Result<SameOrigin, StatusCode>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, OAuthError> {
    if !is_form(&headers) {
        return register_by_json(&issuer, &body);
    }
    match same_origin {
        Ok(SameOrigin) => Ok(register_by_form(&issuer, &Parameters::parse(&body)?)),
        Err(status) => Ok(status.into_response()),
    }
}

/// Registers a client by its metadata (RFC 7591 §3.1).
fn register_by_json(issuer: &DevIssuer, body: &[u8]) -> Result<Response, OAuthError> {
    let metadata: Value =
        serde_json::from_slice(body).map_err(|_| metadata_error("The body is no JSON object."))?;
    let client = issuer.clients.register(client(issuer, &metadata)?);
    let text = |secret: &Secret<String>| secret.expose().clone();
    let secret = match &client.authentication {
        Authentication::Basic(secret) | Authentication::Post(secret) => Some(text(secret)),
        Authentication::PrivateKeyJwt(_) | Authentication::None => None,
    };
    let grants: Vec<_> = client.grants.iter().map(|grant| grant.name()).collect();
    let mut information = json!({
        "client_id": client.id,
        "client_id_issued_at": issuer.clock.now().as_secs(),
        "client_name": client.name,
        "redirect_uris": client.redirect_uris,
        "post_logout_redirect_uris": client.post_logout_redirect_uris,
        "grant_types": grants,
        "response_types": response_types(&client),
        "token_endpoint_auth_method": client.authentication.name(),
        "scope": client.scopes.to_string(),
    });
    if let Some(uri) = &client.backchannel_logout_uri {
        information["backchannel_logout_uri"] = json!(uri);
    }
    if let Some(secret) = secret {
        information["client_secret"] = json!(secret);
        // It does not expire.
        information["client_secret_expires_at"] = json!(0);
    }
    if let Authentication::PrivateKeyJwt(keys) = &client.authentication {
        information["jwks"] = keys.clone();
    }
    Ok(response::json(StatusCode::CREATED, &information))
}

/// Registers a client by the form, and shows its id and secret.
fn register_by_form(issuer: &DevIssuer, form: &Parameters) -> Response {
    let redirect_uris: Vec<_> = form.one("redirect_uri").into_iter().collect();
    let with_users = [GrantType::AuthorizationCode, GrantType::RefreshToken];
    let grants = [GrantType::ClientCredentials]
        .into_iter()
        .chain(with_users.into_iter().filter(|_| !redirect_uris.is_empty()));
    let metadata = json!({
        "client_name": form.one("client_name").unwrap_or("My program"),
        "redirect_uris": redirect_uris,
        "grant_types": grants.map(GrantType::name).collect::<Vec<_>>(),
        "scope": form.one("scope").unwrap_or_default(),
    });
    match client(issuer, &metadata) {
        Ok(mut client) => {
            if form.one("access_tokens") == Some("reference") {
                client.tokens = TokenFormat::Reference;
            }
            pages::registered(&issuer.clients.register(client))
        }
        Err(error) => pages::register(Some(error.description)),
    }
}

/// Creates the client that the metadata describes (RFC 7591 §2), with a new id and secret.
fn client(issuer: &DevIssuer, metadata: &Value) -> Result<Client, OAuthError> {
    if !metadata.is_object() {
        return Err(metadata_error("The body is no JSON object."));
    }
    let redirect_uris = redirect_uris(metadata, "redirect_uris")?;
    let grants = match texts(metadata, "grant_types")? {
        None => vec![GrantType::AuthorizationCode],
        Some(names) => names
            .into_iter()
            .map(GrantType::from_name)
            .collect::<Option<_>>()
            .ok_or(metadata_error("A grant type is unknown."))?,
    };
    if grants.contains(&GrantType::AuthorizationCode) && redirect_uris.is_empty() {
        let description = "The authorization_code grant needs a redirect URI.";
        return Err(OAuthError::new(ErrorCode::InvalidRedirectUri, description));
    }
    if texts(metadata, "response_types")?.is_some_and(|types| types.iter().any(|t| *t != "code")) {
        return Err(metadata_error("The only response type is code."));
    }
    let authentication = authentication(metadata)?;
    if matches!(authentication, Authentication::None)
        && grants.contains(&GrantType::ClientCredentials)
    {
        return Err(metadata_error("A public client has no credentials to be granted for."));
    }
    let scopes = scopes(issuer, metadata)?;
    let name = text(metadata, "client_name")?.unwrap_or("A registered client").to_owned();
    Ok(Client {
        name,
        grants,
        redirect_uris,
        backchannel_logout_uri: logout_uri(metadata, "backchannel_logout_uri")?,
        post_logout_redirect_uris: self::redirect_uris(metadata, "post_logout_redirect_uris")?,
        scopes,
        ..Client::authenticating(&random()?, authentication)
    })
}

fn authentication(metadata: &Value) -> Result<Authentication, OAuthError> {
    match text(metadata, "token_endpoint_auth_method")?.unwrap_or("client_secret_basic") {
        "client_secret_basic" => Ok(Authentication::Basic(random()?.into())),
        "client_secret_post" => Ok(Authentication::Post(random()?.into())),
        "private_key_jwt" => match metadata.get("jwks") {
            Some(keys) if keys["keys"].is_array() => {
                Ok(Authentication::PrivateKeyJwt(keys.clone()))
            }
            _ => Err(metadata_error("The private_key_jwt method needs a jwks.")),
        },
        "none" => Ok(Authentication::None),
        _ => Err(metadata_error("The token_endpoint_auth_method is unknown.")),
    }
}

/// Returns the requested scopes, if pre-registered clients have them; without any, the scopes about the user.
fn scopes(issuer: &DevIssuer, metadata: &Value) -> Result<Scopes, OAuthError> {
    let requested = Scopes::parse(text(metadata, "scope")?.unwrap_or("openid profile email"));
    let known: Scopes = issuer.config.clients.iter().flat_map(|c| c.scopes.iter()).collect();
    if requested.is_subset(&known) {
        Ok(requested)
    } else {
        Err(metadata_error("This issuer does not know one of the scopes."))
    }
}

/// Accepts absolute URIs without a fragment (RFC 6749 §3.1.2); plain http only on this machine (RFC 8252 §7.3).
fn redirect_uris(metadata: &Value, name: &str) -> Result<Vec<String>, OAuthError> {
    let wrong = OAuthError::new(
        ErrorCode::InvalidRedirectUri,
        "A redirect URI must be absolute, without a fragment, and https unless on this machine.",
    );
    let uris = texts(metadata, name)?.unwrap_or_default();
    for uri in &uris {
        let parsed = Url::parse(uri).map_err(|_| wrong)?;
        // A private-use scheme, in reverse domain order (RFC 8252 §7.1): never `javascript:`.
        let good = is_secure(&parsed) || parsed.scheme().contains('.');
        if !good || parsed.fragment().is_some() {
            return Err(wrong);
        }
    }
    Ok(uris.into_iter().map(str::to_owned).collect())
}

/// Accepts a URI that this issuer will send logout tokens to.
fn logout_uri(metadata: &Value, name: &str) -> Result<Option<String>, OAuthError> {
    let Some(uri) = text(metadata, name)? else { return Ok(None) };
    let good = Url::parse(uri).is_ok_and(|uri| is_secure(&uri));
    let wrong = metadata_error("A back-channel logout URI must be https unless on this machine.");
    good.then(|| Some(uri.to_owned())).ok_or(wrong)
}

/// Whether requests to `uri` are encrypted or stay on this machine.
fn is_secure(uri: &Url) -> bool {
    let here = matches!(uri.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match uri.scheme() {
        "https" => uri.has_host(),
        "http" => here,
        _ => false,
    }
}

fn response_types(client: &Client) -> Vec<&'static str> {
    if client.may_use(GrantType::AuthorizationCode) { vec!["code"] } else { Vec::new() }
}

fn text<'a>(metadata: &'a Value, name: &str) -> Result<Option<&'a str>, OAuthError> {
    match metadata.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(metadata_error("A member has the wrong type.")),
    }
}

fn texts<'a>(metadata: &'a Value, name: &str) -> Result<Option<Vec<&'a str>>, OAuthError> {
    let wrong = metadata_error("A member has the wrong type.");
    match metadata.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(values)) => {
            values.iter().map(Value::as_str).collect::<Option<_>>().map(Some).ok_or(wrong)
        }
        Some(_) => Err(wrong),
    }
}

const fn metadata_error(description: &'static str) -> OAuthError {
    OAuthError::new(ErrorCode::InvalidClientMetadata, description)
}
