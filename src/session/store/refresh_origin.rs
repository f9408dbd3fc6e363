//! The refresh that produced some tokens, and its keys in Redis.

/// The keys for the refresh of one refresh token.
#[derive(Clone)]
pub(crate) struct RefreshKeys {
    /// The new tokens.
    pub(super) record: String,
    /// The owner of the lock.
    pub(super) lock: String,
    /// The first owner of the lock, until a result is published.
    pub(super) begun: String,
    /// The age of the tokens that a browser was given.
    pub(super) given: String,
}

/// The refresh that produced some tokens, for requests that still present the ones before.
#[derive(Clone)]
pub(crate) struct RefreshOrigin {
    pub(super) token_keys: RefreshKeys,
    /// Orders the tokens: a later refresh has a greater mark.
    pub(super) mark: String,
}
