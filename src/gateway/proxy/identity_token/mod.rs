//! Identity tokens: short-lived JWTs signed by the gateway that identify the caller to one upstream.
//!
//! Identity headers are trustworthy only if the gateway alone can reach the upstream. Where that is not certain, a
//! route uses `identity_token`: the same claims as a JWT that the upstream verifies with the keys published at
//! [`JWKS_PATH`]. A token is cached by caller and route until half its lifetime is over, so that an ordinary request
//! signs nothing.

mod key_storage;
pub(crate) mod rotating_key;
mod signing_keys;

use core::fmt;
use core::time::Duration;
use std::sync::Arc;

use foldhash::fast::RandomState;
use http::{HeaderName, HeaderValue};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use serde_json::{Map, Value};

pub(crate) use self::signing_keys::SigningKeySet;
use super::identity_headers::{DERIVED_CLAIMS, Statement};
use crate::base::clock::Timestamp;
use crate::base::random::try_random;
use crate::config::auth::IdentityHeader;
use crate::config::reserved_headers;
use crate::issuer::keys::jwk::to_base64url;
use crate::issuer::keys::signing_key::SigningFailed;
use crate::token::Principal;

/// The header field of the token.
pub(crate) static IDENTITY_TOKEN: HeaderName = reserved_headers::IDENTITY_TOKEN;
/// The path of the published JWK set.
pub(crate) const JWKS_PATH: &str = "/.well-known/jwks.json";
/// The route name of requests for the JWK set in metrics and log.
pub(crate) const ID: &str = "_identity_keys";
/// The `iss` of the tokens if the gateway has no `server.public_url`.
pub(crate) const UNNAMED: &str = "northgate";

/// The signer of identity tokens for one authentication method of one route.
pub(crate) struct IdentityTokens {
    keys: Arc<SigningKeySet>,
    issuer: Arc<str>,
    audience: Arc<str>,
    /// The leeway after `exp` within which the caller's token is still accepted.
    leeway: Duration,
    /// The claims besides the derived ones.
    claims: Box<[Box<str>]>,
    /// By the digest of the caller's whole token; the claims are compared as well.
    cache: Cache<[u8; 32], CachedToken, RandomState>,
}

#[derive(Clone)]
struct CachedToken {
    principal: Arc<Principal>,
    field: HeaderValue,
    fresh_until: Timestamp,
}

impl IdentityTokens {
    /// Creates a signer with `keys`, for tokens from `issuer` to the upstream `audience` with the claims of
    /// `headers`.
    pub(crate) fn new(
        keys: Arc<SigningKeySet>,
        issuer: Arc<str>,
        audience: Arc<str>,
        leeway: Duration,
        headers: &[IdentityHeader],
    ) -> Self {
        let claims = headers.iter().map(|header| header.claim.clone());
        let claims = claims.filter(|claim| !RESERVED_CLAIMS.contains(&&**claim)).collect();
        let cache = Cache::builder()
            .max_capacity(MAX_CACHED_TOKENS)
            // A rejected insert costs one signature, no more: frequent callers stay cached.
            .eviction_policy(EvictionPolicy::tiny_lfu())
            .time_to_live(LIFETIME)
            .build_with_hasher(RandomState::default());
        Self { keys, issuer, audience, leeway, claims, cache }
    }

    /// Returns the token for `principal` at `now`, as a field value.
    ///
    /// # Errors
    ///
    /// [`SigningFailed`] if the library fails; the request is not to be forwarded without the token.
    pub(crate) fn field(
        &self,
        principal: &Arc<Principal>,
        now: Timestamp,
    ) -> Result<HeaderValue, SigningFailed> {
        if let Some(cached) = self.cache.get(&principal.digest)
            && now < cached.fresh_until
            && is_same(&cached.principal, principal)
        {
            return Ok(cached.field);
        }
        let expires = now.plus(LIFETIME).min(principal.accepted_until(now, self.leeway));
        let token = self.keys.sign(&self.claims(principal, now, expires)?.into(), now)?;
        let mut field = HeaderValue::try_from(token).map_err(|_| SigningFailed)?;
        field.set_sensitive(true);
        let fresh_until = now.plus(LIFETIME / 2).min(expires);
        if now < fresh_until {
            let (principal, field) = (Arc::clone(principal), field.clone());
            self.cache.insert(principal.digest, CachedToken { principal, field, fresh_until });
        }
        Ok(field)
    }

    fn claims(
        &self,
        principal: &Principal,
        now: Timestamp,
        expires: Timestamp,
    ) -> Result<Map<String, Value>, SigningFailed> {
        let id: [u8; 16] = try_random().ok_or(SigningFailed)?;
        let mut claims = Map::new();
        for name in self.claims.iter().map(|name| &**name).chain(DERIVED_CLAIMS) {
            if let Some(statement) = Statement::about(principal, name) {
                claims.insert(name.to_owned(), statement.value());
            }
        }
        let mut set = |name: &str, value: Option<Value>| {
            claims.extend(value.map(|value| (name.to_owned(), value)));
        };
        set("iss", Some((*self.issuer).into()));
        set("aud", Some((*self.audience).into()));
        set("idp", Some((*principal.namespace).into()));
        set("iat", Some(now.as_secs().into()));
        set("exp", Some(expires.as_secs().into()));
        set("jti", Some(to_base64url(&id).into()));
        Ok(claims)
    }
}

/// Whether tokens for two principals would have the same claims. Usually they are one object.
fn is_same(a: &Arc<Principal>, b: &Arc<Principal>) -> bool {
    Arc::ptr_eq(a, b)
        || (a.namespace == b.namespace
            && (&a.subject, &a.client, a.expires) == (&b.subject, &b.client, b.expires)
            && a.scopes == b.scopes
            && a.claims == b.claims)
}

impl fmt::Debug for IdentityTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityTokens").field("audience", &self.audience).finish_non_exhaustive()
    }
}

/// The lifetime of a token, unless the caller's own is accepted for less.
const LIFETIME: Duration = Duration::from_secs(300);
/// Tokens cached for each authentication method of a route.
const MAX_CACHED_TOKENS: u64 = 10_000;
/// Claims that are the gateway's own: those of the caller's token are not copied.
const RESERVED_CLAIMS: [&str; 8] = ["iss", "aud", "idp", "iat", "exp", "nbf", "jti", "cnf"];

#[cfg(test)]
mod tests;
