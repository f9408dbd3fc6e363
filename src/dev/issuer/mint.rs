//! Tokens without a grant's ceremony: for the lines that `northgate dev` prints, and for tests.

use core::time::Duration;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::DevIssuer;
use super::error::OAuthError;
use super::issue::{NewAccess, random};
use super::store::{Grant, LoginFacts};
use crate::base::scopes::Scopes;

/// An access token to be made.
#[derive(Clone, Debug)]
pub struct Mint {
    client: String,
    person: Option<String>,
    scopes: Option<Scopes>,
    audience: Option<Vec<String>>,
    lifetime: Option<Duration>,
    claims: Map<String, Value>,
}

impl Mint {
    /// A token of `client`: with all its scopes, for the first resource, in
    /// the format and for the time that the client's tokens usually have.
    pub fn client(client: &str) -> Self {
        Self {
            client: client.to_owned(),
            person: None,
            scopes: None,
            audience: None,
            lifetime: None,
            claims: Map::new(),
        }
    }

    /// Speaks for this person, as if they had just logged in.
    #[must_use]
    pub fn person(self, name: &str) -> Self {
        Self { person: Some(name.to_owned()), ..self }
    }

    /// With these scopes, separated by spaces, whether the client may have them or not.
    #[must_use]
    pub fn scopes(self, scopes: &str) -> Self {
        Self { scopes: Some(Scopes::parse(scopes)), ..self }
    }

    /// For this audience, whether the issuer knows it or not.
    #[must_use]
    pub fn audience(self, audience: &str) -> Self {
        Self { audience: Some(vec![audience.to_owned()]), ..self }
    }

    /// Living so long.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// A signed token says this, too, or instead of what it usually says.
    #[must_use]
    pub fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(name.to_owned(), value.into());
        self
    }
}

impl DevIssuer {
    pub(super) fn mint(&self, mint: &Mint) -> Result<String, MintError> {
        let client = self.clients.find(&mint.client).ok_or(MintError::NoSuchClient)?;
        let scopes = mint.scopes.clone().unwrap_or_else(|| client.scopes.clone());
        let first = || self.options.resources.first().map(|r| r.uri.clone()).into_iter().collect();
        let login = match mint.person {
            Some(_) => Some(LoginFacts { sid: random()?.into(), at: self.clock.now() }),
            None => None,
        };
        let grant = Grant {
            client: Arc::clone(&client.id),
            subject: mint.person.as_deref().map_or_else(|| Arc::clone(&client.id), Arc::from),
            login,
            scopes: scopes.clone(),
            audience: mint.audience.clone().unwrap_or_else(first),
        };
        let id = self.store.open(grant.clone());
        let lifetime = mint.lifetime.or(client.access_lifetime);
        let token = self.access_token(NewAccess {
            client: &client,
            id,
            grant: &grant,
            scopes,
            audience: grant.audience.clone(),
            lifetime: lifetime.unwrap_or(self.options.access_lifetime),
            claims: mint.claims.clone(),
        })?;
        Ok(token)
    }
}

/// Why a token was not made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum MintError {
    /// The issuer does not know the client.
    #[error("the issuer knows no client of this id")]
    NoSuchClient,
    /// No random numbers, or a key that does not sign.
    #[error("no token could be made")]
    Cryptography,
}

impl From<OAuthError> for MintError {
    fn from(_: OAuthError) -> Self {
        Self::Cryptography
    }
}
