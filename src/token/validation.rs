//! What an issuer's tokens must satisfy.

use core::time::Duration;
use std::sync::Arc;

use crate::issuer::Algorithm;

/// What an issuer's tokens must satisfy. Part of a verifier's fingerprint:
/// stricter rules never see old verdicts.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ValidationRules {
    /// Whom tokens must be meant for.
    pub audience: Audience,
    /// Algorithms that may sign. Default RS256, PS256, ES256, ES384, `EdDSA`.
    pub algorithms: Vec<Algorithm>,
    /// Accepted `typ`, in lower case and without `application/`; a token without one counts as `jwt`.
    /// Default `at+jwt` and `jwt`; `at+jwt` alone is RFC 9068.
    pub token_types: Vec<Box<str>>,
    /// How far clocks may differ, for `exp`, `nbf` and `iat`. Default 30 s.
    pub leeway: Duration,
    /// Claims that a signed token must have; `iss` and `exp` always. Default `iss exp aud sub`.
    pub required_claims: Vec<Box<str>>,
    /// How old a token may be by its `iat`. Default: any age.
    pub max_token_age: Option<Duration>,
    /// Where the scopes are: member names joined by dots. Default `scope`.
    pub scope_claim: Box<str>,
    /// Where the client's name is; the first that is present. Default `client_id`, then `azp`.
    pub client_claim: Vec<Box<str>>,
    /// Verdicts on signed tokens kept; 0 keeps none. Default 50 000.
    pub jwt_cache_max_entries: u64,
    /// Whether signed tokens are introspected as well. Default no.
    pub revocation_check: bool,
}

impl ValidationRules {
    /// The reference's defaults, for tokens meant for `audience`.
    pub fn new(audience: Audience) -> Self {
        Self {
            audience,
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
            scope_claim: "scope".into(),
            client_claim: ["client_id", "azp"].map(Box::from).into(),
            jwt_cache_max_entries: 50_000,
            revocation_check: false,
        }
    }
}

/// Whom a token must be meant for.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Audience {
    /// One of these, in `aud`, exactly. Never empty.
    OneOf(Box<[Arc<str>]>),
    /// Anybody: `audience: any`, which the configuration calls unsafe.
    Any,
}

/// Which tokens a verifier takes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TokenUse {
    /// Signed tokens, verified here.
    Jwt,
    /// Reference tokens; the issuer is asked (RFC 7662).
    Introspection,
    /// Either, by the token's shape.
    Bearer,
}
