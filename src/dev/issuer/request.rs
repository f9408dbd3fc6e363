//! What a client asks a person for (RFC 6749 §4.1.1, RFC 7636 §4.3, OpenID Connect Core §3.1.2.1).

use core::time::Duration;
use std::sync::Arc;

use url::Url;

use super::DevIssuer;
use super::clients::{Client, GrantType};
use super::error::{Code, OAuthError};
use super::form::Form;
use super::token::wanted_scopes;
use crate::base::scopes::Scopes;

/// An authorization request that was found good.
#[derive(Clone, Debug)]
pub(super) struct AuthorizationRequest {
    pub(super) client: Arc<Client>,
    pub(super) back: Back,
    pub(super) scopes: Scopes,
    pub(super) audience: Vec<String>,
    pub(super) nonce: Option<String>,
    /// The PKCE challenge, S256.
    pub(super) challenge: String,
    pub(super) prompt: Prompt,
    /// How long ago the person may have logged in.
    pub(super) max_age: Option<Duration>,
    /// The user name the client expects.
    pub(super) login_hint: Option<String>,
}

/// What must be asked for, whatever is known (OpenID Connect Core §3.1.2.1, `prompt`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Prompt {
    /// Nothing may be asked for at all.
    pub(super) none: bool,
    pub(super) login: bool,
    pub(super) consent: bool,
}

/// The way back to the client.
#[derive(Clone, Debug)]
pub(super) struct Back {
    /// One of the client's redirect URIs, as it is registered.
    pub(super) redirect_uri: String,
    state: Option<String>,
}

/// Why a request was refused, and who is told.
#[derive(Debug)]
pub(super) enum Refused {
    /// The person: it is not certain who asks, so nobody is sent there (RFC 6749 §4.1.2.1).
    Person(&'static str),
    /// The client.
    Client(Back, OAuthError),
}

impl AuthorizationRequest {
    /// Checks what a browser brings: a request, or the name of one that the client has pushed.
    pub(super) fn check(issuer: &DevIssuer, query: &[u8]) -> Result<Self, Refused> {
        let (form, repeated) = Form::parse_leniently(query);
        let client =
            form.one("client_id").ok_or(Refused::Person("The request names no client."))?;
        let client = issuer
            .clients
            .find(client)
            .ok_or(Refused::Person("The client that sent you here is unknown."))?;
        if let Some(name) = form.one("request_uri").filter(|name| name.starts_with("urn:")) {
            let pushed = issuer.pushed.take(name, &client.id, issuer.clock.now());
            return pushed.ok_or(Refused::Person("The client's request is unknown, or too old."));
        }
        match repeated {
            None => Self::of(issuer, client, &form),
            Some(error) => Err(Refused::Client(Back::check(&client, &form)?, error)),
        }
    }

    /// Checks a request of `client`: first where the answer goes, then the rest.
    pub(super) fn of(
        issuer: &DevIssuer,
        client: Arc<Client>,
        form: &Form,
    ) -> Result<Self, Refused> {
        let back = Back::check(&client, form)?;
        Self::check_rest(issuer, form, client, &back).map_err(|error| Refused::Client(back, error))
    }

    fn check_rest(
        issuer: &DevIssuer,
        form: &Form,
        client: Arc<Client>,
        back: &Back,
    ) -> Result<Self, OAuthError> {
        if form.one("request").is_some() {
            let description = "Request objects are not supported.";
            return Err(OAuthError::new(Code::RequestNotSupported, description));
        }
        if form.one("request_uri").is_some() {
            let description = "Request URIs are not supported.";
            return Err(OAuthError::new(Code::RequestUriNotSupported, description));
        }
        if form.required("response_type", "The response_type is missing.")? != "code" {
            let description = "The only response_type is code.";
            return Err(OAuthError::new(Code::UnsupportedResponseType, description));
        }
        if form.one("response_mode").is_some_and(|mode| mode != "query") {
            return Err(OAuthError::request("The only response_mode is query."));
        }
        if !client.may_use(GrantType::AuthorizationCode) {
            let description = "The client may not use this response_type.";
            return Err(OAuthError::new(Code::UnauthorizedClient, description));
        }
        Ok(Self {
            scopes: wanted_scopes(&client, form)?,
            audience: issuer.wanted_audience(form)?,
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

impl Back {
    /// The redirect URI must be one that the client has registered, byte for byte.
    fn check(client: &Client, form: &Form) -> Result<Self, Refused> {
        let redirect_uri = form
            .one("redirect_uri")
            .filter(|asked| client.redirect_uris.iter().any(|registered| registered == asked))
            .ok_or(Refused::Person(
                "The redirect URI is not one that the client has registered.",
            ))?;
        let state = form.one("state").map(str::to_owned);
        Ok(Self { redirect_uri: redirect_uri.to_owned(), state })
    }

    /// The client's address with the answer, which names the issuer (RFC 9207) and the client's `state`.
    pub(super) fn with(&self, issuer: &DevIssuer, answer: &[(&str, &str)]) -> Option<String> {
        let mut uri = Url::parse(&self.redirect_uri).ok()?;
        let mut query = uri.query_pairs_mut();
        query.extend_pairs(answer);
        query.extend_pairs(self.state.as_deref().map(|state| ("state", state)));
        query.append_pair("iss", &issuer.url);
        drop(query);
        Some(uri.into())
    }

    /// What a page's policy must name so that its form may lead there.
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

/// PKCE is not optional, and `plain` is not offered (RFC 9700 §2.1.1).
fn challenge(form: &Form) -> Result<String, OAuthError> {
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

fn max_age(form: &Form) -> Result<Option<Duration>, OAuthError> {
    let Some(text) = form.one("max_age") else { return Ok(None) };
    let seconds = text.parse().map_err(|_| OAuthError::request("The max_age is no number."))?;
    Ok(Some(Duration::from_secs(seconds)))
}
