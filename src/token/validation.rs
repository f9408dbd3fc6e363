//! The validation rules for an issuer's tokens.

use core::time::Duration;
use std::sync::Arc;

use super::jwe::DecryptionKeys;
use super::jwt::jws::DEFAULT_MAX_TOKEN_SIZE;
use crate::issuer::Algorithm;

/// The validation rules for an issuer's tokens. Part of a verifier's fingerprint:
/// with stricter rules no earlier result is reused.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ValidationRules {
    /// The accepted audience.
    pub audience: Audience,
    /// The `iss` of tokens and responses that state none, for an issuer whose `iss` distinguishes its users instead of
    /// its configured name: one with tenants, or one of several with this `iss`. Default none: the name.
    pub namespace: Option<Arc<str>>,
    /// Accepted signature algorithms. Default RS256, PS256, ES256, ES384, `EdDSA`.
    pub algorithms: Vec<Algorithm>,
    /// Accepted `typ`, in lower case and without `application/`; a token without one counts as `jwt`.
    /// Default `at+jwt` and `jwt`; `at+jwt` alone is RFC 9068.
    pub token_types: Vec<Box<str>>,
    /// The allowed clock skew for `exp`, `nbf` and `iat`. Default 30 s.
    pub leeway: Duration,
    /// Claims required in a signed token; `iss` and `exp` always. Default `iss exp aud sub`.
    pub required_claims: Vec<Box<str>>,
    /// The maximum age of a token by its `iat`. Default none.
    pub max_token_age: Option<Duration>,
    /// The claims that take the place of `aud` in tokens without it; the first present one counts. Default none.
    pub audience_claim: Vec<Box<str>>,
    /// The claims with the scopes, member names joined by dots; the first present one counts. Default `scope`.
    pub scope_claim: Vec<Box<str>>,
    /// The claims with the client's id; the first present one counts. Default `client_id`, then `azp`.
    pub client_claim: Vec<Box<str>>,
    /// Bytes of a signed token, at most. Default 16 KiB.
    pub max_token_size: usize,
    /// The keys that open encrypted tokens. Default none: they are no JWTs here.
    pub decryption: Option<Arc<DecryptionKeys>>,
    /// Whether tokens that call themselves ID, refresh or logout tokens are refused. Default yes.
    pub access_only: bool,
    /// Cached results for signed tokens; 0 disables the cache. Default 50 000.
    pub jwt_cache_max_entries: u64,
    /// Whether signed tokens are introspected as well. Default no.
    pub revocation_check: bool,
    /// The party that presents the tokens. Default the client.
    pub holder: TokenHolder,
}

impl ValidationRules {
    /// Returns the defaults of the configuration reference, for tokens meant for `audience`.
    pub fn new(audience: Audience) -> Self {
        Self {
            audience,
            namespace: None,
            algorithms: vec![
                Algorithm::Rs256,
                Algorithm::Ps256,
                Algorithm::Es256,
                Algorithm::Es384,
                Algorithm::EdDsa,
            ],
            token_types: ["at+jwt", "jwt"].map(Box::from).into(),
            leeway: Duration::from_secs(30),
            required_claims: ["iss", "exp", "aud", "sub"].map(Box::from).into(),
            max_token_age: None,
            audience_claim: Vec::new(),
            scope_claim: ["scope".into()].into(),
            client_claim: ["client_id", "azp"].map(Box::from).into(),
            max_token_size: DEFAULT_MAX_TOKEN_SIZE,
            decryption: None,
            access_only: true,
            jwt_cache_max_entries: 50_000,
            revocation_check: false,
            holder: TokenHolder::Client,
        }
    }

    /// Returns the same rules for tokens that the gateway itself holds.
    #[must_use]
    pub fn of_held_tokens(&self) -> Self {
        Self { holder: TokenHolder::Gateway, ..self.clone() }
    }
}

impl ValidationRules {
    /// Returns the rules that decide about introspection responses: all but those of signed tokens alone.
    pub(crate) fn of_introspection(&self) -> Self {
        Self { jwt_cache_max_entries: 0, revocation_check: false, decryption: None, ..self.clone() }
    }

    /// Returns [`Principal::namespace`](super::Principal::namespace) of a token of the issuer called `name` with this
    /// verified `iss`.
    pub(crate) fn namespace(&self, name: &Arc<str>, iss: Option<&str>) -> Arc<str> {
        match (&self.namespace, iss) {
            (None, _) => Arc::clone(name),
            (Some(_), Some(iss)) => iss.into(),
            (Some(issuer), None) => Arc::clone(issuer),
        }
    }
}

/// The party that presents a token. Some issuers give a user the same access token at each login while it lives: a
/// logout withdraws it from clients, and leaves it to the user's other sessions.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TokenHolder {
    /// A client, in a request: a withdrawn token is refused.
    Client,
    /// The gateway, for a session or for Basic credentials, whose own end decides: a withdrawn token is accepted.
    Gateway,
}

/// The accepted audience of tokens.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Audience {
    /// One of these, in `aud`, exactly. Never empty.
    OneOf(Box<[Arc<str>]>),
    /// Any audience: `audience: any`, which the configuration calls unsafe.
    Any,
}

impl Audience {
    /// Whether `name` is one of the accepted audiences; where any is accepted, none is listed.
    pub fn lists(&self, name: &str) -> bool {
        match self {
            Self::OneOf(accepted) => accepted.iter().any(|accepted| **accepted == *name),
            Self::Any => false,
        }
    }
}

/// The kinds of tokens that a verifier accepts.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TokenUse {
    /// Signed tokens, verified by signature.
    Jwt,
    /// Opaque tokens, introspected (RFC 7662).
    Introspection,
    /// Both, distinguished by the token's form.
    Bearer,
}

/// The maximum age of a logout token: an issuer does not resend older ones.
pub const MAX_AGE: Duration = Duration::from_secs(10 * 60);
