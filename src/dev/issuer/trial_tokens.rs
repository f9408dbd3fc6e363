//! Tokens without a token request: for the commands that `northgate dev` prints, and for tests.

use core::time::Duration;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::DevIssuer;
use super::error::OAuthError;
use super::random::random;
use super::store::{Grant, LoginFacts};
use super::token_factory::NewAccessToken;
use crate::base::scopes::Scopes;

/// The parameters of an access token to mint.
#[derive(Clone, Debug)]
pub struct Mint {
    client: String,
    user: Option<String>,
    scopes: Option<Scopes>,
    audience: Option<Vec<String>>,
    lifetime: Option<Duration>,
    claims: Map<String, Value>,
}

impl Mint {
    /// A token of `client`, with all its scopes, for the first resource, in
    /// the format and with the lifetime of the client's other tokens.
    pub fn client(client: &str) -> Self {
        Self {
            client: client.to_owned(),
            user: None,
            scopes: None,
            audience: None,
            lifetime: None,
            claims: Map::new(),
        }
    }

    /// Sets the user, as if the user had just logged in.
    #[must_use]
    pub fn user(self, name: &str) -> Self {
        Self { user: Some(name.to_owned()), ..self }
    }

    /// Sets the scopes, separated by spaces, whether the client is registered for them or not.
    #[must_use]
    pub fn scopes(self, scopes: &str) -> Self {
        Self { scopes: Some(Scopes::parse(scopes)), ..self }
    }

    /// Sets the audience, whether the issuer knows it or not.
    #[must_use]
    pub fn audience(self, audience: &str) -> Self {
        Self { audience: Some(vec![audience.to_owned()]), ..self }
    }

    /// Sets the lifetime.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// Adds or replaces a claim of a signed token.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }
}

impl DevIssuer {
    pub(super) fn mint(&self, mint: &Mint) -> Result<String, MintError> {
        let client = self.clients.find(&mint.client).ok_or(MintError::UnknownClient)?;
        let scopes = mint.scopes.clone().unwrap_or_else(|| client.scopes.clone());
        let first = || self.config.resources.first().map(|r| r.uri.clone()).into_iter().collect();
        let login = match mint.user {
            Some(_) => Some(LoginFacts { sid: random()?.into(), at: self.clock.now() }),
            None => None,
        };
        let grant = Grant {
            client: Arc::clone(&client.id),
            subject: mint.user.as_deref().map_or_else(|| Arc::clone(&client.id), Arc::from),
            login,
            scopes: scopes.clone(),
            audience: mint.audience.clone().unwrap_or_else(first),
        };
        let id = self.store.add_grant(grant.clone());
        let lifetime = mint.lifetime.or(client.access_lifetime);
        let token = self.access_token(NewAccessToken {
            client: &client,
            id,
            grant: &grant,
            scopes,
            audience: grant.audience.clone(),
            lifetime: lifetime.unwrap_or(self.config.access_lifetime),
            claims: mint.claims.clone(),
        })?;
        Ok(token)
    }
}

/// Why a token was not minted.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MintError {
    /// The issuer does not know the client.
    #[error("unknown client")]
    UnknownClient,
    /// The operating system's random numbers or the signing key failed.
    #[error("cannot generate or sign a token")]
    Cryptography,
}

impl From<OAuthError> for MintError {
    fn from(_: OAuthError) -> Self {
        Self::Cryptography
    }
}
