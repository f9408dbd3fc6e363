//! The authorization request: its parameters, validated (RFC 6749 §4.1.1, RFC 7636 §4.3, OpenID Connect Core §3.1.2.1).

use core::time::Duration;
use std::sync::Arc;

use url::Url;

use super::clients::{Client, GrantType};
use super::config::DevIssuerConfig;
use super::error::{ErrorCode, OAuthError};
use super::form::Parameters;
use super::requested_access::{requested_audience, requested_scopes};
use crate::base::scopes::Scopes;

/// A valid authorization request.
#[derive(Clone, Debug)]
pub(super) struct AuthorizationRequest {
    pub(super) client: Arc<Client>,
    pub(super) back: RedirectBack,
    pub(super) scopes: Scopes,
    pub(super) audience: Vec<String>,
    pub(super) nonce: Option<String>,
    /// The PKCE challenge, S256.
    pub(super) challenge: String,
    pub(super) prompt: Prompt,
    /// The greatest age of the login.
    pub(super) max_age: Option<Duration>,
    /// The user name that the client expects.
    pub(super) login_hint: Option<String>,
}

/// The pages that the client wants or forbids (OpenID Connect Core §3.1.2.1, `prompt`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Prompt {
    /// No page may be shown at all.
    pub(super) none: bool,
    pub(super) login: bool,
    pub(super) consent: bool,
}

/// The redirect to the client, with its `state`.
#[derive(Clone, Debug)]
pub(super) struct RedirectBack {
    /// One of the client's registered redirect URIs.
    pub(super) redirect_uri: String,
    state: Option<String>,
}

/// Why a request is invalid, and who receives the error.
#[derive(Debug)]
pub(super) enum InvalidRequest {
    /// The user: client or redirect URI are not certain, so there is no redirect (RFC 6749 §4.1.2.1).
    NoRedirect(&'static str),
    /// The client, by a redirect.
    Redirect(RedirectBack, OAuthError),
}

impl AuthorizationRequest {
    /// Validates a request of `client`: first the redirect URI, then the other parameters.
    pub(super) fn validate(
        config: &DevIssuerConfig,
        client: Arc<Client>,
        form: &Parameters,
    ) -> Result<Self, InvalidRequest> {
        let back = RedirectBack::validate(&client, form)?;
        Self::validate_parameters(config, form, client, &back)
            .map_err(|error| InvalidRequest::Redirect(back, error))
    }

    fn validate_parameters(
        config: &DevIssuerConfig,
        form: &Parameters,
        client: Arc<Client>,
        back: &RedirectBack,
    ) -> Result<Self, OAuthError> {
        if form.one("request").is_some() {
            let description = "Request objects are not supported.";
            return Err(OAuthError::new(ErrorCode::RequestNotSupported, description));
        }
        if form.one("request_uri").is_some() {
            let description = "Request URIs are not supported.";
            return Err(OAuthError::new(ErrorCode::RequestUriNotSupported, description));
        }
        if form.required("response_type", "The response_type is missing.")? != "code" {
            let description = "The only response_type is code.";
            return Err(OAuthError::new(ErrorCode::UnsupportedResponseType, description));
        }
        if form.one("response_mode").is_some_and(|mode| mode != "query") {
            return Err(OAuthError::request("The only response_mode is query."));
        }
        if !client.may_use(GrantType::AuthorizationCode) {
            let description = "The client may not use this response_type.";
            return Err(OAuthError::new(ErrorCode::UnauthorizedClient, description));
        }
        Ok(Self {
            scopes: requested_scopes(&client, form)?,
            audience: requested_audience(config, form)?,
            nonce: form.one("nonce").map(str::to_owned),
            challenge: challenge(form)?,
            prompt: Prompt::parse(form.one("prompt"))?,
            max_age: max_age(form)?,
            login_hint: form.one("login_hint").map(str::to_owned),
            client,
            back: back.clone(),
        })
    }
}

impl Prompt {
    fn parse(text: Option<&str>) -> Result<Self, OAuthError> {
        let mut prompt = Self::default();
        for word in text.unwrap_or_default().split(' ').filter(|word| !word.is_empty()) {
            match word {
                "none" => prompt.none = true,
                "login" | "select_account" => prompt.login = true,
                "consent" => prompt.consent = true,
                _ => return Err(OAuthError::request("The prompt is unknown.")),
            }
        }
        if prompt.none && (prompt.login || prompt.consent) {
            return Err(OAuthError::request("A prompt of none allows no other."));
        }
        Ok(prompt)
    }
}

impl RedirectBack {
    /// Accepts a redirect URI that the client has registered, byte for byte.
    pub(super) fn validate(client: &Client, form: &Parameters) -> Result<Self, InvalidRequest> {
        let redirect_uri = form
            .one("redirect_uri")
            .filter(|asked| client.redirect_uris.iter().any(|registered| registered == asked))
            .ok_or(InvalidRequest::NoRedirect(
                "The redirect URI is not one that the client has registered.",
            ))?;
        let state = form.one("state").map(str::to_owned);
        Ok(Self { redirect_uri: redirect_uri.to_owned(), state })
    }

    /// Returns the redirect URI with `parameters`, the issuer (RFC 9207) and the client's `state`.
    pub(super) fn location(&self, issuer: &str, parameters: &[(&str, &str)]) -> Option<String> {
        let mut uri = Url::parse(&self.redirect_uri).ok()?;
        let mut query = uri.query_pairs_mut();
        query.extend_pairs(parameters);
        query.extend_pairs(self.state.as_deref().map(|state| ("state", state)));
        query.append_pair("iss", issuer);
        drop(query);
        Some(uri.into())
    }

    /// Returns the source expression that lets a page's form redirect to the client (CSP `form-action`).
    pub(super) fn form_target(&self) -> Option<String> {
        let uri = Url::parse(&self.redirect_uri).ok()?;
        let origin = uri.origin();
        Some(if origin.is_tuple() {
            origin.ascii_serialization()
        } else {
            format!("{}:", uri.scheme())
        })
    }
}

/// Requires PKCE with `S256`; `plain` is not supported (RFC 9700 §2.1.1).
fn challenge(form: &Parameters) -> Result<String, OAuthError> {
    let challenge = form.required("code_challenge", "The code_challenge is missing.")?;
    if form.one("code_challenge_method") != Some("S256") {
        return Err(OAuthError::request("The code_challenge_method must be S256."));
    }
    let base64url = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if challenge.len() != 43 || !challenge.bytes().all(base64url) {
        return Err(OAuthError::request("The code_challenge is no SHA-256 in base64url."));
    }
    Ok(challenge.to_owned())
}

fn max_age(form: &Parameters) -> Result<Option<Duration>, OAuthError> {
    let Some(text) = form.one("max_age") else { return Ok(None) };
    let seconds = text.parse().map_err(|_| OAuthError::request("The max_age is no number."))?;
    Ok(Some(Duration::from_secs(seconds)))
}
