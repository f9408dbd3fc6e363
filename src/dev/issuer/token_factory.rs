//! The token factory: every token is created here.

use core::time::Duration;

use serde_json::{Map, Value, json};

use super::DevIssuer;
use super::clients::{Client, TokenFormat};
use super::error::OAuthError;
use super::random::random;
use super::store::{AccessToken, Grant, GrantId, RefreshToken};
use crate::base::scopes::Scopes;

/// The parameters of a new access token.
pub(super) struct NewAccessToken<'a> {
    pub(super) client: &'a Client,
    pub(super) id: GrantId,
    pub(super) grant: &'a Grant,
    /// A subset of the grant's scopes.
    pub(super) scopes: Scopes,
    /// A subset of the grant's audience.
    pub(super) audience: Vec<String>,
    pub(super) lifetime: Duration,
    /// Claims that are added to the usual ones, or replace them.
    pub(super) claims: Map<String, Value>,
}

impl DevIssuer {
    /// Creates an access token in the format of its resource or its client.
    pub(super) fn access_token(&self, new: NewAccessToken<'_>) -> Result<String, OAuthError> {
        let jti = random()?;
        let issued = self.clock.now();
        let expires = issued.plus(new.lifetime);
        let access =
            AccessToken { jti, scopes: new.scopes, audience: new.audience, issued, expires };
        let token = match self.format(new.client, &access.audience) {
            TokenFormat::Reference => random()?,
            TokenFormat::Signed => {
                let mut claims = self.claims(new.grant, &access);
                claims.extend(new.claims);
                self.sign("at+jwt", new.client, &claims)?
            }
        };
        self.store.add_access(&token, new.id, access);
        Ok(token)
    }

    /// Creates a refresh token for the whole grant.
    pub(super) fn refresh_token(&self, id: GrantId) -> Result<String, OAuthError> {
        let token = random()?;
        let issued = self.clock.now();
        let expires = issued.plus(self.config.refresh_lifetime);
        self.store.add_refresh(&token, id, RefreshToken { issued, expires });
        Ok(token)
    }

    /// Creates an ID token (OpenID Connect Core §2) if a user granted `openid`.
    pub(super) fn id_token(
        &self,
        client: &Client,
        grant: &Grant,
        scopes: &Scopes,
        nonce: Option<&str>,
        access_token: &str,
    ) -> Result<Option<String>, OAuthError> {
        let Some(login) = grant.login.as_ref().filter(|_| scopes.contains("openid")) else {
            return Ok(None);
        };
        let now = self.clock.now();
        let algorithm = self.keys.signing(client.algorithm).algorithm;
        let mut claims = object(json!({
            "iss": self.url,
            "sub": grant.subject,
            "aud": grant.client,
            "iat": now.as_secs(),
            "exp": now.plus(self.config.id_lifetime).as_secs(),
            "auth_time": login.at.as_secs(),
            "sid": login.sid,
            "at_hash": algorithm.half_hash(access_token),
        }));
        claims.extend(nonce.map(|nonce| ("nonce".to_owned(), json!(nonce))));
        claims.extend(self.profile_claims(&grant.subject, scopes));
        self.sign("JWT", client, &claims).map(Some)
    }

    /// Returns the claims of an access token (RFC 9068 §2.2): signed in it, or returned by introspection.
    pub(super) fn claims(&self, grant: &Grant, access: &AccessToken) -> Map<String, Value> {
        let audience = match &*access.audience {
            [one] => json!(one),
            several => json!(several),
        };
        let mut claims = object(json!({
            "iss": self.url,
            "sub": grant.subject,
            "aud": audience,
            "client_id": grant.client,
            "scope": access.scopes.to_string(),
            "iat": access.issued.as_secs(),
            "exp": access.expires.as_secs(),
            "jti": access.jti,
        }));
        if let Some(login) = &grant.login {
            claims.insert("sid".to_owned(), json!(login.sid));
            claims.insert("auth_time".to_owned(), json!(login.at.as_secs()));
            let groups = self.users.find(&grant.subject).map(|user| &user.groups);
            claims.insert("groups".to_owned(), json!(groups));
        }
        claims
    }

    /// Returns the claims about a user that the scopes `profile` and `email` stand for (OpenID Connect Core §5.4).
    pub(super) fn profile_claims(&self, subject: &str, scopes: &Scopes) -> Map<String, Value> {
        let mut claims = Map::new();
        let Some(user) = self.users.find(subject) else { return claims };
        if scopes.contains("profile") {
            claims.insert("name".to_owned(), json!(user.full_name));
            claims.insert("preferred_username".to_owned(), json!(user.name));
        }
        if scopes.contains("email") {
            claims.insert("email".to_owned(), json!(user.email()));
            claims.insert("email_verified".to_owned(), json!(true));
        }
        claims
    }

    /// Signs a JWT of type `typ` with the client's algorithm.
    pub(super) fn sign(
        &self,
        typ: &str,
        client: &Client,
        claims: &Map<String, Value>,
    ) -> Result<String, OAuthError> {
        self.keys
            .signing(client.algorithm)
            .sign(object(json!({ "typ": typ })), claims)
            .map_err(|_| OAuthError::SERVER)
    }

    fn format(&self, client: &Client, audience: &[String]) -> TokenFormat {
        let is_audience = |resource: &&super::Resource| audience.contains(&resource.uri);
        let of_resource = self.config.resources.iter().find(is_audience).and_then(|r| r.tokens);
        of_resource.unwrap_or(client.tokens)
    }
}

/// Returns the members of an object; of another value, none.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
