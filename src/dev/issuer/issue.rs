//! Making tokens: the only place where one begins.

use core::time::Duration;

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::DevIssuer;
use super::clients::{Client, TokenFormat};
use super::error::OAuthError;
use super::store::{Access, Grant, GrantId, Refresh};
use crate::base::scopes::Scopes;

/// An access token about to be made.
pub(super) struct NewAccess<'a> {
    pub(super) client: &'a Client,
    pub(super) id: GrantId,
    pub(super) grant: &'a Grant,
    /// No more than the grant's.
    pub(super) scopes: Scopes,
    /// No more than the grant's.
    pub(super) audience: Vec<String>,
    pub(super) lifetime: Duration,
    /// Claims besides the usual ones, or instead of them.
    pub(super) claims: Map<String, Value>,
}

impl DevIssuer {
    /// An access token in the format that its resource or its client wants.
    pub(super) fn access_token(&self, new: NewAccess<'_>) -> Result<String, OAuthError> {
        let jti = random()?;
        let issued = self.clock.now();
        let expires = issued.plus(new.lifetime);
        let access = Access { jti, scopes: new.scopes, audience: new.audience, issued, expires };
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

    /// A refresh token for the whole grant.
    pub(super) fn refresh_token(&self, id: GrantId) -> Result<String, OAuthError> {
        let token = random()?;
        let issued = self.clock.now();
        let expires = issued.plus(self.options.refresh_lifetime);
        self.store.add_refresh(&token, id, Refresh { issued, expires });
        Ok(token)
    }

    /// An ID token (OpenID Connect Core §2) if a person granted `openid`.
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
            "exp": now.plus(self.options.id_lifetime).as_secs(),
            "auth_time": login.at.as_secs(),
            "sid": login.sid,
            "at_hash": algorithm.half_hash(access_token),
        }));
        claims.extend(nonce.map(|nonce| ("nonce".to_owned(), json!(nonce))));
        claims.extend(self.about(&grant.subject, scopes));
        self.sign("JWT", client, &claims).map(Some)
    }

    /// What an access token says (RFC 9068 §2.2), signed in it or told by introspection.
    pub(super) fn claims(&self, grant: &Grant, access: &Access) -> Map<String, Value> {
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
            let groups = self.people.named(&grant.subject).map(|person| &person.groups);
            claims.insert("groups".to_owned(), json!(groups));
        }
        claims
    }

    /// What the scopes `profile` and `email` tell about a person (OpenID Connect Core §5.4).
    pub(super) fn about(&self, subject: &str, scopes: &Scopes) -> Map<String, Value> {
        let mut claims = Map::new();
        let Some(person) = self.people.named(subject) else { return claims };
        if scopes.contains("profile") {
            claims.insert("name".to_owned(), json!(person.full_name));
            claims.insert("preferred_username".to_owned(), json!(person.name));
        }
        if scopes.contains("email") {
            claims.insert("email".to_owned(), json!(person.email()));
            claims.insert("email_verified".to_owned(), json!(true));
        }
        claims
    }

    /// A JWT of this type, signed as the client wants it.
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
        let wants = |resource: &&super::Resource| audience.contains(&resource.uri);
        let wanted = self.options.resources.iter().find(wants).and_then(|r| r.tokens);
        wanted.unwrap_or(client.tokens)
    }
}

/// 256 random bits as 43 characters: a token, a code, an id.
pub(super) fn random() -> Result<String, OAuthError> {
    let mut bytes = [0; 32];
    rand::fill(&mut bytes).map_err(|_| OAuthError::SERVER)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// The members of an object; of anything else, none.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
