//! Signed tokens: JWS, JWT and access tokens (RFC 7515, 7519, 9068).

pub(crate) mod claim_types;
pub(crate) mod claims;
pub mod id_token;
pub(crate) mod jws;
pub(crate) mod jwt_cache;
pub(crate) mod unverified_claims;
pub mod verify;
