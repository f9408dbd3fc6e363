//! A token of the gateway's own that tells a service who calls: signed, short-lived, and for that service alone.
//!
//! Identity headers are believed because nobody but the gateway can reach the service. Where that cannot be
//! promised, a route asks for `identity_token`: what the headers say, as a JWT that the service verifies with the
//! keys published at [`JWKS_PATH`]. It is made once for each caller and route and serves until half its life is over,
//! so that an ordinary request signs nothing.

mod key_storage;
mod signing_keys;

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use aws_lc_rs::rand;
use foldhash::fast::RandomState;
use http::{HeaderName, HeaderValue};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde_json::{Map, Value};

pub(crate) use self::signing_keys::SigningKeySet;
use super::identity_headers::{BELIEVED, Statement};
use crate::base::clock::Timestamp;
use crate::config::auth::IdentityHeader;
use crate::issuer::jwk::to_base64url;
use crate::issuer::signing_key::SigningFailed;
use crate::token::Principal;

/// Where a service finds the token.
pub(crate) static IDENTITY_TOKEN: HeaderName = HeaderName::from_static("x-auth-identity");
/// Where the public keys are published.
pub(crate) const JWKS_PATH: &str = "/.well-known/jwks.json";
/// What metrics and the log call requests for them.
pub(crate) const ID: &str = "_identity_keys";
/// Who the tokens say they are from if the gateway has no `server.public_url`.
pub(crate) const UNNAMED: &str = "northgate";

/// Makes the identity tokens of one way into one route.
pub(crate) struct IdentityTokens {
    keys: Arc<SigningKeySet>,
    issuer: Arc<str>,
    audience: Arc<str>,
    /// What the service learns besides who it is.
    claims: Box<[Box<str>]>,
    /// By the digest of the whole token; whatever else it says is compared as well.
    made: Cache<[u8; 32], Made, RandomState>,
}

#[derive(Clone)]
struct Made {
    principal: Arc<Principal>,
    field: HeaderValue,
    until: Timestamp,
}

impl IdentityTokens {
    /// Tokens signed with `signing_keys`, from `issuer` for the service `audience`, that say what `headers` say.
    pub(crate) fn new(
        keys: Arc<SigningKeySet>,
        issuer: Arc<str>,
        audience: Arc<str>,
        headers: &[IdentityHeader],
    ) -> Self {
        let told = headers.iter().map(|header| header.claim.clone());
        let claims = told.filter(|claim| !OWN.contains(&&**claim)).collect();
        let made = Cache::builder()
            .max_capacity(MAX_CACHED_TOKENS)
            // What is refused a place costs a signature, no more: those who come often stay.
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .time_to_live(LIFETIME)
            .build_with_hasher(RandomState::default());
        Self { keys, issuer, audience, claims, made }
    }

    /// The token that speaks for `principal` at `now`, as a field's value.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if the library refuses; no service is to be told less than the route promises.
    pub(crate) fn field(
        &self,
        principal: &Arc<Principal>,
        now: Timestamp,
    ) -> Result<HeaderValue, SigningFailed> {
        if let Some(made) = self.made.get(&principal.digest)
            && now < made.until
            && is_same(&made.principal, principal)
        {
            return Ok(made.field);
        }
        let expires = now.plus(LIFETIME).min(principal.expires);
        let token = self.keys.sign(&self.claims(principal, now, expires)?.into(), now)?;
        let mut field = HeaderValue::try_from(token).map_err(|_| SigningFailed)?;
        field.set_sensitive(true);
        let until = now.plus(LIFETIME / 2).min(expires);
        if now < until {
            let (principal, field) = (Arc::clone(principal), field.clone());
            self.made.insert(principal.digest, Made { principal, field, until });
        }
        Ok(field)
    }

    fn claims(
        &self,
        principal: &Principal,
        now: Timestamp,
        expires: Timestamp,
    ) -> Result<Map<String, Value>, SigningFailed> {
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| SigningFailed)?;
        let mut claims = Map::new();
        for name in self.claims.iter().map(|name| &**name).chain(BELIEVED) {
            if let Some(told) = Statement::about(principal, name) {
                claims.insert(name.to_owned(), told.value());
            }
        }
        let mut say = |name: &str, value: Option<Value>| {
            claims.extend(value.map(|value| (name.to_owned(), value)));
        };
        say("iss", Some((*self.issuer).into()));
        say("aud", Some((*self.audience).into()));
        say("idp", Some((*principal.issuer).into()));
        say("iat", Some(now.as_secs().into()));
        say("exp", Some(expires.as_secs().into()));
        say("jti", Some(to_base64url(&id).into()));
        Ok(claims)
    }
}

/// Whether a token made for one says what one for the other would. Usually they are one and the same.
fn is_same(a: &Arc<Principal>, b: &Arc<Principal>) -> bool {
    Arc::ptr_eq(a, b)
        || (a.issuer == b.issuer
            && (&a.subject, &a.client, a.expires) == (&b.subject, &b.client, b.expires)
            && a.scopes == b.scopes
            && a.claims == b.claims)
}

impl fmt::Debug for IdentityTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityTokens").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// How long a token lives, unless the caller's own ends before.
const LIFETIME: Duration = Duration::from_secs(300);
/// Tokens kept for each way into a route.
const MAX_CACHED_TOKENS: u64 = 10_000;
/// What these say of the caller's token does not hold for ours.
const OWN: [&str; 8] = ["iss", "aud", "idp", "iat", "exp", "nbf", "jti", "cnf"];

#[cfg(test)]
mod tests;
