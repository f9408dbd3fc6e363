//! The reasons for refusing a token.

use crate::issuer::Unavailable;
use crate::observe::metrics::AuthResult;

/// The reason why a token was refused. Small and without any text of the token, so that
/// no input reaches a response or the log through it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TokenError {
    /// The token is malformed: segments, base64url, JSON, duplicate members, wrong types.
    /// 401 like the others: RFC 6750 §3.1 counts it under `invalid_token`.
    #[error("the token is malformed")]
    Malformed,
    /// The token is larger than the issuer's `max_token_size`, and was not read.
    #[error("the token is larger than the issuer's `max_token_size`")]
    TooLarge,
    /// `alg` is not allowed, or does not match the key.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// The header has `crit` or another unsupported extension (RFC 7515 §4.1.11).
    #[error("the token requires an unsupported extension")]
    Critical,
    /// `exp` has passed, or the token is older than the issuer's `max_token_age`.
    #[error("the token has expired")]
    Expired,
    /// `nbf` or `iat` is in the future.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// No key of the issuer matches.
    #[error("the token is signed with an unknown key")]
    UnknownKey,
    /// `iss` names another issuer.
    #[error("the token's `iss` is not accepted")]
    Issuer,
    /// `aud` names no accepted audience.
    #[error("the token's `aud` is not accepted")]
    Audience,
    /// `typ` names another type of token.
    #[error("the token's type is not accepted")]
    Type,
    /// A required claim is missing.
    #[error("the token lacks a required claim")]
    Claim,
    /// `sub` names another subject than the session has ("OpenID Connect Core" §12.2).
    #[error("the token belongs to another subject than its session")]
    Subject,
    /// The token is bound to a key or certificate, and the request does not prove possession of that (RFC 9449, 8705).
    #[error("the token is bound to a key that the request does not prove")]
    Unproven,
    /// The issuer reports the token as not active (RFC 7662 §2.2).
    #[error("the token is not active")]
    Inactive,
    /// The token was revoked through this gateway.
    #[error("the token has been revoked")]
    Revoked,
    /// The token's issuer is unavailable. 503.
    #[error("the token's issuer is unavailable")]
    Unavailable {
        /// Seconds after which to try again, at least 1.
        retry_after: u32,
    },
}

impl TokenError {
    /// Returns the label of the error in metrics and the log.
    pub const fn result(self) -> AuthResult {
        match self {
            Self::Malformed | Self::TooLarge => AuthResult::Malformed,
            Self::Algorithm => AuthResult::Algorithm,
            Self::Critical => AuthResult::Critical,
            Self::Expired => AuthResult::Expired,
            Self::NotYetValid => AuthResult::NotYetValid,
            Self::Signature => AuthResult::Signature,
            Self::UnknownKey => AuthResult::UnknownKey,
            Self::Issuer => AuthResult::Issuer,
            Self::Audience => AuthResult::Audience,
            Self::Type => AuthResult::Type,
            Self::Claim | Self::Subject => AuthResult::Claim,
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
