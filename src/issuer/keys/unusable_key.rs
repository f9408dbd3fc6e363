//! The reasons why a JWK is unusable.

/// The reason why a JWK is unusable. Other keys of its set are not affected.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnusableKey {
    /// A member is missing or malformed, or the numbers make no valid key.
    #[error("a member is missing or malformed")]
    Members,
    /// `kty` or `crv` is not supported.
    #[error("the key's type or curve is not supported")]
    Type,
    /// `use` or `key_ops` do not allow verification.
    #[error("the key is not meant to verify signatures")]
    Use,
    /// `alg` is unknown, or does not match the key's type.
    #[error("the key's `alg` does not match its type")]
    Algorithm,
    /// The key is too short, or its private key can be computed.
    #[error("the key is too weak")]
    Weak,
    /// The set has more keys than are read.
    #[error("the set has more than 256 keys; this key and those after it are not read")]
    Excess,
    /// The private key is published as well: anyone who reads it could have signed.
    #[error("the JWK contains private key parameters")]
    Private,
}
