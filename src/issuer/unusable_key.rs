//! Why a JWK verifies no signature.

/// Why a JWK verifies nothing. The set it came in is none the worse for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum UnusableKey {
    /// A member is missing or malformed, or the numbers make no key.
    #[error("a member is missing or malformed")]
    Members,
    /// `kty` or `crv` is not one that we verify with.
    #[error("its type or curve is not supported")]
    Type,
    /// `use` or `key_ops` keep it from verifying.
    #[error("it is not meant to verify signatures")]
    Use,
    /// `alg` is unknown, or is not one of the key's type.
    #[error("its `alg` does not fit its type")]
    Algorithm,
    /// Too short, or of a kind whose private half can be computed.
    #[error("it is too weak")]
    Weak,
    /// Its private half is published with it: anybody could have signed.
    #[error("its private half is published")]
    Private,
}
