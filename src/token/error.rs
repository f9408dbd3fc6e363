//! Why a token was refused.

use crate::issuer::Unavailable;
use crate::observe::metrics::AuthResult;

/// Why a token was refused. Small and without any text of the token's, so that
/// nothing from outside reaches an answer or the log through it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// It is not a token: segments, base64url, JSON, duplicate members, wrong types, too large.
    /// Answered with 401 like the others: RFC 6750 §3.1 counts it under `invalid_token`.
    #[error("the token is malformed")]
    Malformed,
    /// Its `alg` is not allowed, or does not fit the key.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// It has a `crit` header, or another extension that we do not understand (RFC 7515 §4.1.11).
    #[error("the token demands an extension that is not understood")]
    Critical,
    /// Its `exp` is past, or it is older than its issuer's tokens may be.
    #[error("the token has expired")]
    Expired,
    /// Its `nbf` or `iat` is to come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Its signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// No key of the issuer fits it.
    #[error("the token is signed with an unknown key")]
    UnknownKey,
    /// Its `iss` is another's.
    #[error("the token was issued by somebody else")]
    Issuer,
    /// It is meant for somebody else.
    #[error("the token is meant for another audience")]
    Audience,
    /// Its `typ` says that it is no access token.
    #[error("the token is of another type")]
    Type,
    /// A required claim is missing.
    #[error("the token lacks a required claim")]
    Claim,
    /// It is bound to a key or certificate, and the request does not prove possession of that (RFC 9449, 8705).
    #[error("the token is bound to a key that the request does not prove")]
    Unproven,
    /// Its issuer says that it is not active (RFC 7662 §2.2).
    #[error("the token is not active")]
    Inactive,
    /// It was revoked through this gateway.
    #[error("the token has been revoked")]
    Revoked,
    /// Nothing is wrong with the token: its issuer cannot be asked. Answered with 503.
    #[error("the token's issuer cannot be asked")]
    Unavailable {
        /// Seconds after which it is worth asking again, at least 1.
        retry_after: u32,
    },
}

impl TokenError {
    /// The word for it in metrics and the log.
    pub const fn result(self) -> AuthResult {
        match self {
            Self::Malformed => AuthResult::Malformed,
            Self::Algorithm => AuthResult::Algorithm,
            Self::Critical => AuthResult::Critical,
            Self::Expired => AuthResult::Expired,
            Self::NotYetValid => AuthResult::NotYetValid,
            Self::Signature => AuthResult::Signature,
            Self::UnknownKey => AuthResult::UnknownKey,
            Self::Issuer => AuthResult::Issuer,
            Self::Audience => AuthResult::Audience,
            Self::Type => AuthResult::Type,
            Self::Claim => AuthResult::Claim,
            Self::Unproven => AuthResult::Credentials,
            Self::Inactive => AuthResult::Inactive,
            Self::Revoked => AuthResult::Revoked,
            Self::Unavailable { .. } => AuthResult::Unavailable,
        }
    }
}

impl From<Unavailable> for TokenError {
    fn from(Unavailable { retry_after }: Unavailable) -> Self {
        Self::Unavailable { retry_after }
    }
}
