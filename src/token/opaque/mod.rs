//! Opaque tokens: introspection (RFC 7662) and its cache.

pub(crate) mod introspection_cache;
pub(crate) mod introspection_verifier;
pub(crate) mod signed_response;
